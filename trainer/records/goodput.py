"""Where the wall time of a stage went, from the records that it left. A pure function, so a dead run has one, too.

    start_up             from the first start to its first step: processes, data, network
    training             steps whose result counts
    data_wait            of those steps, waiting for batches
    checkpoint_blocked   of those steps, standing still for a checkpoint
    lost_steps           steps that were done again: after the checkpoint from which a later start or a rollback went on
    restart_gap          from the last record of one start to the first step of the next
    shutdown             from the last step to the end: the last checkpoint, the export

The causes cover the time from the first start to the last record without a gap or an overlap. Each record of
metrics.jsonl is a window of steps; windows follow each other without a gap (meter.py). When a start goes on
from a checkpoint, the records after it are removed from metrics.jsonl, so what came before it is summed up in its
event: `accounted` are the seconds by cause up to `last_record`. Work after the last record of a start that died is not
on record: it counts as part of the restart gap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CAUSES = ("start_up", "training", "data_wait", "checkpoint_blocked", "lost_steps", "restart_gap", "shutdown")
STARTS = frozenset({"start", "resume", "rollback"})
_ENDS = frozenset({"finish", "stop", "failure"})
_BEFORE = frozenset({"checkpoint_damaged", "settings_changed"})
"""What a start says before it has begun, so that nothing of the start before it lasted until then."""
_WINDOW = ("time", "step", "window_steps", "window_seconds", "data_wait_share", "checkpoint_seconds")
Record = Mapping[str, Any]


def slim(record: Record) -> dict[str, Any]:
    """What the account needs of a record of metrics.jsonl."""
    return {name: record[name] for name in _WINDOW if name in record}


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


def goodput(events: Sequence[Record], metrics: Sequence[Record], back_to: int | None = None) -> Goodput | None:
    """The account of a stage; None if it has not begun.

    Args:
        events: of events.jsonl, in their order.
        metrics: of metrics.jsonl, in their order.
        back_to: step of the checkpoint from which the stage is about to go on: what came after it is lost.
    """
    events = [event for event in events if "time" in event and "step" in event and event.get("event") not in _BEFORE]
    at = next((number for number in reversed(range(len(events))) if events[number].get("event") in STARTS), None)
    if at is None:
        return None
    start = events[at]
    seconds = dict.fromkeys(CAUSES, 0.0) | dict(start.get("accounted") or {})
    windows = [record for record in metrics if "window_seconds" in record and record["step"] > start["step"]]
    began = float(start.get("last_record") or start.get("began") or start["time"])
    first = windows[0]["time"] - windows[0]["window_seconds"] if windows else start["time"]
    clock = max(began, first)
    seconds["restart_gap" if start.get("last_record") else "start_up"] += clock - began
    for window in windows:
        end = max(clock, float(window["time"]))
        _add_window(seconds, window, end - clock, back_to)
        clock = end
    end = max([clock, *(float(event["time"]) for event in events[at:])])
    seconds[_tail(events[at:], windows, back_to)] += end - clock
    return Goodput(seconds, end)


def _add_window(seconds: dict[str, float], window: Record, length: float, back_to: int | None) -> None:
    """Account for a window of steps; of one that a checkpoint lies in, the part after it is lost."""
    steps = max(1, int(window["window_steps"]))
    lost = 0 if back_to is None else min(steps, max(0, int(window["step"]) - back_to))
    kept = length * (steps - lost) / steps
    seconds["lost_steps"] += length - kept
    waited = kept * min(1.0, window.get("data_wait_share") or 0.0)
    blocked = min(kept - waited, (window.get("checkpoint_seconds") or 0.0) * (steps - lost) / steps)
    seconds["data_wait"] += waited
    seconds["checkpoint_blocked"] += blocked
    seconds["training"] += kept - waited - blocked


def _tail(events: Sequence[Record], windows: Sequence[Record], back_to: int | None) -> str:
    """What the time after the last window was for."""
    if any(event.get("event") in _ENDS for event in events):
        return "shutdown"
    if not windows:
        return "restart_gap" if events[0].get("last_record") else "start_up"
    return "lost_steps" if back_to is not None and back_to <= windows[-1]["step"] else "training"
