"""Append-only records at any URI. A slow or absent bucket never stops the writer."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

from data_pipeline import storage
from data_pipeline.errors import FoldtrainError
from data_pipeline.leases.lease import LeaseLostError
from data_pipeline.storage.local_disk import disk_errors
from data_pipeline.storage.retries import patience
from data_pipeline.text import json_records
from data_pipeline.text.json_records import Lines, finite, parse_lines

_LOG = logging.getLogger(__name__)
_PATIENCE = 5.0
"""Seconds for which an upload is tried again; later there is more to upload anyway."""
_UPLOAD_SHARE = 0.05
"""Most of its time that the thread spends on uploads of a file that has grown large."""


IsRecord = Callable[[dict[str, Any]], bool]
"""Says whether an object is a record of a file."""


def read_lines(uri: str, is_record: IsRecord = lambda _record: True) -> Lines:
    """The records of a file, and which lines are none; nothing if there is no file. A last line that is cut is none.

    Args:
        uri: the file.
        is_record: as trainer/records/record_shapes.py has them for the files of a stage.
    """
    try:
        return parse_lines(storage.read_bytes(uri), is_record)
    except FileNotFoundError:
        return Lines([], [])


def read_records(uri: str, is_record: IsRecord = lambda _record: True) -> list[dict[str, Any]]:
    """All records of a file, as `read_lines`; lines that are none are left out, and the log says how many."""
    lines = read_lines(uri, is_record)
    if lines.left_out:
        _LOG.warning("%s", left_out(uri, lines))
    return lines.records


def left_out(uri: str, lines: Lines) -> str:
    """How many lines of a file are no records of it, in words."""
    count = len(lines.left_out)
    return f"{uri}: {count} line{'s' if count > 1 else ''} left out, the first is line {lines.left_out[0]}: no record"


def read_last_records(uri: str, most: int = 65536, is_record: IsRecord = lambda _record: True) -> list[dict[str, Any]]:
    """The whole records in the last `most` bytes of a file, for whoever looks again and again; none without a file."""
    try:
        start = max(0, storage.size(uri) - most)
        data = storage.read_range(uri, start, most)
    except FileNotFoundError:
        return []
    return parse_lines(data.partition(b"\n")[2] if start else data, is_record).records


class JsonlWriter:
    """Writes one JSON object per line, continuing a file that is there.

    Locally each record is flushed at once. Object storage cannot append, so there a thread puts the whole file again,
    at most once in `interval` seconds and at the end; an upload that fails is logged and tried again. All uploads are
    that thread's, so they never overtake one another, and whoever waits for one waits for a bounded time.

    Args:
        uri: the file.
        keep: records that it begins with.
        interval: least seconds between two uploads.
        guard: called before each upload, which puts the whole file; if it raises LeaseLostError, nothing more goes up.
    """

    def __init__(
        self, uri: str, keep: list[dict[str, Any]], interval: float = 5.0, guard: Callable[[], object] = lambda: None
    ) -> None:
        self._uri, self._guard = uri, guard
        self._interval, self._pause = interval, 0.0
        self._lines = [self._encode(record) for record in keep]
        self._stored = -1  # lines that the storage is known to hold
        self._wanted = -1  # lines that somebody waits for
        self._version = 0  # of what was dropped
        self._closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        if storage.is_remote(uri):
            self._thread = threading.Thread(target=self._upload_loop, name=f"upload {uri}", daemon=True)
            self._thread.start()
        else:
            storage.write_bytes(uri, "".join(self._lines).encode())
            self._file = self._open()

    def _open(self) -> TextIO:
        path = storage.local_path(self._uri)
        with disk_errors(path):
            return path.open("a", encoding="utf-8")

    @staticmethod
    def _encode(record: dict[str, Any]) -> str:
        try:
            return json.dumps(record, allow_nan=False) + "\n"
        except ValueError:  # NaN is no JSON: a reader would leave the line out
            return json.dumps(finite(record), allow_nan=False) + "\n"

    def write(self, record: dict[str, Any]) -> None:
        """Append a record; returns at once."""
        line = self._encode(record)
        if self._thread is None:
            with disk_errors(storage.local_path(self._uri)):
                self._file.write(line)
                self._file.flush()
            return
        with self._changed:
            self._lines.append(line)

    def flush(self, seconds: float = _PATIENCE) -> bool:
        """Have all records outlive this process. If the storage does not take them in time, it is tried again later.

        Args:
            seconds: how long to wait for it at most.

        Returns:
            Whether they are stored.
        """
        if self._thread is None:
            with disk_errors(storage.local_path(self._uri)):
                os.fsync(self._file.fileno())
            return True
        with self._changed:
            wanted = self._wanted = len(self._lines)
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._stored >= wanted, seconds)

    def drop(self, unwanted: Callable[[dict[str, Any]], bool]) -> None:
        """Take records out of the file, which is replaced as a whole; returns at once where it is remote."""
        if self._thread is None:
            self._file.close()
            kept = [self._encode(record) for record in read_records(self._uri) if not unwanted(record)]
            storage.write_bytes(self._uri, "".join(kept).encode())
            self._file = self._open()
            return
        with self._changed:
            self._lines = [line for line in self._lines if not unwanted(json_records.parse(line.encode()))]
            self._version += 1
            self._stored = -1

    def close(self, seconds: float = 2 * _PATIENCE) -> None:
        """Write what is left, in a bounded time."""
        if self._thread is None:
            self._file.close()
            return
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(seconds)
        if self._stored < len(self._lines):
            _LOG.error("%s lacks the last %d records", self._uri, len(self._lines) - max(0, self._stored))

    def _upload_loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._is_urgent, self._pause)
                last, self._wanted = self._closed, -1
                text, lines, version = "".join(self._lines), len(self._lines), self._version
            if lines > self._stored and not self._upload(text, lines, version):
                return
            if last:
                return

    def _is_urgent(self) -> bool:
        return self._closed or self._wanted > self._stored

    def _upload(self, text: str, lines: int, version: int) -> bool:
        """Put the file. Returns whether this may be done again."""
        began = time.monotonic()
        try:
            with patience(_PATIENCE):
                self._guard()
                storage.write_bytes(self._uri, text.encode())
        except LeaseLostError as error:
            _LOG.warning("%s is written no more: %s", self._uri, error)
            return False
        except FoldtrainError as error:
            _LOG.error("%s; it is tried again later", error)
            return True
        except Exception:
            _LOG.exception("cannot write %s; it is tried again later", self._uri)
            return True
        finally:
            self._pause = max(self._interval, (time.monotonic() - began) / _UPLOAD_SHARE)
        with self._changed:
            if version == self._version:
                self._stored = lines
            self._changed.notify_all()
        return True
