"""What a stage really did, from its metrics.jsonl and events.jsonl, to be put beside its plan."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipeline import storage
from data_pipeline.errors import UsageError
from trainer.records.columns import Column
from trainer.records.jsonl import read_records
from trainer.records.reading_columns import read_columns
from trainer.records.record_shapes import is_timed_event

_NUMBERS = ("step_seconds", "samples_per_second", "skipped_steps", "cuda_allocated_bytes", "memory_bytes")


@dataclass(frozen=True)
class Measured:
    """Medians over a stage's records, and the most memory."""

    step_seconds: float
    samples_per_second: float
    checkpoint_bytes: int | None
    checkpoint_seconds: float | None
    checkpoint_blocked_seconds: float | None
    checkpoint_seconds_between: float | None
    skipped_steps: int
    restarts: int
    device_bytes: int | None
    """The most that tensors took on the device of the rank that had most; None on a CPU."""
    resident_bytes: int | None
    """The most that a rank's process held in the host's memory, with Python and all libraries."""


def read_measured(folder: str) -> Measured:
    """Read the records of a stage's folder (<run>/generator, for instance).

    Raises:
        UsageError: if it has none.
    """
    found = read_columns(storage.join(folder, "metrics.jsonl"), lambda name: name in _NUMBERS)
    numbers = {name: found.get(name, np.full(len(found["step"]), np.nan)) for name in _NUMBERS}
    counts = (numbers["step_seconds"] > 0) & ~np.isnan(numbers["samples_per_second"])
    metrics = {name: column[counts] for name, column in numbers.items()}
    if not counts.any():
        raise UsageError(f"{folder}: no measurements there (metrics.jsonl is missing or empty): train the stage first")
    events = read_records(storage.join(folder, "events.jsonl"), is_timed_event)
    saved = [event for event in events if event.get("event") == "checkpoint"]
    times = [float(event["time"]) for event in saved]
    between = [later - earlier for earlier, later in itertools.pairwise(times)]
    # The first record holds what is done once: compilation, first reads.
    steady = slice(1, None) if counts.sum() > 1 else slice(None)
    return Measured(
        step_seconds=float(np.median(metrics["step_seconds"][steady])),
        samples_per_second=float(np.median(metrics["samples_per_second"][steady])),
        checkpoint_bytes=_last(saved, "bytes"),
        checkpoint_seconds=_median(saved, "seconds"),
        checkpoint_blocked_seconds=_median(saved, "blocked_seconds"),
        checkpoint_seconds_between=statistics.median(between) if between else None,
        skipped_steps=int(np.nan_to_num(metrics["skipped_steps"][-1])),
        restarts=sum(event.get("event") == "resume" for event in events),
        device_bytes=_most(metrics["cuda_allocated_bytes"]),
        resident_bytes=_most(metrics["memory_bytes"]),
    )


def _median(events: list[dict[str, Any]], name: str) -> float | None:
    values = [float(event[name]) for event in events if event.get(name) is not None]
    return statistics.median(values) if values else None


def _most(values: Column) -> int | None:
    return None if np.isnan(values).all() else int(np.nanmax(values))


def _last(events: list[dict[str, Any]], name: str) -> int | None:
    values = [int(event[name]) for event in events if event.get(name) is not None]
    return values[-1] if values else None
