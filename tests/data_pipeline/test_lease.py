"""One driver at a time: who is refused, who may take over, and who must end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.double_submit import trial
from data_pipeline import storage
from data_pipeline.errors import FoldtrainError, StorageAwayError
from data_pipeline.leases import lease, lease_record
from data_pipeline.leases.lease import Claim, Lease, LeaseHeldError, LeaseLostError, only_driver, take
from data_pipeline.leases.lease_record import Holder

ROOT = Path(__file__).parents[2]
LONG = 600.0
"""Seconds of a lease that no test waits for."""


class Clock:
    """The time of a watcher, which passes only while it sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.at_sleep: Callable[[], object] = lambda: None

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.at_sleep()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(lease.time, "monotonic", made.monotonic)
    monkeypatch.setattr(lease.time, "sleep", made.sleep)
    return made


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def strangers(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, this process is on another machine than before."""

    def move() -> None:
        monkeypatch.setattr(lease_record, "_machine", lambda: f"machine {os.urandom(8).hex()}")

    return move


def take_here(folder: Path | str, seconds: float = LONG, say: Callable[[str], None] = lambda _: None) -> Claim:
    return take(str(folder), "train", seconds, say)


@contextmanager
def held_lease(folder: Path, seconds: float = LONG) -> Iterator[Lease]:
    """A lease that this process renews."""
    held = Lease(take_here(folder, seconds))
    try:
        yield held
    finally:
        held.close()


def records(folder: Path) -> dict[str, Any]:
    return {path.name: json.loads(path.read_bytes()) for path in sorted((folder / "lease").glob("[0-9]*"))}


def overwrite(claim: Claim, **changes: Any) -> None:
    path = storage.join(claim.folder, "lease", f"{claim.number:06d}.json")
    storage.write_json(path, storage.read_json(path) | changes)


# ------------------------------------------------------------------------------------------------- who is refused


def test_a_second_driver_is_told_who_is_there_and_what_to_do(tmp_path: Path) -> None:
    holder = take_here(tmp_path).holder
    before = records(tmp_path)
    with pytest.raises(LeaseHeldError) as refused:
        take_here(tmp_path)
    words = str(refused.value)
    for part in (str(tmp_path), holder.host, f"pid {os.getpid()}", f"user {holder.user}", "since 20", "kill"):
        assert part in words
    assert records(tmp_path) == before


def test_one_on_another_machine_is_refused_at_a_sign_of_life(
    tmp_path: Path, clock: Clock, strangers: Callable[[], None]
) -> None:
    claim = take_here(tmp_path)
    strangers()
    clock.at_sleep = lambda: overwrite(claim, beat=1)
    with pytest.raises(LeaseHeldError):
        take_here(tmp_path)
    assert clock.now < 1000 + LONG


def test_the_holder_gives_signs_of_life(tmp_path: Path) -> None:
    with held_lease(tmp_path, seconds=0.3) as held:
        while records(tmp_path)["000001.json"]["beat"] < 2:
            held.require()


@pytest.mark.parametrize("text", ["\x1b]0;title\x07", "[bold]x[/bold]", "a\nb", "x" * 10_000])
def test_what_a_record_says_does_nothing_to_a_terminal(tmp_path: Path, text: str) -> None:
    overwrite(take_here(tmp_path), host=text, user=text, command=text)
    with pytest.raises(LeaseHeldError) as refused:
        take_here(tmp_path)
    words = str(refused.value)
    assert not set(words.removeprefix(str(tmp_path))) & set("\x1b\x07\n[")
    assert len(words) < 1000


# ------------------------------------------------------------------------------------------------ who may take over


def test_a_released_lease_is_free_at_once(tmp_path: Path, clock: Clock) -> None:
    with only_driver(str(tmp_path), "train"):
        pass
    assert take_here(tmp_path).number == 2
    assert clock.now == 1000


def test_an_error_releases_it_too(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), only_driver(str(tmp_path), "train"):
        1 / 0  # noqa: B018
    assert records(tmp_path)["000001.json"]["released"] is True


def test_numbers_never_come_twice_and_only_the_last_record_stays(tmp_path: Path) -> None:
    for number in range(1, 4):
        with only_driver(str(tmp_path), "train"):
            assert list(records(tmp_path)) == [f"{number:06d}.json"]


@pytest.mark.slow
def test_a_killed_driver_on_this_machine_is_succeeded_at_once(tmp_path: Path, clock: Clock, said: list[str]) -> None:
    code = (
        f"import os; from data_pipeline.leases.lease import take; take({str(tmp_path)!r}, 'x'); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert killed.returncode == -9
    assert take_here(tmp_path, say=said.append).number == 2
    assert clock.now == 1000
    assert "is dead" in said[0]


def test_a_later_process_with_the_same_number_is_not_the_holder(tmp_path: Path, clock: Clock) -> None:
    overwrite(take_here(tmp_path), process_start=1)
    assert take_here(tmp_path).number == 2
    assert clock.now == 1000


def test_a_process_that_only_waits_to_be_reaped_is_dead(tmp_path: Path) -> None:
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    assert child.stdin is not None
    overwrite(take_here(tmp_path), pid=child.pid, process_start=lease_record._process_start(child.pid))
    with pytest.raises(LeaseHeldError):
        take_here(tmp_path)
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert take_here(tmp_path).number == 2
    child.wait()


@pytest.mark.parametrize("started", [0.0, 1e11, 1e300])
def test_a_silent_driver_of_another_machine_is_succeeded_after_its_seconds_by_the_watchers_clock(
    tmp_path: Path, clock: Clock, strangers: Callable[[], None], said: list[str], started: float
) -> None:
    overwrite(take_here(tmp_path, seconds=30), started=started)
    strangers()
    assert take_here(tmp_path, say=said.append).number == 2
    assert 30 <= clock.now - 1000 < 32
    assert "waiting up to 30 s" in said[0]


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"seconds": "a"}', b"null", b"[" * 10_000, b"\xff\xfe"])
def test_a_record_that_is_none_is_succeeded_after_a_while(tmp_path: Path, clock: Clock, data: bytes) -> None:
    storage.write_bytes(str(tmp_path / "lease" / "000007.json"), data)
    assert take_here(tmp_path).number == 8
    assert clock.now - 1000 >= lease_record.SECONDS


@pytest.mark.parametrize("seconds", [0, -5, 1e9, float("nan")])
def test_seconds_of_a_record_have_bounds(seconds: float) -> None:
    with pytest.raises(ValueError, match="length"):
        Holder.parse(Holder.here("train", 30).record() | {"seconds": seconds})


def test_other_files_in_the_folder_do_not_count(tmp_path: Path) -> None:
    for name in ("x.json", "12.json", "000099.json.bak", "-00005.json"):
        storage.write_bytes(str(tmp_path / "lease" / name), b"{}")
    assert take_here(tmp_path).number == 1


def test_a_driver_may_wait_for_the_end_of_the_other(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = take_here(tmp_path)
    monkeypatch.setenv(lease.WAIT_VARIABLE, "50")
    with pytest.raises(LeaseHeldError):
        take_here(tmp_path)
    assert 50 <= clock.now - 1000 < 52
    clock.at_sleep = lambda: overwrite(claim, released=True)
    assert take_here(tmp_path).number == 2


def test_a_wait_that_is_no_number_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(lease.WAIT_VARIABLE, "long")
    with pytest.raises(FoldtrainError, match="FOLDTRAIN_LEASE_WAIT is 'long'"):
        take_here(tmp_path)


def test_of_many_that_try_at_once_one_succeeds(tmp_path: Path) -> None:
    start, outcomes = threading.Barrier(20), list[str]()

    def try_it() -> None:
        start.wait()
        try:
            take_here(tmp_path)
            outcomes.append("took it")
        except LeaseHeldError:
            outcomes.append("refused")

    threads = [threading.Thread(target=try_it) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(outcomes) == {"took it": 1, "refused": 19}


# ---------------------------------------------------------------------------------------------------- who must end


def succeed(folder: Path, claim: Claim) -> Claim:
    """Take over from a holder as if it had been silent."""
    successor = Claim(claim.folder, claim.number + 1, Holder.here("another", 30))
    storage.write_json(str(folder / "lease" / f"{successor.number:06d}.json"), successor.holder.record())
    return successor


def test_a_holder_that_was_succeeded_is_told_by_whom_and_writes_nothing_more(tmp_path: Path) -> None:
    with held_lease(tmp_path) as held:
        held.confirm()
        succeed(tmp_path, held.claim)
        before = records(tmp_path)
        with pytest.raises(LeaseLostError, match=rf"another on .* has taken over.*pid {os.getpid()}"):
            held.confirm()
        with pytest.raises(LeaseLostError):
            held.require()
        held.release()
        assert records(tmp_path) == before


def test_a_holder_whose_record_another_one_replaced_has_lost_it(tmp_path: Path) -> None:
    with held_lease(tmp_path) as held:
        overwrite(held.claim, token="another")
        with pytest.raises(LeaseLostError):
            held.confirm()


def test_a_holder_whose_record_is_gone_has_lost_it(tmp_path: Path) -> None:
    with held_lease(tmp_path) as held:
        (tmp_path / "lease" / "000001.json").unlink()
        with pytest.raises(LeaseLostError, match="was removed"):
            held.confirm()


def test_the_end_of_a_driver_that_was_succeeded_is_an_error(tmp_path: Path) -> None:
    def drive() -> None:
        with only_driver(str(tmp_path), "train", seconds=0.3) as held:
            succeed(tmp_path, held.claim)
            held._thread.join()

    with pytest.raises(LeaseLostError):
        drive()


def test_the_beat_of_a_holder_that_was_succeeded_does_not_come_back(tmp_path: Path) -> None:
    with held_lease(tmp_path, seconds=0.3) as held:
        successor = succeed(tmp_path, held.claim)
        held._thread.join()
        overwrite(successor, beat=17)
        (tmp_path / "lease" / "000001.json").unlink()
    assert list(records(tmp_path)) == ["000002.json"]


def test_a_holder_asks_before_it_writes_once_it_was_silent_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held_lease(tmp_path) as held:
        succeed(tmp_path, held.claim)
        held.require()  # it was confirmed a moment ago
        later = lease.awake_and_asleep() + LONG
        monkeypatch.setattr(lease, "awake_and_asleep", lambda: later)
        with pytest.raises(LeaseLostError):
            held.require()


def test_storage_that_is_away_ends_no_holder_that_nobody_succeeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_folder: str) -> tuple[int, Holder | None]:
        raise StorageAwayError("no answer")

    with held_lease(tmp_path) as held:
        later = lease.awake_and_asleep() + LONG
        with monkeypatch.context() as patched:
            patched.setattr(lease, "_newest", away)
            patched.setattr(lease, "awake_and_asleep", lambda: later)
            with pytest.raises(StorageAwayError):
                held.require()
        assert held.lost is None
        held.require()
        held.confirm()


def test_who_works_for_the_holder_only_asks(tmp_path: Path) -> None:
    claim = take_here(tmp_path, seconds=0.3)
    watch = lease.Watch(claim)
    succeed(tmp_path, claim)
    watch._thread.join()
    assert records(tmp_path)["000001.json"]["beat"] == 0


# --------------------------------------------------------------------------------- storage that can do less, and S3


def test_storage_that_ignores_conditions_is_found_out_and_one_of_two_stays(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    def put(uri: str, data: bytes) -> bool:
        storage.write_bytes(uri, data)
        return True

    monkeypatch.setattr(storage, "create_bytes", put)
    rivals: list[Claim] = []

    def rival() -> None:
        clock.at_sleep = lambda: None
        rivals.append(Claim(str(tmp_path), 1, Holder.here("rival", LONG)))
        put(str(tmp_path / "lease" / "000001.json"), storage.canonical_json(rivals[0].holder.record()))

    clock.at_sleep = rival
    with pytest.raises(LeaseHeldError, match="rival"):
        take_here(tmp_path, say=said.append)
    assert "If-None-Match" in said[0]
    rivals[0].check()


def test_storage_that_keeps_conditions_is_not_complained_about(tmp_path: Path, said: list[str]) -> None:
    take_here(tmp_path, say=said.append)
    assert said == []


@pytest.mark.parametrize("blow", ["none", *(pytest.param(each, marks=pytest.mark.slow) for each in ("kill", "pause"))])
def test_drivers_that_start_at_once_lose_no_line_of_the_ledger(tmp_path: Path, blow: str) -> None:
    found = trial(str(tmp_path / "stage"), tmp_path / "diary", 4, blow, blow == "pause", 1.0)
    assert found["began"] >= 1 + (blow != "none")
    assert found["lost"] == (blow == "pause")
    assert not {words: count for words, count in found.items() if count and (words.isupper() or words == "error")}


@pytest.mark.xdist_group("s3")
def test_drivers_that_start_at_once_on_s3_lose_no_line_of_the_ledger(s3_uri: str, tmp_path: Path) -> None:
    found = trial(s3_uri, tmp_path / "diary", 4, "kill", False, 3.0)
    assert found["began"] >= 2
    assert not {words: count for words, count in found.items() if count and (words.isupper() or words == "error")}


def test_an_outage_is_said_once_and_the_lease_is_renewed_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    newest, calls, over = lease._newest, list[int](), threading.Event()

    def away(folder: str) -> tuple[int, Holder | None]:
        calls.append(1)
        if len(calls) <= 4:
            raise StorageAwayError("no answer")
        over.set()
        return newest(folder)

    claim = take_here(tmp_path, seconds=0.3)
    monkeypatch.setattr(lease, "_newest", away)
    held = Lease(claim)
    assert over.wait(30)
    held.close()
    assert records(tmp_path)["000001.json"]["beat"] >= 1
    assert caplog.text.count("cannot be renewed") == 1
