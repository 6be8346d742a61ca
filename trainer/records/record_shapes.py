"""What a line of a stage's metrics.jsonl and events.jsonl must hold, so that whoever reads it can count on it.

Anybody may have written a line. One that fails here is left out and counted (`jsonl.read_lines`); it stops nothing.
"""

from __future__ import annotations

from typing import Any

NUMBERS = frozenset(
    {
        *("time", "began", "last_record", "seconds", "blocked_seconds", "bytes", "back_to", "first", "last"),
        *("workers", "workers_before", "lost_steps", "step_seconds", "samples_per_second", "eta_seconds", "steps"),
        *("window_steps", "window_seconds", "data_wait_share", "checkpoint_seconds", "skipped_steps", "loss"),
        *(
            "passed_over_steps",
            "memory_bytes",
            "cuda_allocated_bytes",
            "goodput",
            "wall_seconds",
            "validation_seconds",
            "epoch",
            "crop_epoch",
        ),
    }
)
"""Fields that are numbers, or null, wherever they are."""
WINDOW = ("time", "window_steps", "window_seconds")
"""Numbers of which a record has all, if it has the last."""
MOST_STEP = 2**53
"""Steps are below it."""


def is_metrics(record: dict[str, Any]) -> bool:
    """Whether it is a line of metrics.jsonl: of a step, numbers where numbers belong, whole if it is a window."""
    is_whole = "window_seconds" not in record or all(_is_number(record.get(name)) for name in WINDOW)
    return _is_step(record.get("step")) and _has_numbers(record) and is_whole


def is_event(record: dict[str, Any]) -> bool:
    """Whether it is a line of events.jsonl: a name, a step, numbers where numbers belong."""
    if not isinstance(record.get("event"), str) or not _is_step(record.get("step")) or not _has_numbers(record):
        return False
    if record["event"] == "spike" and record.get("action") == "rollback":
        skip = record.get("skip")
        is_range = isinstance(skip, list) and len(skip) == 2 and all(map(_is_step, skip))
        return is_range and _is_step(record.get("back_to"))
    accounts = [record.get(name) or {} for name in ("accounted", "shares")]
    return all(isinstance(each, dict) and all(map(_is_number, each.values())) for each in accounts)


def is_timed_event(record: dict[str, Any]) -> bool:
    """Whether it is a line of events.jsonl that says when it was written."""
    return is_event(record) and _is_number(record.get("time"))


def _has_numbers(record: dict[str, Any]) -> bool:
    return all(record[name] is None or _is_number(record[name]) for name in NUMBERS & record.keys())


def _is_step(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_STEP


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
