"""Append-only records at any URI. A slow or absent bucket never stops the writer.

How they are stored, on a disk and in object storage: data_pipeline/record_files.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from data_pipeline import storage
from data_pipeline.errors import FoldtrainError
from data_pipeline.leases.lease import LeaseLostError
from data_pipeline.record_files.cursor import Cursor
from data_pipeline.record_files.reading import last_lines, of_one_state, whole_lines
from data_pipeline.storage.retries import patience
from data_pipeline.text import json_records
from data_pipeline.text.counted import counted
from data_pipeline.text.json_records import Lines, finite, parse_lines
from trainer.records.cutting import IsRecord
from trainer.records.local_file import LocalFile
from trainer.records.segmented_object import SegmentedObject

_LOG = logging.getLogger(__name__)
_PATIENCE = 5.0
"""Seconds for which an upload is tried again; later there is more to upload anyway."""
_UPLOAD_SHARE = 0.05
"""Most of its time that the thread spends on uploads where storage is slow."""


def read_lines(uri: str, is_record: IsRecord = lambda _record: True) -> Lines:
    """The records of a file, and which lines are none; nothing if there is no file. A last line that is cut is none.

    Args:
        uri: the file.
        is_record: as trainer/records/record_shapes.py has them for the files of a stage.
    """
    try:
        return whole_lines(uri, is_record)
    except FileNotFoundError:
        return Lines([], [])


def read_records(uri: str, is_record: IsRecord = lambda _record: True) -> list[dict[str, Any]]:
    """All records of a file, as `read_lines`; lines that are none are left out, and the log says how many."""
    lines = read_lines(uri, is_record)
    if lines.left_out:
        _LOG.warning("%s", left_out(uri, len(lines.left_out), f"line {lines.left_out[0]}"))
    return lines.records


def left_out(uri: str, count: int, first: str) -> str:
    """How many lines of a file are no records of it, and which is the first, in words."""
    return f"{uri}: {counted(count, 'line')} left out, the first is {first}: no record"


def read_last_records(uri: str, most: int = 65536, is_record: IsRecord = lambda _record: True) -> list[dict[str, Any]]:
    """The whole records in the last `most` bytes of a file; none without a file."""
    try:
        return parse_lines(of_one_state(uri, lambda state: last_lines(state, most)), is_record).records
    except FileNotFoundError:
        return []


class RecordCursor:
    """For whoever looks again and again: the records that are new since the last look.

    Args:
        uri: the file.
        most: bytes from its end that the first look reads at most; None for all.
        is_record: as for `read_lines`.
    """

    def __init__(self, uri: str, most: int | None = 65536, is_record: IsRecord = lambda _record: True) -> None:
        self._cursor, self._is_record = Cursor(uri, most), is_record

    def look(self) -> tuple[list[dict[str, Any]], bool]:
        """The new records, and whether those before them do not count any more."""
        news = self._cursor.news()
        return parse_lines(news.lines, self._is_record).records, news.is_other


class Continued(NamedTuple):
    """That a writer goes on with the file that is there."""

    is_record: IsRecord
    """What is none is taken out, at the end of the file."""
    unwanted: IsRecord = lambda _record: False
    """Records that are taken out, at the end of the file."""


class JsonlWriter:
    """Writes one JSON object per line, continuing a file that is there.

    Locally each record is flushed at once. Object storage cannot append, so there a thread puts the newest records
    again, at most once in `interval` seconds and at the end, and older ones once, in segments; an upload that fails is
    logged and tried again. All uploads are that thread's, so they never overtake one another, and whoever waits for
    one waits for a bounded time.

    Args:
        uri: the file.
        keep: what it begins with: these records, or those of the file that is there.
        interval: least seconds between two uploads.
        guard: called before what is stored is replaced or removed; if it raises LeaseLostError, nothing more goes up.
        in_columns: whether the numbers of old records are stored in columns, too (trainer/records/columns.py).
    """

    def __init__(
        self,
        uri: str,
        keep: Sequence[dict[str, Any]] | Continued,
        interval: float = 5.0,
        guard: Callable[[], object] = lambda: None,
        *,
        in_columns: bool = False,
    ) -> None:
        self._uri, self._guard = uri, guard
        self._interval, self._pause = interval, 0.0
        self.left_out = 0
        """Lines that were taken out at the end of the file that was there, since they were no records."""
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._lines = [] if isinstance(keep, Continued) else [self._encode(record) for record in keep]
        if not storage.is_remote(uri):
            self._file = LocalFile(uri, in_columns=in_columns)
            if isinstance(keep, Continued):
                self.left_out = self._file.cut(keep.is_record, keep.unwanted).left_out
            else:
                self._file.replace(b"".join(self._lines))
            return
        self._stored = SegmentedObject(uri, in_columns=in_columns)
        self._drops: list[IsRecord] = []  # segments still have them
        self._rows, self._rows_stored = len(self._lines), 0  # of this writer
        self._state, self._state_stored, self._state_wanted = 1, 0, 0  # counts changes of what is to be stored
        if isinstance(keep, Continued):
            self._take_over(keep)
        self._thread = threading.Thread(target=self._upload_loop, name=f"upload {uri}", daemon=True)
        self._thread.start()

    def _take_over(self, keep: Continued) -> None:
        found = self._stored.take_over(keep.is_record, keep.unwanted)
        if found:
            self._lines, cut = found
            self.left_out = cut.left_out
            self._state_stored = 0 if cut.is_changed else self._state

    @staticmethod
    def _encode(record: dict[str, Any]) -> bytes:
        try:
            return json.dumps(record, allow_nan=False).encode() + b"\n"
        except ValueError:  # NaN is no JSON: a reader would leave the line out
            return json.dumps(finite(record), allow_nan=False).encode() + b"\n"

    def write(self, record: dict[str, Any]) -> None:
        """Append a record; returns at once."""
        line = self._encode(record)
        if self._thread is None:
            self._file.write(line)
            return
        with self._changed:
            self._lines.append(line)
            self._rows += 1
            self._state += 1

    def flush(self, seconds: float = _PATIENCE) -> bool:
        """Have all records outlive this process. If the storage does not take them in time, it is tried again later.

        Args:
            seconds: how long to wait for it at most.

        Returns:
            Whether they are stored.
        """
        if self._thread is None:
            self._file.sync()
            return True
        with self._changed:
            wanted = self._state_wanted = self._state
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._state_stored >= wanted, seconds)

    def drop(self, unwanted: IsRecord) -> None:
        """Take records out at the end of the file; returns at once where it is remote."""
        if self._thread is None:
            self._file.cut(lambda _record: True, unwanted)
            return
        with self._changed:
            self._lines = _without(self._lines, [unwanted])
            self._drops.append(unwanted)
            self._state += 1

    def close(self, seconds: float = 2 * _PATIENCE) -> None:
        """Write what is left, in a bounded time."""
        if self._thread is None:
            self._file.close()
            return
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(seconds)
        if self._state_stored < self._state:
            _LOG.error("%s lacks the last %d records", self._uri, self._rows - self._rows_stored)

    def _upload_loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._is_urgent, self._pause)
                last, self._state_wanted = self._closed, 0
                is_new = self._state > self._state_stored
            if is_new and not self._upload(last):
                return
            if last:
                return

    def _is_urgent(self) -> bool:
        return self._closed or self._state_wanted > self._state_stored

    def _upload(self, last: bool) -> bool:
        """Store what is new. Returns whether this may be done again."""
        began = time.monotonic()
        try:
            with patience(_PATIENCE):
                is_stored = False
                while not is_stored:
                    self._cut_segments()
                    self._seal()
                    is_stored = self._publish()
                if not last:
                    self._clean()
        except LeaseLostError as error:
            _LOG.warning("%s is written no more: %s", self._uri, error)
            return False
        except FoldtrainError as error:
            _LOG.error("%s; it is tried again later", error)
        except Exception:
            _LOG.exception("cannot write %s; it is tried again later", self._uri)
        finally:
            self._pause = max(self._interval, (time.monotonic() - began) / _UPLOAD_SHARE)
        return True

    def _cut_segments(self) -> None:
        """Take out of the segments what was dropped; nothing is put in one before that."""
        with self._changed:
            drops = list(self._drops)
        if not drops:
            return
        kept = self._stored.cut(lambda record: any(unwanted(record) for unwanted in drops))
        with self._changed:
            self._drops = self._drops[len(drops) :]
            self._lines = _without(kept, self._drops) + self._lines

    def _seal(self) -> None:
        """Store the newest lines once and for all, if there are many."""
        with self._changed:
            lines, is_dropping = list(self._lines), bool(self._drops)
        segments = None if is_dropping else self._stored.sealed(lines)
        if segments is None:
            return
        with self._changed:
            if self._drops:
                self._stored.discard()
                return
            self._stored.adopt(segments)
            self._lines = self._lines[len(lines) :]

    def _publish(self) -> bool:
        """Returns whether it was put; not if records were dropped meanwhile, of which segments may hold some."""
        self._guard()
        with self._changed:
            if self._drops:
                return False
            lines, state, rows = b"".join(self._lines), self._state, self._rows
        self._stored.publish(lines)
        with self._changed:
            self._state_stored, self._rows_stored = state, rows
            self._changed.notify_all()
        return True

    def _clean(self) -> None:
        try:
            self._stored.clean()
        except FoldtrainError as error:
            _LOG.warning("%s: its old segments stay for now: %s", self._uri, error)


def _without(lines: Sequence[bytes], drops: Sequence[IsRecord]) -> list[bytes]:
    return [line for line in lines if not any(unwanted(json_records.parse(line)) for unwanted in drops)]
