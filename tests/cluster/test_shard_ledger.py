"""The ledger decides who makes a shard and when it is set aside; and it counts."""

from __future__ import annotations

import pytest

from cluster.pool.shard_ledger import ALIVE_SECONDS, PROCESS_DIED, Ledger, WorkerRate, slowest


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(clock: Clock) -> Ledger:
    """A pass over two shards, with two workers that have opened."""
    ledger = Ledger(max_attempts=3, clock=clock)
    ledger.start_pass(["a", "b"])
    ledger.open("w1", "host1")
    ledger.open("w2", "host2")
    return ledger


def test_a_shard_that_was_made_is_settled_with_what_its_worker_said(ledger: Ledger, clock: Clock) -> None:
    assert ledger.begin("a", "w1", "host1") == "make"
    clock.now += 8
    ledger.finish("a", "w1", {"bad": 2})
    report = ledger.report(0)
    assert [(r.name, r.made, r.facts, r.host) for r in report.results] == [("a", True, {"bad": 2}, "host1")]
    assert (report.waiting, report.median_seconds, report.in_flight) == (1, 8, ())
    assert ledger.report(1).results == ()


def test_a_shard_is_set_aside_after_its_last_failure_with_every_reason(ledger: Ledger) -> None:
    for reason in ("one", "two", "three"):
        assert ledger.begin("a", "w1", "host1") == "make"
        assert not ledger.report(0).results
        ledger.fail("a", "w1", "host1", reason)
    (result,) = ledger.report(0).results
    assert (result.made, result.reasons, result.host) == (False, ("one", "two", "three"), "host1")
    assert ledger.begin("a", "w2", "host2") == "drop"


def test_a_death_is_tried_again_in_place_once_then_left_to_another_worker(ledger: Ledger) -> None:
    assert ledger.begin("a", "w1", "host1") == "make"
    assert ledger.begin("a", "w1", "host1") == "make"  # Ray restarted it, and gave it its shard again
    assert ledger.begin("a", "w1", "host1") == "later"
    ledger.start_pass(["a"])
    assert ledger.begin("a", "w3", "host1") == "make"
    assert ledger.begin("a", "w3", "host1") == "drop"
    (result,) = ledger.report(0).results
    assert result.reasons == (PROCESS_DIED,) * 3


def test_the_slower_of_two_workers_at_a_shard_hears_that_it_is_made(ledger: Ledger) -> None:
    ledger.begin("a", "w1", "host1")
    ledger.begin("a", "w2", "host2")
    assert not ledger.beat("w1", "a", 1)
    ledger.finish("a", "w2", {})
    assert ledger.beat("w1", "a", 1)
    ledger.finish("a", "w1", {})
    assert len(ledger.report(0).results) == 1


def test_a_draining_pool_begins_nothing(ledger: Ledger) -> None:
    ledger.drain()
    assert ledger.begin("a", "w1", "host1") == "later"
    ledger.start_pass(["a"])
    assert ledger.begin("a", "w1", "host1") == "make"


def test_rates_are_those_of_the_last_minute(ledger: Ledger, clock: Clock) -> None:
    ledger.begin("a", "w1", "host1")
    clock.now += 10
    ledger.beat("w1", "a", 200)
    ledger.beat("w2", None, 100)
    report = ledger.report(0)
    assert report.images_per_second == 30
    assert {(w.host, w.images_per_second) for w in report.workers} == {("host1", 20), ("host2", 10)}
    assert [(shard.images, shard.advanced) for shard in report.in_flight] == [(200, clock.now)]
    clock.now += 120
    assert ledger.report(0).images_per_second == 0


def test_a_worker_that_is_not_heard_of_is_not_counted(ledger: Ledger, clock: Clock) -> None:
    clock.now += ALIVE_SECONDS - 1
    ledger.beat("w1", None, 0)
    clock.now += 2
    assert [worker.worker for worker in ledger.report(0).workers] == ["w1"]


def test_an_error_that_would_meet_every_worker_ends_the_pass(ledger: Ledger) -> None:
    ledger.refuse("host1", "away for a moment", None)
    assert ledger.report(0).fatal is None
    error = ValueError("wrong tokenizer")
    ledger.refuse("host1", "wrong tokenizer", error)
    assert ledger.report(0).fatal is error
    assert ledger.begin("a", "w2", "host2") == "later"


def test_the_slowest_worker_is_named_below_half_of_the_median() -> None:
    fast = [WorkerRate(str(n), "h", 10.0) for n in range(3)]
    assert slowest([*fast, WorkerRate("s", "h", 6.0)]) is None
    assert slowest([*fast, WorkerRate("s", "h", 4.0)]) == (WorkerRate("s", "h", 4.0), 10.0)
    assert slowest(fast[:1]) is None
