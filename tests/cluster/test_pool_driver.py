"""The driver of a pool, without Ray: a tick costs the same for any number of shards, and nothing is counted twice."""

from __future__ import annotations

import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cluster.pool.pool_progress import PoolProgress
from cluster.pool.ray_pool import PoolSize, Resized, WorkerNeeds
from cluster.pool.scale import write_scale
from cluster.pool.shard_ledger import InFlight, Ledger, Numbers, Report, to_ranges
from cluster.pool.shard_pool import PoolSettings, Run, Shards
from data_pipeline.errors import FoldtrainError

WORKERS = 4


class Pool:
    """What a driver sees of Ray: a ledger in this process, and workers that do as a test says whenever it waits."""

    def __init__(self, act: Callable[[Pool], bool], max_attempts: int = 2) -> None:
        self.ledger, self._act, self._max_attempts = Ledger(max_attempts), act, max_attempts
        self.passes: list[tuple[list[tuple[int, int]], int]] = []
        self.sizes: list[int] = []
        self.second_tries: dict[int, float] = {}

    def start_pass(self, numbers: Numbers, most: int) -> None:
        self.passes.append((to_ranges(numbers), most))
        self.ledger.start_pass(to_ranges(numbers))
        for worker in range(WORKERS):
            self.ledger.open(f"w{worker}", "host")

    def wait(self, _seconds: float) -> bool:
        return self._act(self)

    def restart_ledger(self) -> None:
        self.ledger = Ledger(self._max_attempts)

    def report(self, ledger: float, known: int) -> Report:
        return self.ledger.report(ledger, known)

    def fail(self, shard: InFlight, reason: str) -> None:
        self.ledger.fail(shard.number, shard.worker, shard.host, reason)

    def keep(self, report: Report) -> None:
        pass

    def resize(self, most: int, _report: Report) -> Resized:
        now = [self.passes[-1][1], *self.sizes][-1]
        self.sizes.append(most)
        gone = tuple(f"w{worker}" for worker in range(most, now))
        self.ledger.dismiss(gone)
        return Resized(max(0, most - now), gone)

    def try_again(self, number: int) -> None:
        self.second_tries[number] = 0.0

    def end_second_try(self, number: int) -> None:
        self.second_tries.pop(number, None)

    def end_pass(self) -> None:
        self.second_tries.clear()


@pytest.fixture
def drive(tmp_path: Path) -> Callable[..., Counter[int]]:
    """Drives a pool over so many shards; returns how often each was told to have been made."""

    def run(pool: Pool, count: int, patience: float = 300.0, require: Callable[[], object] = lambda: None) -> Any:
        shards = Shards(np.arange(count), lambda number: f"s{number}.tar", lambda _number: 10)
        settings = PoolSettings("test", str(tmp_path), PoolSize(1, WORKERS), WorkerNeeds(1, 0), 2, patience, require)
        made: Counter[int] = Counter()
        with PoolProgress("test", str(tmp_path), count, 10 * count, 0, 0) as progress:
            driver = Run(
                pool, shards, settings, progress, lambda number, _: made.update([number]), SimpleNamespace(lost=False)
            )
            driver.make_all()
        assert (progress.shards_done, progress.images_done) == (len(made), 10 * len(made))
        return made

    return run


def make_some(pool: Pool, count: int, worker: str = "w0") -> bool:
    """Has a worker make so many shards; whether there are no more."""
    for _ in range(count):
        number = pool.ledger.take(worker, "host")
        if number is None:
            return True
        pool.ledger.finish(number, worker, {"sha256": "a" * 64})
    return False


def test_all_shards_are_made_once_and_travel_as_one_range(drive: Callable[..., Counter[int]]) -> None:
    pool = Pool(lambda pool: make_some(pool, 7))
    assert drive(pool, 100) == Counter(range(100))
    assert pool.passes == [([(0, 100)], WORKERS)]


