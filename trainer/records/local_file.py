"""A file of records on a disk: one file that is appended to, and its numbers in columns beside it.

    metrics.columns/<from>-<to>-<CRC-32>    bytes of metrics.jsonl, in hex: which lines these columns were made of

Columns are made on a thread, 1 MiB of lines at a time. They are a copy: whoever reads them compares the CRC with the
lines, and reads the lines where it is another one or where there are none.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import threading
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from data_pipeline import storage
from data_pipeline.record_files.layout import columns_folder
from data_pipeline.storage.local_disk import disk_errors
from trainer.records import columns
from trainer.records.cutting import Cut, IsRecord, blocks_of_file, cut_back

_LOG = logging.getLogger(__name__)
_BLOCK_BYTES = 2**20
_NAME = re.compile(r"([0-9a-f]{12})-([0-9a-f]{12})-([0-9a-f]{8})")


class ColumnsOf(NamedTuple):
    """Which lines of a file some columns were made of."""

    start: int
    stop: int
    crc: int

    @property
    def name(self) -> str:
        """Of the file that holds them."""
        return f"{self.start:012x}-{self.stop:012x}-{self.crc:08x}"


def columns_there(uri: str) -> list[ColumnsOf]:
    """The columns that lie beside a file on a disk, in the order of their lines."""
    names = storage.list_names(columns_folder(uri))
    found = [_NAME.fullmatch(name) for name in names]
    return sorted(ColumnsOf(*(int(part, 16) for part in match.groups())) for match in found if match)


def _is_linked(path: Path) -> bool:
    """Whether a file has another name, or is a link to one."""
    with suppress(FileNotFoundError):
        status = path.lstat()
        return stat.S_ISLNK(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_nlink > 1)
    return False


class LocalFile:
    """Appends to a file of records on a disk.

    Args:
        uri: the file, which is made if there is none.
        in_columns: whether its numbers are kept in columns, too.
    """

    def __init__(self, uri: str, *, in_columns: bool) -> None:
        self._uri = uri
        self._maker = ThreadPoolExecutor(1, thread_name_prefix="columns") if in_columns else None
        self._making: Future[None] | None = None
        self._writing = threading.Lock()  # events come from any thread
        self._in_columns = max((each.stop for each in columns_there(uri)), default=0)
        self._open()

    def _open(self) -> None:
        path = storage.local_path(self._uri)
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if _is_linked(path):  # a run may come from anybody: what lies elsewhere is not appended to
                storage.write_bytes(self._uri, storage.read_bytes(self._uri) if path.exists() else b"")
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK  # nor is a pipe waited for
            self._file = os.fdopen(os.open(path, flags, 0o666), "ab")
            self._size = os.fstat(self._file.fileno()).st_size

    def write(self, line: bytes) -> None:
        """Append a line; it outlives this process."""
        with disk_errors(storage.local_path(self._uri)), self._writing:
            self._file.write(line)
            self._file.flush()
            self._size += len(line)
        is_idle = self._making is None or self._making.done()
        if self._maker and is_idle and self._size - self._in_columns >= _BLOCK_BYTES:
            self._making = self._maker.submit(self._make_columns, self._size)

    def sync(self) -> None:
        """Have all lines outlive this machine."""
        with disk_errors(storage.local_path(self._uri)):
            os.fsync(self._file.fileno())

    def cut(self, is_record: IsRecord, unwanted: IsRecord) -> Cut:
        """Take out unwanted records and what is none, at the end of the file."""
        self._wait()

        def read(start: int, stop: int) -> bytes:
            return storage.read_range(self._uri, start, stop - start)

        found = cut_back(blocks_of_file(read, self._size), is_record, unwanted)
        if found.is_changed:
            kept = b"".join(found.kept)
            stop = found.stop + len(kept)
            self._remove_columns(found.stop)
            if read(found.stop, stop) == kept:
                with disk_errors(storage.local_path(self._uri)):
                    self._file.truncate(stop)
                self._size = stop
            else:
                self._file.close()
                storage.write_bytes(self._uri, storage.read_range(self._uri, 0, found.stop) + kept)
                self._open()
        return found

    def replace(self, lines: bytes) -> None:
        """Put these lines in place of all that is there."""
        self._wait()
        self._remove_columns(0)
        self._file.close()
        storage.write_bytes(self._uri, lines)
        self._open()

    def close(self) -> None:
        """Finish the file."""
        self._file.close()
        if self._maker:
            self._maker.shutdown()

    def _wait(self) -> None:
        if self._making is not None:
            self._making.result()

    def _remove_columns(self, size: int) -> None:
        """Those of lines behind `size`, before the lines are gone."""
        there = columns_there(self._uri)
        for each in there:
            if each.stop > size:
                storage.remove_file(storage.join(columns_folder(self._uri), each.name))
        self._in_columns = max((each.stop for each in there if each.stop <= size), default=0)

    def _make_columns(self, stop: int) -> None:
        start = self._in_columns
        try:
            lines = storage.read_range(self._uri, start, stop - start)
            numbers = columns.encode(lines)
            if numbers:
                made_of = ColumnsOf(start, stop, zlib.crc32(lines))
                storage.write_bytes(storage.join(columns_folder(self._uri), made_of.name), numbers)
        except Exception as error:  # the lines have everything
            _LOG.warning("%s: its numbers are not kept in columns (%s); the report takes longer", self._uri, error)
        self._in_columns = stop
