"""Drivers that are started at once on one stage: whether ever two work there, and whether a ledger line is lost.

    python benchmarks/double_submit.py --trials 20 --submits 2              on a disk
    python benchmarks/double_submit.py --trials 20 --submits 20 --s3        on a local S3 server

A driver takes the lease of the stage, appends lines to its ledger as training does, and notes on the side each line
that storage has taken. Besides those that start at once, each trial has

    --blow kill      a driver that is killed (kill -9) in its work, and one that comes after it
    --blow pause     a driver that is stopped (SIGSTOP) until another took over, and goes on then
    --blow none      neither

With --strangers each process says that it is on a machine of its own, so that nobody sees whether another lives, and
only signs of life count. The exit code is 1 if two worked at once, or a line is missing or there twice.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path
from uuid import uuid4

from cluster.drills.s3_server import BUCKET, S3Server
from data_pipeline import storage
from data_pipeline.errors import FoldtrainError
from data_pipeline.leases import lease, lease_record
from trainer.records.jsonl import JsonlWriter, read_records

LINES = 5
_SPAWN = multiprocessing.get_context("spawn")


class Diary:
    """What really happened, in a file on this machine that all drivers append to.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def note(self, event: str, **details: object) -> None:
        """Append an event, with its time by this machine's clock."""
        line = json.dumps({"event": event, "pid": os.getpid(), "time": time.monotonic()} | details) + "\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, line.encode())
        os.close(descriptor)

    def read(self) -> list[dict[str, object]]:
        """All events."""
        return [json.loads(line) for line in self._path.read_text().splitlines()] if self._path.exists() else []

    def wait_for(self, event: str, count: int, seconds: float = 120) -> None:
        """Return when an event was noted that many times."""
        end = time.monotonic() + seconds
        while sum(each["event"] == event for each in self.read()) < count:
            if time.monotonic() > end:
                raise TimeoutError(f"no {event} number {count} in {seconds} s: {self.read()}")
            time.sleep(0.02)


def drive(folder: str, path: Path, start: Barrier | None, strangers: bool, seconds: float, slow: float) -> None:
    """One driver: take the lease, work, release it; or be refused."""
    diary = Diary(path)
    if strangers:
        machine = uuid4().hex
        lease_record._machine = lambda: machine
    if start is not None:
        start.wait()
    try:
        with lease.only_driver(folder, "double submit", seconds, say=lambda _: None) as held:
            _append(storage.join(folder, "ledger.jsonl"), held, diary, slow)
    except lease.LeaseHeldError:
        diary.note("refused")
    except lease.LeaseLostError:
        diary.note("lost")
    except FoldtrainError as error:
        diary.note("error", words=str(error))


def _append(path: str, held: lease.Lease, diary: Diary, slow: float) -> None:
    held.require()
    diary.note("began", token=held.claim.holder.token)
    writer = JsonlWriter(path, keep=read_records(path), interval=0.05, guard=held.confirm)
    try:
        for number in range(LINES):
            held.require()
            line = f"{held.claim.holder.token} {number}"
            writer.write({"line": line})
            if writer.flush(20) and not held.lost:
                diary.note("stored", line=line)
            time.sleep(slow)
    finally:
        writer.close()
        diary.note("ended", token=held.claim.holder.token)


def trial(folder: str, path: Path, submits: int, blow: str, strangers: bool, seconds: float) -> Counter[str]:
    """Start drivers at once, strike one if that is asked for, and judge what came of it."""
    start = _SPAWN.Barrier(submits)
    slow = 0.02 if blow == "none" else 0.3
    drivers = [
        _SPAWN.Process(target=drive, args=(folder, path, start, strangers, seconds, slow)) for _ in range(submits)
    ]
    for each in drivers:
        each.start()
    if blow != "none":
        drivers.append(_strike(Diary(path), blow, (folder, path, None, strangers, seconds, slow)))
    for each in drivers:
        each.join()
    found = judge(folder, Diary(path).read())
    found["CRASHED"] += sum(each.exitcode not in {0, -signal.SIGKILL} for each in drivers)
    return found


def _strike(diary: Diary, blow: str, arguments: tuple[object, ...]) -> multiprocessing.process.BaseProcess:
    """Kill or pause whoever works, and start another driver, which takes over."""
    diary.wait_for("stored", 2)
    victim = int(str([each for each in diary.read() if each["event"] == "stored"][-1]["pid"]))
    os.kill(victim, signal.SIGKILL if blow == "kill" else signal.SIGSTOP)
    diary.note("struck", victim=victim)
    began = sum(each["event"] == "began" for each in diary.read())
    successor = _SPAWN.Process(target=drive, args=arguments)
    successor.start()
    if blow == "pause":
        diary.wait_for("began", began + 1)
        os.kill(victim, signal.SIGCONT)
    return successor


def judge(folder: str, events: list[dict[str, object]]) -> Counter[str]:
    """Count what came of a trial; everything in capitals is a fault."""
    found = Counter(str(each["event"]) for each in events if each["event"] != "ended")
    stored = [str(each["line"]) for each in events if each["event"] == "stored"]
    lines = Counter(record["line"] for record in read_records(storage.join(folder, "ledger.jsonl")))
    found["NOBODY BEGAN"] += not found["began"]
    found["LINES LOST"] += sum(line not in lines for line in stored)
    found["LINES TWICE"] += sum(count > 1 for count in lines.values())
    working: set[object] = set()
    struck = {each.get("victim") for each in events if each["event"] == "struck"}
    for each in sorted(events, key=lambda event: float(str(event["time"]))):
        if each["event"] == "began":
            found["TWO AT ONCE"] += bool(working - struck)
            working.add(each["pid"])
        elif each["event"] == "ended":
            working.discard(each["pid"])
    return found


@contextmanager
def places(on_s3: bool) -> Iterator[tuple[str, Path]]:
    """A folder for stages, and one for diaries."""
    with ExitStack() as stack:
        local = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="foldtrain-double-submit-")))
        if on_s3:
            server = stack.enter_context(S3Server(local / "s3"))
            os.environ.update(server.environment())
        yield (f"s3://{BUCKET}/stages" if on_s3 else str(local / "stages")), local


def main() -> int:
    """Run all trials and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--submits", type=int, default=2, help="drivers that start at once")
    parser.add_argument("--s3", action="store_true", help="on a local S3 server")
    parser.add_argument("--blow", choices=("none", "kill", "pause"), default="none")
    parser.add_argument("--strangers", action="store_true", help="each on a machine of its own")
    parser.add_argument("--seconds", type=float, default=3.0, help="of the lease")
    options = parser.parse_args()
    total: Counter[str] = Counter()
    with places(options.s3) as (stages, local):
        for number in range(options.trials):
            total += trial(
                *(f"{stages}/{number}", local / f"{number}.jsonl", options.submits, options.blow),
                *(options.strangers, options.seconds),
            )
    where = "S3" if options.s3 else "disk"
    print(f"{where}: {options.trials} trials of {options.submits} drivers, blow: {options.blow}")
    for words, count in sorted(total.items()):
        print(f"  {count:5d}  {words}")
    faults = [words for words in total if words.isupper() or words == "error"]
    print("  two at once: never; lines lost: none" if not faults else f"  FAULTS: {', '.join(faults)}")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
