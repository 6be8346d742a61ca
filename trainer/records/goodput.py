"""Where the wall time of a stage went, from the records that it left. A pure function, so a dead run has one, too.

    start_up             from the first start to its first step: processes, data, network
    training             steps whose result counts
    data_wait            of those steps, waiting for batches
    checkpoint_blocked   of those steps, standing still for a checkpoint
    validation           between those steps, looking at held-out images
    lost_steps           steps that were done again: after the checkpoint from which a later start or a rollback went on
    restart_gap          from the last record of one start to the first step of the next
    shutdown             from the last step to the end: the last checkpoint, the export

The causes cover the time from the first start to the last record without a gap or an overlap. Each record of
metrics.jsonl is a window of steps; windows follow each other without a gap (meter.py). When a start goes on
from a checkpoint, the records after it are removed from metrics.jsonl, so what came before it is summed up in its
event: `accounted` are the seconds by cause up to `last_record`. Work after the last record of a start that died is not
on record: it counts as part of the restart gap.

A running stage keeps totals (`Account`), so that each record of it costs the same.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from trainer.records import columns
from trainer.records.columns import Column, Columns

CAUSES = (
    "start_up",
    "training",
    "data_wait",
    "checkpoint_blocked",
    "validation",
    "lost_steps",
    "restart_gap",
    "shutdown",
)
_OF_WINDOWS = ("lost_steps", "data_wait", "checkpoint_blocked", "validation", "training")
STARTS = frozenset({"start", "resume", "rollback"})
_ENDS = frozenset({"finish", "stop", "failure"})
_BEFORE = frozenset({"checkpoint_damaged", "settings_changed"})
"""What a start says before it has begun, so that nothing of the start before it lasted until then."""
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Goodput:
    """Seconds by cause, up to the last record."""

    seconds: Mapping[str, float]
    last_record: float
    """Unix time, seconds."""

    @property
    def wall(self) -> float:
        """Seconds in all."""
        return sum(self.seconds.values())

    @property
    def shares(self) -> dict[str, float]:
        """Of each cause, the share of the wall time; they sum to 1."""
        return {cause: self.seconds[cause] / self.wall if self.wall else 0.0 for cause in CAUSES}


class _Windows(NamedTuple):
    """Stretches of steps [W], one value each."""

    step: Column
    """The last step of each."""
    steps: Column
    """How many steps it has."""
    length: Column
    """Seconds from the one before to it."""
    waited: Column
    """Share of it that was waited for data, from 0 on."""
    blocked: Column
    """Seconds of it that a checkpoint took."""
    looked: Column
    """Seconds of it that validation took."""

    def seconds(self, back_to: int | None = None) -> dict[str, float]:
        """By cause; of one that the checkpoint of step `back_to` lies in, the part after it is lost."""
        lost = np.zeros_like(self.step) if back_to is None else np.clip(self.step - back_to, 0, self.steps)
        share = (self.steps - lost) / self.steps
        kept = self.length * share
        waited = kept * np.minimum(1.0, self.waited)
        blocked = np.minimum(kept - waited, self.blocked * share)
        looked = np.minimum(kept - waited - blocked, self.looked * share)
        causes = {
            "lost_steps": self.length - kept,
            "data_wait": waited,
            "checkpoint_blocked": blocked,
            "validation": looked,
            "training": kept - waited - blocked - looked,
        }
        return {cause: float(each.sum()) for cause, each in causes.items()}


class Account:
    """The account of a stage as it runs, from its events and windows in the order in which they come."""

    def __init__(self) -> None:
        self._start: Record | None = None
        self._last_event, self._has_ended = 0.0, False

    def event(self, event: Record) -> None:
        """Take a record of events.jsonl."""
        if "time" not in event or "step" not in event or event.get("event") in _BEFORE:
            return
        if event.get("event") in STARTS:
            self._begin(event)
        elif self._start is None:
            return
        self._last_event = max(self._last_event, float(event["time"]))
        self._has_ended = self._has_ended or event.get("event") in _ENDS

    def _begin(self, start: Record) -> None:
        self._start = start
        self._before = dict.fromkeys(CAUSES, 0.0) | dict(start.get("accounted") or {})
        self._began = float(start.get("last_record") or start.get("began") or start["time"])
        self._clock = self._last_event = float(start["time"])
        self._has_ended = False
        self._first: float | None = None
        self._totals = dict.fromkeys(_OF_WINDOWS, 0.0)
        self._kept = [array("d") for _ in _Windows._fields]  # what a rollback needs: 48 bytes a window

    def windows(self, numbers: Columns) -> None:
        """Take records of metrics.jsonl, one or many, in columns; those up to the step of the start do not count."""
        if self._start is None or "window_seconds" not in numbers:
            return
        counts = ~np.isnan(numbers["window_seconds"]) & (numbers["step"] > self._start["step"])
        if not counts.any():
            return
        time, seconds = numbers["time"][counts], numbers["window_seconds"][counts]
        if self._first is None:
            self._first = float(time[0] - seconds[0])
            self._clock = max(self._began, self._first)
        ends = np.maximum.accumulate(np.concatenate([[self._clock], time]))
        none = np.zeros_like(numbers["step"])
        waited, blocked, looked = (
            np.nan_to_num(numbers.get(name, none)[counts])
            for name in ("data_wait_share", "checkpoint_seconds", "validation_seconds")
        )
        steps = np.maximum(1.0, np.floor(numbers["window_steps"][counts]))
        found = _Windows(numbers["step"][counts], steps, np.diff(ends), waited, blocked, looked)
        for cause, each in found.seconds().items():
            self._totals[cause] += each
        for kept, column in zip(self._kept, found, strict=True):
            kept.frombytes(np.ascontiguousarray(column).tobytes())
        self._clock = float(ends[-1])

    def total(self, back_to: int | None = None) -> Goodput | None:
        """The account up to now; None if the stage has not begun.

        Args:
            back_to: step of the checkpoint from which the stage is about to go on: what came after it is lost.
        """
        if self._start is None:
            return None
        windows = _Windows(*(np.array(kept) for kept in self._kept)) if back_to is not None else None
        totals = self._totals if windows is None else windows.seconds(back_to)
        seconds = {cause: self._before[cause] + totals.get(cause, 0.0) for cause in self._before}
        clock = self._clock if self._first is not None else max(self._began, self._clock)
        first = clock if self._first is None else max(self._began, self._first)
        seconds["restart_gap" if self._start.get("last_record") else "start_up"] += first - self._began
        end = max(clock, self._last_event)
        seconds[self._tail(back_to)] += end - clock
        return Goodput(seconds, end)

    def _tail(self, back_to: int | None) -> str:
        """What the time after the last window was for."""
        assert self._start is not None
        if self._has_ended:
            return "shutdown"
        if self._first is None:
            return "restart_gap" if self._start.get("last_record") else "start_up"
        return "lost_steps" if back_to is not None and back_to <= self._kept[0][-1] else "training"


def goodput(
    events: Iterable[Record], metrics: Sequence[Record] | Columns, back_to: int | None = None
) -> Goodput | None:
    """The account of a stage; None if it has not begun.

    Args:
        events: of events.jsonl, in their order.
        metrics: of metrics.jsonl, in their order, as records or in columns.
        back_to: as for `Account.total`.
    """
    account = Account()
    for event in events:
        account.event(event)
    account.windows(metrics if isinstance(metrics, dict) else columns.from_records(metrics))
    return account.total(back_to)
