"""What happened in a training stage, as marks on the axis of its curves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cluster.monitor.stage_readers import event_of
from cluster.monitor.web import curves
from cluster.monitor.web.history import TrainingHistory

Record = Mapping[str, Any]
KINDS = {
    "start": "start",
    "resume": "restart",
    "rollback": "rollback",
    "spike": "spike",
    "skipped_step": "skipped step",
    "failure": "failure",
    "stop": "stop",
    "finish": "finish",
    "checkpoint": "checkpoint",
    "checkpoint_failed": "checkpoint failed",
    "checkpoint_damaged": "checkpoint failed",
    "settings_changed": "settings",
    "late": "late",
}
"""Events that are marked, and what the mark is called; a resume with other workers than before is `scaling`."""
MOST_OF_A_KIND = 300
"""Marks of a kind that are sent; of more, the last ones."""
_LONGEST = 300
"""Characters of a text."""


def kinds_of(events: Sequence[Record]) -> Iterator[tuple[str, Record]]:
    """Each event that is marked, with the kind of its mark."""
    workers: Any = None
    for event in events:
        name = event["event"]
        kind = KINDS.get(name)
        if name in {"start", "resume"}:
            now = event.get("workers")
            kind = "scaling" if workers is not None and now is not None and now != workers else kind
            workers = workers if now is None else now
        if name == "stop" and event.get("ending") == "paused":
            kind = None  # the resume behind it says with how many workers it went on
        if kind:
            yield kind, event


def counts(history: TrainingHistory) -> dict[str, int]:
    """How many marks there are of each kind."""
    return dict(Counter(kind for kind, _ in kinds_of(history.events.records)))


def marks(history: TrainingHistory, axis: curves.Axis) -> list[dict[str, Any]]:
    """The marks of a stage with their places on an axis, in their order."""
    found = list(kinds_of(history.events.records))
    left = Counter(kind for kind, _ in found)
    numbers, began = history.metrics.numbers, history.began
    shown = []
    for kind, event in found:
        left[kind] -= 1
        at = curves.place(numbers, axis, began, event["step"], event["time"])
        if left[kind] < MOST_OF_A_KIND and at is not None:
            text = event_of(history.name, dict(event)).text[:_LONGEST]
            shown.append({"kind": kind, "x": at, "step": event["step"], "time": event["time"], "text": text})
    return shown
