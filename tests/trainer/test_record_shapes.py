"""A line that anybody may have written is a record whose fields can be counted on, or it is none."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.records.goodput import goodput
from trainer.records.record_shapes import is_event, is_metrics, is_timed_event
from trainer.rollback.spikes import recorded

WINDOW = {"time": 5.0, "step": 1, "window_seconds": 2.0, "window_steps": 1, "loss": None, "note": "x"}
ROLLBACK = {"time": 1.0, "event": "spike", "step": 9, "action": "rollback", "back_to": 5, "skip": [6, 9]}
START = {"time": 1.0, "event": "start", "step": 0, "accounted": {"training": 1.5}}


@pytest.mark.parametrize("record", [WINDOW, {"step": 0}])
def test_metrics_are_known(record: dict[str, Any]) -> None:
    assert is_metrics(record)


@pytest.mark.parametrize(
    "change",
    [
        *({"step": bad} for bad in (None, "1", 1.5, True, -1, 2**60, [], {})),
        *({"time": bad} for bad in ("1", [], None, True)),
        {"window_steps": None},
        {"loss": "nan"},
        {"eta_seconds": {}},
    ],
)
def test_what_is_no_line_of_metrics_is_told(change: dict[str, Any]) -> None:
    assert not is_metrics(WINDOW | change)


@pytest.mark.parametrize("record", [START, ROLLBACK, {"event": "stop", "step": 3}])
def test_events_are_known(record: dict[str, Any]) -> None:
    assert is_event(record)
    assert is_timed_event(record) == ("time" in record)
    recorded([record])
    goodput([record], [WINDOW])


@pytest.mark.parametrize(
    "record",
    [
        *(START | change for change in ({"event": ["start"]}, {"step": "0"}, {"accounted": [1]}, {"began": "now"})),
        START | {"accounted": {"training": "long"}},
        *(ROLLBACK | change for change in ({"skip": [1]}, {"skip": 7}, {"skip": ["a", "b"]}, {"back_to": None})),
        {"step": 1},
    ],
)
def test_what_is_no_event_is_told(record: dict[str, Any]) -> None:
    assert not is_event(record)
