"""What is told of a stage, and that each thing is told once."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.alerts.rules import Found, TrainingRules
from cluster.config.alerts import AlertConfig

ALL = {
    "on": ["stalled", "nan", "spike", "slow", "goodput"],
    "command": ["true"],
    "samples_per_second": 100,
    "goodput": 0.5,
    "goodput_after": 60,
    "records": 2,
}


def rules(**changes: Any) -> TrainingRules:
    return TrainingRules(AlertConfig.model_validate(ALL | changes), now=0.0)


def record(step: int, **more: Any) -> dict[str, Any]:
    """A healthy record, one every ten seconds."""
    return {"time": 10.0 * step, "step": step, "loss": 1.0, "samples_per_second": 200.0, "goodput": 0.9} | more


def kinds(found: list[Found]) -> list[str]:
    return [each.kind for each in found]


def told(mine: TrainingRules, *records: dict[str, Any]) -> list[Found]:
    return [each for one in records for each in mine.look([], [one], one["time"])]


def test_a_healthy_stage_has_nothing_to_tell() -> None:
    assert told(rules(), *(record(step) for step in range(50))) == []


def test_a_loss_that_is_no_number_is_told_once_and_again_after_it_was_one() -> None:
    losses = [1.0, None, None, 1.0, None]
    found = told(rules(), *(record(step, loss=loss) for step, loss in enumerate(losses)))
    assert found == [Found("nan", "the loss is not finite", 1), Found("nan", "the loss is not finite", 4)]


def test_gradients_that_are_not_finite_are_told_at_ten_in_a_row_since_a_loss_scale_takes_some() -> None:
    mine = rules()
    skips = [{"time": float(n), "event": "skipped_step", "step": n, "in_a_row": n} for n in range(1, 15)]
    found = [each for skip in skips for each in mine.look([skip], [], 1.0)]
    assert found == [Found("nan", "gradients of 10 steps in a row are not finite", 10)]


def test_each_spike_is_told_with_what_is_done_about_it() -> None:
    spike = {"time": 1.0, "event": "spike", "step": 40, "loss": 9.5, "usual": 1.25, "action": "none"}
    back = spike | {"time": 2.0, "step": 60, "action": "rollback", "back_to": 30, "skip": [59, 61]}
    found = rules().look([spike, back], [], 1.0)
    assert found == [
        Found("spike", "the loss spiked to 9.5, usual is 1.25", 40),
        Found("spike", "the loss spiked to 9.5, usual is 1.25; it goes back to step 30", 60),
    ]


def test_a_spike_to_no_number_is_told_as_that() -> None:
    spike = {"time": 1.0, "event": "spike", "step": 40, "loss": None, "usual": 1.25, "action": "none"}
    assert kinds(rules().look([spike], [], 1.0)) == ["nan"]


def test_what_is_read_again_is_not_told_again() -> None:
    mine = rules()
    spike = {"time": 1.0, "event": "spike", "step": 40, "loss": 9.5, "usual": None, "action": "none"}
    assert kinds(mine.look([spike], [record(1, loss=None)], 1.0)) == ["spike", "nan"]
    assert mine.look([], [record(2)], 2.0) == []
    assert mine.look([spike], [record(1, loss=None)], 3.0) == []


DISTANCE = "validation_frechet_distance_500"


@pytest.mark.parametrize(("mode", "sign"), [("min", 1), ("max", -1)])
def test_a_number_that_is_worse_than_its_best_by_a_share_is_told_once_and_again_after_it_was_better(
    mode: str, sign: int
) -> None:
    values = [20.0, 10.0, None, 10.9, 11.1, 12.0, 10.5, 11.5]
    records = [record(step, **({} if each is None else {DISTANCE: sign * each})) for step, each in enumerate(values)]
    found = told(rules(on=[*ALL["on"], "worse"], metric=DISTANCE, mode=mode), *records)
    assert [(each.kind, each.step) for each in found] == [("worse", 4), ("worse", 7)]
    assert found[0].text == f"{DISTANCE} is {sign * 11.1:.4g}, and was {sign * 10:.4g} at its best"


def test_how_much_worse_a_number_has_to_be_is_set() -> None:
    mine = rules(on=[*ALL["on"], "worse"], metric=DISTANCE, worse_by=1.0)
    assert told(mine, record(1, **{DISTANCE: 10.0}), record(2, **{DISTANCE: 20.0})) == []
    assert kinds(told(mine, record(3, **{DISTANCE: 20.1}))) == ["worse"]


def test_too_few_samples_a_second_are_told_after_some_records_in_a_row() -> None:
    rates = [200, 90, 200, 90, 80, 70, 200, 60, 60]
    found = told(rules(), *(record(step, samples_per_second=float(rate)) for step, rate in enumerate(rates)))
    assert found == [
        Found("slow", "80 samples/s, less than 100", 4),
        Found("slow", "60 samples/s, less than 100", 8),
    ]


def test_goodput_is_judged_some_time_after_the_start() -> None:
    found = told(rules(), *(record(step, goodput=0.25) for step in range(1, 12)))
    assert found == [Found("goodput", "25% of the time was training, less than 50%", 8)]  # records 7 and 8: 60 s passed


def test_a_further_start_has_its_time_anew() -> None:
    mine = rules()
    assert told(mine, *(record(step, goodput=0.25) for step in range(1, 7))) == []
    mine.look([{"time": 65.0, "event": "resume", "step": 6}], [], 65.0)
    assert told(mine, *(record(step, goodput=0.25) for step in range(7, 13))) == []
    assert kinds(told(mine, *(record(step, goodput=0.25) for step in (13, 14)))) == ["goodput"]


def test_silence_is_told_once_and_again_after_a_record() -> None:
    mine = rules(stalled_seconds=30)
    mine.look([], [record(1)], 10.0)
    assert kinds(mine.look([], [], 40.0)) == []
    assert mine.look([], [], 41.0) == [Found("stalled", "no record for 31s", 1)]
    assert mine.look([], [], 500.0) == []
    assert mine.look([], [record(2)], 510.0) == []
    assert kinds(mine.look([], [], 541.0)) == ["stalled"]


@pytest.mark.parametrize(("gap", "quiet"), [(1, 300), (60, 600)])
def test_without_a_number_it_is_five_minutes_or_ten_times_the_usual_gap(gap: int, quiet: int) -> None:
    mine = rules()
    for step in range(5):
        mine.look([], [record(step, time=float(step * gap))], float(step * gap))
    last = 4.0 * gap
    assert mine.look([], [], last + quiet) == []
    assert kinds(mine.look([], [], last + quiet + 1)) == ["stalled"]


def test_a_start_has_half_an_hour_until_its_first_record() -> None:
    mine = rules(stalled_seconds=30)
    assert mine.look([], [], 1800.0) == []
    assert kinds(mine.look([], [], 1801.0)) == ["stalled"]


@pytest.mark.parametrize(("event", "expected"), [("finish", []), ("stop", []), ("failure", ["stalled"])])
def test_what_has_ended_does_not_stall_and_what_failed_has_to_come_back(event: str, expected: list[str]) -> None:
    mine = rules(stalled_seconds=30)
    mine.look([{"time": 11.0, "event": event, "step": 1}], [record(1)], 11.0)
    assert kinds(mine.look([], [], 1000.0)) == expected


def test_only_what_is_asked_for_is_told() -> None:
    assert told(rules(on=["slow"], goodput=None), record(1, loss=None)) == []
