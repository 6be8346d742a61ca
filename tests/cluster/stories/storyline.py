"""Does what a page tells: runs its commands, waits for what it waits for, and has happen what happens.

The turns of any page:

    until there are 3 workers             as processes, whatever they have done so far
    until 3 workers tokenize              so many of them count in progress.json
    until it trains with 3 workers        a step of theirs is on record, of a start since the last command or turn
    until "TEXT" is logged                by the newest job, since the last command or turn
    until the job succeeded               or stopped, failed, preempted
    the workers stand still | go on       so that what follows comes before their last step, on any machine

Others belong to a cluster: its nodes are lost, leave, come.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from cluster.drills.bucket import Bucket
from cluster.drills.victims import title_of
from cluster.jobs.logs import tail
from cluster.jobs.places import job_folder
from cluster.jobs.records import OVER, newest_job
from cluster.pool.scale import PROGRESS
from data_pipeline import storage
from data_pipeline.errors import FoldtrainError
from data_pipeline.storage.pacing import WRITES_VARIABLE
from tests.cluster.stories.transcripts import Command, Turn, missing, read_page
from trainer.records.jsonl import read_last_records

_PATIENCE, _PAUSE = 400.0, 0.2
_COLUMNS = "120"
_SHARDS, _TRAINS = "ray::ShardWorker", "ray::TrainWorker"
_STAGES = "ingest,train-teacher,train-tokenizer,tokenize,train-generator,sample"
"""Those without which there are no samples."""
PACED = {WRITES_VARIABLE: "12"}
"""Variables of a cluster's nodes, with which small stages have a middle in which something can happen."""


class Story:
    """A page, its run, and the cluster that it is on.

    Args:
        page: of docs.
        run: URI of its run, which this process reaches.
        folder: where its commands are run.
        environment: variables of its commands, beside those of this process.
        processes: all that the cluster runs.
        turns: what can befall the cluster, by the words of the page.
    """

    def __init__(
        self,
        page: Path,
        run: str,
        folder: Path,
        environment: Mapping[str, str],
        processes: Callable[[], Iterable[psutil.Process]],
        turns: Mapping[str, Callable[[], object]],
    ) -> None:
        self._page, self._run, self._folder = page, run, folder
        self._environment = {**environment, "COLUMNS": _COLUMNS, "FORCE_COLOR": "", "NO_COLOR": "1"}
        self._processes, self._turns = processes, turns
        self._held: list[psutil.Process] = []
        self._job, self._logged, self._since = "", 0, 0.0

    def tell(self) -> None:
        """All of the page.

        Raises:
            AssertionError: if a command fails, prints other lines than the page, or what is waited for does not come.
        """
        try:
            for part in read_page(self._page):
                print(f"{time.strftime('%X')} {self._page.name}:{part.line}: {part.words}", flush=True)
                self._do(part) if isinstance(part, Command) else self._turn(part)
        finally:
            self._go_on()

    def foldtrain(self, words: str) -> str:
        """What a command prints; it has to succeed."""
        command = ["bash", "-c", words.replace("foldtrain ", f"{sys.executable} -P -m foldtrain ", 1)]
        done = subprocess.run(
            command,
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_PATIENCE,
        )
        print(done.stdout, flush=True)
        assert done.returncode == 0, f"{words}: exit code {done.returncode}\n{done.stdout}"
        return done.stdout

    def undisturbed(self, run: str, target: str) -> None:
        """The same config in another run, as far as its samples."""
        self.foldtrain(f"foldtrain submit package:smoke.yaml run={run} --stage {_STAGES} --target {target} -y --follow")

    def _do(self, command: Command) -> None:
        self._logged, self._since = len(self._log()), time.time()
        printed = self.foldtrain(command.words)
        lacks = missing(command.output, printed)
        assert lacks is None, f"{self._page}:{command.line}: {command.words} does not print\n{lacks}\nbut\n{printed}"

    def _turn(self, turn: Turn) -> None:
        if turn.words in self._turns:
            self._logged, self._since = len(self._log()), time.time()
            self._turns[turn.words]()
        elif turn.words == "the workers stand still":
            self._hold()
        elif turn.words == "the workers go on":
            self._go_on()
        else:
            self._wait(turn)

    def _wait(self, turn: Turn) -> None:
        waits: dict[str, Callable[[str], bool]] = {
            r"until there are (\d+) workers": lambda count: len(self._workers()) == int(count),
            r"until (\d+) workers? tokenizes?": self._tokenizes,
            r"until it trains with (\d+) workers?": self._trains,
            r'until "(.+)" is logged': self._is_logged,
            r"until the job (\w+)": lambda status: newest_job(self._run).status == status,
        }
        found = [(match[1], is_so) for pattern, is_so in waits.items() if (match := re.fullmatch(pattern, turn.words))]
        assert len(found) == 1, f"{self._page}:{turn.line}: {turn.words}: nothing that can happen here"
        [(what, is_so)] = found
        deadline = time.monotonic() + _PATIENCE
        while not is_so(what):
            late = time.monotonic() >= deadline or newest_job(self._run).status in OVER
            assert not late or is_so(what), f"{self._page}:{turn.line}: {turn.words}: never\n{self._log()[-4000:]}"
            time.sleep(_PAUSE)

    def _tokenizes(self, count: str) -> bool:
        with suppress(FileNotFoundError):
            progress: dict[str, Any] = storage.read_json(storage.join(self._run, "tokens", PROGRESS))
            return progress["state"] == "running" and progress["workers"] == int(count)
        return False

    def _trains(self, count: str) -> bool:
        begun = [
            event
            for event in read_last_records(storage.join(self._run, "generator", "events.jsonl"))
            if event["event"] in {"start", "resume"}
        ]
        if not begun or begun[-1]["workers"] != int(count) or begun[-1]["time"] < self._since:
            return False
        steps = read_last_records(storage.join(self._run, "generator", "metrics.jsonl"))
        return bool(steps) and steps[-1]["step"] > begun[-1]["step"] and steps[-1]["time"] > begun[-1]["time"]

    def _is_logged(self, text: str) -> bool:
        return text in self._log()[self._logged :]

    def _log(self) -> str:
        with suppress(FoldtrainError, FileNotFoundError):
            job = newest_job(self._run)
            if job.id != self._job:
                self._job, self._logged = job.id, 0
            return " ".join(tail(job_folder(self._run, job.id), most=1 << 24).split())
        return ""

    def _workers(self) -> list[psutil.Process]:
        """The processes of the stage that is at work: while a pool is, those of a training wait for the next one."""
        found: dict[str, list[psutil.Process]] = {_SHARDS: [], _TRAINS: []}
        for process in self._processes():
            for title, of_title in found.items():
                if title in title_of(process):
                    of_title.append(process)
        return found[_SHARDS] or found[_TRAINS]

    def _hold(self) -> None:
        self._held = self._workers()
        assert self._held, "there are no workers"
        for process in self._held:
            process.send_signal(signal.SIGSTOP)

    def _go_on(self) -> None:
        while self._held:
            with suppress(psutil.NoSuchProcess):
                self._held.pop().send_signal(signal.SIGCONT)


def same_samples(bucket: Bucket, run: str, unbroken: str) -> None:
    """Two runs of a bucket have drawn the same samples: the picture of all of them is the same, byte for byte.

    Raises:
        AssertionError: if not.
    """
    found, expected = (bucket.digests(f"{each}/samples")["grid.png"] for each in (run, unbroken))
    assert found == expected, f"the samples of {run} are not those of {unbroken}"
