"""The account of a stage's wall time, from its records alone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.records import columns
from trainer.records.goodput import CAUSES, Account, goodput
from trainer.records.jsonl import read_records
from trainer.records.run_directory import RunDirectory

Record = dict[str, Any]


def event(name: str, time: float, step: int, **details: Any) -> Record:
    return {"event": name, "time": time, "step": step} | details


def window(step: int, time: float, seconds: float, steps: int = 10, wait: float = 0.0, blocked: float = 0.0) -> Record:
    """A record of metrics.jsonl: `steps` steps up to `step`, in the `seconds` before `time`."""
    head = {"time": time, "step": step, "window_steps": steps, "window_seconds": seconds}
    return head | {"data_wait_share": wait, "checkpoint_seconds": blocked}


def seconds(events: list[Record], metrics: list[Record], back_to: int | None = None) -> dict[str, float]:
    """The causes that took any time."""
    found = goodput(events, metrics, back_to)
    assert found is not None
    return {cause: pytest.approx(value) for cause, value in found.seconds.items() if value}


def test_a_stage_that_has_not_begun_has_no_account() -> None:
    assert goodput([], []) is None


def test_a_run_that_was_never_interrupted() -> None:
    events = [event("start", 107, 0, began=100), event("finish", 140, 20)]
    metrics = [window(10, 120, 10, wait=0.2, blocked=1), window(20, 130, 10)]
    assert seconds(events, metrics) == {
        "start_up": 10,
        "training": 17,
        "data_wait": 2,
        "checkpoint_blocked": 1,
        "shutdown": 10,
    }


def test_a_look_at_held_out_images_is_no_training() -> None:
    events = [event("start", 107, 0, began=100), event("checkpoint", 130, 10)]
    looked = window(10, 120, 10, wait=0.2, blocked=1) | {"validation_seconds": 3.0}
    found = seconds(events, [looked, window(20, 130, 10)])
    assert found == {"start_up": 10, "training": 14, "data_wait": 2, "checkpoint_blocked": 1, "validation": 3}
    half = seconds(events, [looked], back_to=5)  # half of the window is done again
    assert (half["validation"], half["training"], half["lost_steps"]) == (1.5, 2.0, 15)


def test_a_dead_run_is_accounted_up_to_its_last_record() -> None:
    events = [event("start", 107, 0, began=100), event("checkpoint", 123, 10)]
    assert seconds(events, [window(10, 120, 10)]) == {"start_up": 10, "training": 13}


def test_a_run_that_died_before_its_first_record_spent_its_time_on_starting() -> None:
    assert seconds([event("start", 107, 0, began=100)], []) == {"start_up": 7}


def test_steps_after_the_checkpoint_that_a_start_goes_on_from_are_lost() -> None:
    events = [event("start", 107, 0, began=100)]
    metrics = [window(10, 120, 10), window(20, 130, 10, wait=0.5), window(30, 140, 10)]
    assert seconds(events, metrics, back_to=16) == {
        "start_up": 10,
        "training": 13,
        "data_wait": 3,
        "lost_steps": 14,
    }


def test_what_came_before_a_restart_is_taken_over_and_the_gap_between_is_counted() -> None:
    before = dict.fromkeys(CAUSES, 0.0) | {"start_up": 10.0, "training": 20.0, "lost_steps": 4.0}
    events = [
        event("start", 107, 0, began=100),
        event("resume", 160, 10, began=150, accounted=before, last_record=134.0),
    ]
    assert seconds(events, [window(10, 120, 10), window(20, 175, 10)]) == {
        "start_up": 10,
        "training": 30,
        "lost_steps": 4,
        "restart_gap": 31,
    }


@given(
    st.lists(st.tuples(st.floats(0.1, 50), st.lists(st.floats(0.1, 50), max_size=5), st.integers(0, 60)), min_size=1)
)
def test_the_causes_of_any_history_sum_to_its_wall_time(starts: list[tuple[float, list[float], int]]) -> None:
    events, metrics, now, step = list[Record](), list[Record](), 1000.0, 0
    for pause, lengths, lost in starts:
        before = goodput(events, metrics, back_to=step)
        summed = {"accounted": before.seconds, "last_record": before.last_record} if before else {}
        metrics = [record for record in metrics if record["step"] <= step]
        began, now = now, now + pause
        events.append(event("resume" if before else "start", now, step, began=began, **summed))
        reached = step
        for length in lengths:
            now, reached = now + length, reached + 10
            metrics.append(window(reached, now, length, wait=0.1, blocked=0.01))
        step = max(0, reached - lost)
    found = goodput(events, metrics)
    assert found is not None
    assert found.wall == pytest.approx(found.last_record - 1000.0)
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert min(found.seconds.values()) >= 0


def reference(events: list[Record], metrics: list[Record], back_to: int | None) -> dict[str, float]:
    """The account in plain Python, window by window, as the head of goodput.py tells it."""
    at = max(number for number, each in enumerate(events) if each["event"] in {"start", "resume", "rollback"})
    start = events[at]
    windows = [record for record in metrics if "window_seconds" in record and record["step"] > start["step"]]
    seconds = dict.fromkeys(CAUSES, 0.0) | start.get("accounted", {})
    began = start.get("last_record") or start["began"]
    clock = max(began, windows[0]["time"] - windows[0]["window_seconds"] if windows else start["time"])
    seconds["restart_gap" if "last_record" in start else "start_up"] += clock - began
    for each in windows:
        length = max(clock, each["time"]) - clock
        lost = 0 if back_to is None else min(each["window_steps"], max(0, each["step"] - back_to))
        kept = length * (1 - lost / each["window_steps"])
        waited = kept * min(1.0, each["data_wait_share"])
        blocked = min(kept - waited, each["checkpoint_seconds"] * (1 - lost / each["window_steps"]))
        parts = {"lost_steps": length - kept, "data_wait": waited, "checkpoint_blocked": blocked}
        for cause, value in (parts | {"training": kept - waited - blocked}).items():
            seconds[cause] += value
        clock += length
    end = max([clock, *(each["time"] for each in events[at:])])
    if any(each["event"] == "finish" for each in events[at:]):
        cause = "shutdown"
    elif not windows:
        cause = "restart_gap" if "last_record" in start else "start_up"
    else:
        cause = "lost_steps" if back_to is not None and back_to <= windows[-1]["step"] else "training"
    seconds[cause] += end - clock
    return seconds


WINDOWS = st.tuples(st.floats(-60, 30), st.floats(0.1, 50), st.integers(1, 9), st.floats(0, 1.5), st.floats(0, 9))


@given(
    st.lists(WINDOWS, max_size=12), st.integers(0, 70), st.sampled_from([None, "finish", "checkpoint"]), st.booleans()
)
def test_running_totals_are_the_account_from_scratch_and_that_of_plain_python(
    lengths: list[tuple[float, float, int, float, float]], back: int, last: str | None, is_resumed: bool
) -> None:
    now, step, account = 1000.0, 5, Account()
    more = {"accounted": {"training": 7.5}, "last_record": 960.0} if is_resumed else {}
    events = [event("start", 900, 0, began=880), event("checkpoint", 930, 4)][: None if is_resumed else 1]
    events += [event("resume" if is_resumed else "start", now, step, began=now - 20, **more)]
    metrics = [window(4, 950.0, 10.0)]
    for each in events:
        account.event(each)
    for pause, length, steps, wait, blocked in lengths:
        now, step = now + pause + length, step + steps
        metrics.append(window(step, now, length, steps, wait, blocked))
        account.windows(columns.from_records(metrics[-1:]))
        found = account.total()
        assert found is not None
        assert found.seconds == pytest.approx(reference(events, metrics, None))
    if last:
        events.append(event(last, now + 3, step))
        account.event(events[-1])
    for back_to in (None, max(0, step - back)):
        scratch, running = goodput(events, metrics, back_to), account.total(back_to)
        assert scratch is not None
        assert running is not None
        assert running.seconds == pytest.approx(scratch.seconds)
        assert running.seconds == pytest.approx(reference(events, metrics, back_to))
        assert running.last_record == scratch.last_record


def test_a_record_of_a_long_run_costs_what_one_of_a_short_run_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    seen = list[int]()
    taken = Account.windows
    monkeypatch.setattr(
        Account, "windows", lambda self, numbers: seen.append(len(numbers["step"])) or taken(self, numbers)
    )
    records = RunDirectory(str(tmp_path), "generator", {}, 0)
    for step in range(1, 50):
        records.metrics(window(step, time.time(), 1.0))
    records.close()
    assert seen == [0] + [1] * 49


def test_a_run_directory_accounts_for_all_starts_of_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for resume in (0, 10, 20):
        records = RunDirectory(str(tmp_path), "generator", {}, resume)
        for step in range(resume + 10, resume + 31, 10):
            last = read_records(str(tmp_path / "events.jsonl"))[-1]["time"]
            records.metrics(window(step, last + step, 1.0, wait=0.25) | {"steps": 50})
        records.close()
    happened = read_records(str(tmp_path / "events.jsonl"))
    assert [each["lost_steps"] for each in happened if each["event"] in {"start", "resume"}] == [0, 20, 20]
    assert [record["step"] for record in read_records(str(tmp_path / "metrics.jsonl"))] == [10, 20, 30, 40, 50]
    accounts = [each for each in happened if each["event"] == "goodput"]
    assert len(accounts) == 3
    for account in accounts:
        assert sum(account["shares"].values()) == pytest.approx(1, abs=1e-4)
    assert accounts[-1]["shares"]["lost_steps"] > 0


def test_a_restart_says_what_it_has_cost_and_between_which_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for resume, workers in ((0, 3), (10, 2)):
        records = RunDirectory(str(tmp_path), "generator", {}, resume, workers=workers)
        records.under_way(resume)
        records.metrics(window(resume + 14, time.time(), 1.0) | {"steps": 50})
        records.close()
    happened = read_records(str(tmp_path / "events.jsonl"))
    (restart,) = (each for each in happened if each["event"] == "restart")
    resumed = next(each for each in happened if each["event"] == "resume")
    assert (restart["workers_before"], restart["workers"], restart["lost_steps"]) == (3, 2, 4)
    assert restart["seconds"] == pytest.approx(restart["time"] - resumed["last_record"], abs=0.1)