def calls_of_ticks(drive: Callable[..., Counter[int]], count: int) -> list[int]:
    """Calls of functions, Python's and C's, in each tick in which nothing was settled."""
    calls: list[int] = []
    seen = 0

    def profile(_frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal seen
        seen += event in {"call", "c_call"}

    def act(pool: Pool) -> bool:
        nonlocal seen
        calls.append(seen)
        seen = 0
        if len(calls) > 20:
            sys.setprofile(None)
            return make_some(pool, count + 1)
        for worker in range(WORKERS):
            if len(calls) == 1:
                pool.ledger.take(f"w{worker}", "host")
            pool.ledger.beat(f"w{worker}", worker, 1)
        sys.setprofile(profile)
        return False

    drive(Pool(act), count)
    return calls[2:-1]


def test_a_tick_costs_the_driver_and_the_ledger_the_same_for_any_number_of_shards(
    drive: Callable[..., Counter[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.pool.pool_progress._RECORD_SECONDS", 1e9)  # what is written at times is no tick
    monkeypatch.setattr("cluster.pool.shard_pool._CONTROL_SECONDS", 1e9)
    monkeypatch.setattr("cluster.progress.training_progress.ProgressLine.update", lambda *_: None)
    few, many = (min(calls_of_ticks(drive, count)) for count in (50, 100_000))
    assert abs(many - few) <= 10


def test_a_driver_keeps_a_few_bytes_of_a_shard(tmp_path: Path) -> None:
    count = 1_000_000
    shards = Shards(np.arange(count), str, lambda _number: 1)
    settings = PoolSettings("test", str(tmp_path), PoolSize(1, 2), WorkerNeeds(1, 0))
    tracemalloc.start()
    try:
        run = Run(Pool(lambda _: True), shards, settings, None, lambda *_: None, SimpleNamespace(lost=False))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert run
    assert kept < 4 * count


def test_what_failed_is_offered_again_in_another_pass_and_nothing_else(drive: Callable[..., Counter[int]]) -> None:
    def act(pool: Pool) -> bool:
        while (number := pool.ledger.take("w0", "host")) is not None:
            if number in {3, 4, 8} and len(pool.passes) == 1:
                pool.ledger.fail(number, "w0", "host", "a poor try")
            else:
                pool.ledger.finish(number, "w0", {})
        return True

    pool = Pool(act)
    assert drive(pool, 10) == Counter(range(10))
    assert [ranges for ranges, _ in pool.passes] == [[(0, 10)], [(3, 5), (8, 9)]]


def test_a_ledger_that_was_restarted_loses_and_doubles_nothing(drive: Callable[..., Counter[int]]) -> None:
    ticks = 0

    def act(pool: Pool) -> bool:
        nonlocal ticks
        ticks += 1
        if ticks == 4:
            pool.restart_ledger()
            return True  # its workers got nothing more
        return make_some(pool, 7)

    pool = Pool(act)
    assert drive(pool, 100) == Counter(range(100))
    assert [ranges for ranges, _ in pool.passes] == [[(0, 100)], [(21, 100)]]


def test_where_all_workers_hang_as_many_second_workers_begin_as_there_may_be(
    drive: Callable[..., Counter[int]],
) -> None:
    tried: list[int] = []

    def act(pool: Pool) -> bool:
        tried.extend(pool.second_tries)
        if not tried:
            for worker in range(WORKERS):
                pool.ledger.take(f"w{worker}", "host")
            return False
        make_some(pool, 1000, "another")
        for number in range(WORKERS):
            pool.ledger.finish(number, f"w{number}", {})
        return True

    assert drive(Pool(act), 1000, patience=-1.0) == Counter(range(1000))
    assert tried == list(range(WORKERS, 2 * WORKERS))


def test_a_worker_that_never_ends_its_turn_does_not_keep_what_failed_from_another_pass(
    drive: Callable[..., Counter[int]],
) -> None:
    """As one whose node is lost: all others are done, so Ray waits for it alone."""

    def act(pool: Pool) -> bool:
        while (number := pool.ledger.take("w0", "host")) is not None:
            if number == 3 and len(pool.passes) == 1:
                pool.ledger.fail(number, "w0", "host", "a poor try")
            else:
                pool.ledger.finish(number, "w0", {})
        return False

    pool = Pool(act)
    assert drive(pool, 10, patience=0.0) == Counter(range(10))
    assert [ranges for ranges, _ in pool.passes] == [[(0, 10)], [(3, 4)]]


def test_a_pool_takes_the_size_that_is_asked_for_in_the_middle_of_a_pass(
    drive: Callable[..., Counter[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("cluster.pool.shard_pool._CONTROL_SECONDS", 0.0)
    asked = [(2, 6), (1, 3)]

    def act(pool: Pool) -> bool:
        if asked:
            write_scale(str(tmp_path), *asked.pop(0))
            return False
        return make_some(pool, 7)

    pool = Pool(act)
    assert drive(pool, 100) == Counter(range(100))
    assert (len(pool.passes), pool.sizes) == (1, [6, 3])
    said = " ".join(capsys.readouterr().out.split())
    assert "scaling to 2 to 6 workers: 2 more join" in said
    assert "scaling to 1 to 3 workers: 3 leave after the shards in hand (w3, w4, w5); the others go on" in said


def test_no_more_workers_are_asked_for_than_there_are_shards_left(
    drive: Callable[..., Counter[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.pool.shard_pool._CONTROL_SECONDS", 0.0)

    def act(pool: Pool) -> bool:
        if not pool.sizes:
            write_scale(str(tmp_path), 1, 50)
        return make_some(pool, 1)

    pool = Pool(act)
    assert drive(pool, 8) == Counter(range(8))
    assert pool.sizes == [7]  # one shard was made before


def test_shards_that_fail_too_often_are_named_when_all_else_is_made(drive: Callable[..., Counter[int]]) -> None:
    def act(pool: Pool) -> bool:
        while (number := pool.ledger.take("w0", "host")) is not None:
            (pool.ledger.fail(number, "w0", "host", "poison") if number == 6 else pool.ledger.finish(number, "w0", {}))
        return True

    with pytest.raises(FoldtrainError, match=r"1 shard could not be made; .*\n  s6\.tar \(2 tries, .*: poison"):
        drive(Pool(act), 10)
