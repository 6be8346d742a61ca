"""The ledger decides who makes a shard and when it is set aside; and it counts."""

from __future__ import annotations

import pickle
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.pool.shard_ledger import (
    ALIVE_SECONDS,
    PROCESS_DIED,
    Arrival,
    Ledger,
    Report,
    WorkerRate,
    slowest,
    to_ranges,
)
from data_pipeline.errors import UsageError


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
    """A pass over shards 4 and 5, with two workers that have opened."""
    ledger = Ledger(max_attempts=3, clock=clock)
    ledger.start_pass([(4, 6)])
    ledger.open("w1", "host1")
    ledger.open("w2", "host2")
    return ledger


def look(ledger: Ledger) -> Report:
    """A report to who has seen none."""
    return ledger.report(-1.0, 0)


@given(st.sets(st.integers(0, 60)))
def test_numbers_travel_as_ranges(numbers: set[int]) -> None:
    ranges = to_ranges(np.array(sorted(numbers), np.int64))
    assert [number for start, stop in ranges for number in range(start, stop)] == sorted(numbers)
    assert all(one[1] < other[0] for one, other in pairwise(ranges))


def test_each_shard_of_a_pass_is_given_out_once_in_order() -> None:
    ledger = Ledger(max_attempts=3)
    ledger.start_pass([(3, 5), (9, 10)])
    assert [ledger.take(f"w{n}", "host") for n in range(5)] == [3, 4, 9, None, None]
    assert look(ledger).waiting == 0


def test_a_shard_that_was_made_is_settled_with_what_its_worker_said(ledger: Ledger, clock: Clock) -> None:
    assert ledger.take("w1", "host1") == 4
    clock.now += 8
    ledger.finish(4, "w1", {"bad": 2})
    report = look(ledger)
    assert [(r.number, r.made, r.facts, r.host) for r in report.results] == [(4, True, {"bad": 2}, "host1")]
    assert (report.waiting, report.median_seconds, report.in_flight) == (1, 8, ())


def test_results_are_told_until_the_driver_has_seen_them(ledger: Ledger) -> None:
    for number in (ledger.take("w1", "host1"), ledger.take("w2", "host2")):
        ledger.finish(number, f"w{number - 3}", {})
    made = look(ledger).ledger
    assert [result.number for result in ledger.report(made, 0).results] == [4, 5]
    assert [result.number for result in ledger.report(made, 1).results] == [5]
    assert [result.number for result in ledger.report(made, 1).results] == [5]  # the last answer may have been lost
    assert ledger.report(made, 2).results == ()


def test_what_another_ledger_told_is_not_taken_for_its_own(ledger: Ledger) -> None:
    ledger.finish(ledger.take("w1", "host1"), "w1", {})
    assert [result.number for result in ledger.report(look(ledger).ledger - 1, 70).results] == [4]


def test_a_shard_is_set_aside_after_its_last_failure_with_every_reason(ledger: Ledger) -> None:
    for reason in ("one", "two", "three"):
        ledger.start_pass([(4, 5)])
        assert ledger.take("w1", "host1") == 4
        assert not look(ledger).results
        ledger.fail(4, "w1", "host1", reason)
        assert ledger.take("w1", "host1") is None  # the next pass gives it to another
    (result,) = look(ledger).results
    assert (result.made, result.reasons, result.host) == (False, ("one", "two", "three"), "host1")
    ledger.start_pass([(4, 5)])
    assert ledger.take("w2", "host2") is None


def test_a_death_is_tried_again_in_place_once_then_left_to_another_worker(ledger: Ledger) -> None:
    assert ledger.take("w1", "host1") == 4
    assert ledger.take("w1", "host1") == 4  # Ray started it again
    assert ledger.take("w1", "host1") == 5
    ledger.start_pass([(4, 5)])
    assert ledger.take("w3", "host1") == 4
    assert ledger.take("w3", "host1") is None
    (result,) = look(ledger).results
    assert (result.number, result.reasons) == (4, (PROCESS_DIED,) * 3)


def test_the_slower_of_two_workers_at_a_shard_hears_that_it_is_made(ledger: Ledger) -> None:
    assert ledger.take("w1", "host1") == 4
    assert ledger.begin(4, "w2", "host2")
    assert not ledger.beat("w1", 4, 1)
    ledger.finish(4, "w2", {})
    assert ledger.beat("w1", 4, 1)
    ledger.finish(4, "w1", {})
    assert len(look(ledger).results) == 1
    assert look(ledger).in_flight == ()


def test_a_shard_that_a_second_worker_has_begun_is_not_given_out_again(ledger: Ledger) -> None:
    assert ledger.begin(5, "second", "host2")
    assert look(ledger).waiting == 1
    assert [ledger.take("w1", "host1"), ledger.take("w2", "host2")] == [4, None]
    ledger.finish(5, "second", {})
    assert not ledger.begin(5, "third", "host1")
    assert look(ledger).waiting == 0


def test_after_an_error_that_concerns_every_shard_nothing_is_begun(ledger: Ledger) -> None:
    ledger.refuse("host1", "another tokenizer", UsageError("another tokenizer"))
    assert ledger.take("w1", "host1") is None
    assert not ledger.begin(4, "w2", "host2")
    assert look(ledger).waiting == 2
    ledger.start_pass([(4, 5)])
    assert ledger.take("w1", "host1") == 4


