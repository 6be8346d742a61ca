"""What was read of a training stage: all of its numbers and events, each byte of them once."""

from __future__ import annotations

from typing import Any

import numpy as np

from cluster.monitor.stage_readers import TrainingReader
from data_pipeline import storage
from trainer.records import columns
from trainer.records.columns import Columns
from trainer.records.jsonl import RecordCursor
from trainer.records.reading_columns import ColumnCursor
from trainer.records.record_shapes import is_timed_event
from trainer.report.data import in_order_of_steps

Record = dict[str, Any]
_NEWEST_ROWS = 50
"""Rows that are handed on as records, which say how a stage stands now."""
_LOOKS = ("validation_mse", "validation_loss")
MOST_EVENTS = 200_000
"""Of a stage that are kept, the last ones."""


class Metrics:
    """The numbers of metrics.jsonl, as a feed of a `TrainingReader` that keeps them all.

    Args:
        uri: the file.
    """

    def __init__(self, uri: str) -> None:
        self._cursor = ColumnCursor(uri)
        self.numbers: Columns = columns.joined([])
        """All rows in order of steps, one a step; NaN where a row has no number."""
        self.rows_read = 0
        """Rows that were ever read."""

    def look(self) -> tuple[list[Record], bool]:
        """Records of the newest rows, and whether those before do not count any more."""
        new, is_other = self._cursor.look()
        count = len(new["step"])
        self.rows_read += count
        if is_other or not len(self.numbers["step"]):
            self.numbers = in_order_of_steps(new)
        elif count:
            self.numbers = in_order_of_steps(columns.joined([self.numbers, new]))
        return _newest_records(new), is_other


class Events:
    """The records of events.jsonl, as a feed of a `TrainingReader` that keeps them all.

    Args:
        uri: the file.
    """

    def __init__(self, uri: str) -> None:
        self._cursor = RecordCursor(uri, None, is_timed_event)
        self.records: tuple[Record, ...] = ()
        """In their order."""

    def look(self) -> tuple[list[Record], bool]:
        """Those that are new, and whether the ones before do not count any more."""
        new, is_other = self._cursor.look()
        if is_other or new:
            self.records = ((() if is_other else self.records) + tuple(new))[-MOST_EVENTS:]
        return new, is_other


class TrainingHistory(TrainingReader):
    """A training stage with all that it has on record.

    Args:
        run: URI of the run.
        folder: of the stage in it.
    """

    def __init__(self, run: str, folder: str) -> None:
        self.folder = folder
        self.metrics = Metrics(storage.join(run, folder, "metrics.jsonl"))
        self.events = Events(storage.join(run, folder, "events.jsonl"))
        super().__init__(run, folder, metrics=self.metrics, events=self.events)

    @property
    def began(self) -> float | None:
        """Unix time at which it was first started; None if that is not on record."""
        first = next((event for event in self.events.records if event["event"] in {"start", "resume"}), None)
        if first is None:
            return None
        began = first.get("began")
        return float(began if isinstance(began, int | float) else first["time"])


def _newest_records(numbers: Columns) -> list[Record]:
    """The last rows, and before them the last one with a look at held-out data, as records of their numbers."""
    count = len(numbers["step"])
    rows = list(range(max(0, count - _NEWEST_ROWS), count))
    looks = [np.flatnonzero(~np.isnan(numbers[name]))[-1:] for name in _LOOKS if name in numbers]
    looked = max((int(each[0]) for each in looks if len(each)), default=count)
    rows = [looked, *rows] if looked < count - len(rows) else rows
    return [{name: float(column[row]) for name, column in numbers.items() if not np.isnan(column[row])} for row in rows]