def test_a_worker_that_leaves_ends_its_shard_and_begins_no_other(ledger: Ledger) -> None:
    for worker in ("w1", "w2"):
        ledger.arrive(worker, "node")
        ledger.open(worker, "host")
    ledger.arrive("w3", "node")
    assert ledger.take("w1", "host1") == 4
    assert ledger.dismiss(["w1", "w3", "w4"]) == ["w1"]  # of the others one loads yet, and one waits for room
    ledger.finish(4, "w1", {})
    assert ledger.take("w1", "host1") is None
    assert ledger.take("w2", "host2") == 5
    assert [result.number for result in look(ledger).results] == [4]


def test_a_shard_whose_worker_dies_on_its_way_out_is_left_to_another(ledger: Ledger) -> None:
    assert ledger.take("w1", "host1") == 4
    ledger.dismiss(["w1"])
    assert ledger.take("w1", "host1") is None  # Ray started it again
    ledger.start_pass([(4, 5)])
    assert ledger.take("w2", "host2") == 4


def test_where_workers_are_is_told_and_whether_they_have_opened_what_they_need() -> None:
    ledger = Ledger(max_attempts=3)
    ledger.start_pass([(0, 3)])
    ledger.arrive("w1", "one")
    ledger.arrive("w2", "two")
    ledger.open("w1", "host1")
    assert look(ledger).arrived == {"w1": Arrival("one", True), "w2": Arrival("two", False)}
    ledger.arrive("w1", "three")  # Ray started it again, elsewhere
    assert look(ledger).arrived["w1"] == Arrival("three", False)
    ledger.start_pass([(0, 3)])
    assert look(ledger).arrived == {}


def test_a_worker_that_ray_starts_again_with_a_shard_in_hand_is_at_work_before_it_has_opened(ledger: Ledger) -> None:
    ledger.arrive("w1", "one")
    ledger.arrive("w2", "two")
    assert (ledger.take("w1", "host1"), ledger.take("w2", "host2")) == (4, 5)
    ledger.finish(5, "w2", {})
    for worker in ("w1", "w2"):  # both processes died
        ledger.arrive(worker, "three")
    assert look(ledger).arrived == {"w1": Arrival("three", True), "w2": Arrival("three", False)}
    assert ledger.dismiss(["w1", "w2"]) == ["w1"]
    assert ledger.take("w1", "host1") is None


def test_a_worker_that_dies_after_an_error_that_concerns_every_shard_does_not_begin_again(ledger: Ledger) -> None:
    assert ledger.take("w1", "host1") == 4
    ledger.refuse("host2", "another tokenizer", UsageError("another tokenizer"))
    assert ledger.take("w1", "host1") is None


def test_rates_are_those_of_the_last_minute(ledger: Ledger, clock: Clock) -> None:
    ledger.take("w1", "host1")
    clock.now += 10
    ledger.beat("w1", 4, 200)
    ledger.beat("w2", None, 100)
    report = look(ledger)
    assert report.images_per_second == 30
    assert {(w.host, w.images_per_second) for w in report.workers} == {("host1", 20), ("host2", 10)}
    assert [(shard.images, shard.advanced) for shard in report.in_flight] == [(200, clock.now)]
    clock.now += 120
    assert look(ledger).images_per_second == 0


def test_a_worker_that_is_not_heard_of_is_not_counted(ledger: Ledger, clock: Clock) -> None:
    clock.now += ALIVE_SECONDS - 1
    ledger.beat("w1", None, 0)
    clock.now += 2
    assert [worker.worker for worker in look(ledger).workers] == ["w1"]


def test_an_error_that_would_meet_every_worker_ends_the_pass(ledger: Ledger) -> None:
    ledger.refuse("host1", "away for a moment", None)
    assert look(ledger).fatal is None
    error = ValueError("wrong tokenizer")
    ledger.refuse("host1", "wrong tokenizer", error)
    report = look(ledger)
    assert (report.fatal, report.refused) == (error, 2)
    assert report.refusals == ("host1: away for a moment", "host1: wrong tokenizer")
    assert ledger.take("w2", "host2") is None


def test_a_report_costs_the_same_after_a_hundred_thousand_shards(clock: Clock) -> None:
    """It has what is new, and what is kept of a settled shard is its number."""
    ledger, sizes, known = Ledger(max_attempts=3, clock=clock), [], 0
    ledger.start_pass([(0, 100_000)])
    ledger.open("w1", "host1")
    made = look(ledger).ledger
    for number in range(100_000):
        clock.now += 1
        assert ledger.take("w1", "host1") == number
        ledger.beat("w1", number, 1)
        ledger.finish(number, "w1", {"sha256": "a" * 64})
        if number % 1000 == 10:
            report = ledger.report(made, known)
            known += len(report.results)
            sizes.append(len(pickle.dumps(ledger.report(made, known))))
    assert max(sizes) < 500
    assert len(pickle.dumps(ledger)) < 100_000 * 20


def test_the_slowest_worker_is_named_below_half_of_the_median() -> None:
    fast = [WorkerRate(str(n), "h", 10.0) for n in range(3)]
    assert slowest([*fast, WorkerRate("s", "h", 6.0)]) is None
    assert slowest([*fast, WorkerRate("s", "h", 4.0)]) == (WorkerRate("s", "h", 4.0), 10.0)
    assert slowest(fast[:1]) is None
