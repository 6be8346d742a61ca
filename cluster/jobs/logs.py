"""The output of a job in its run's folder: numbered segments of 256 KiB, of which the last one grows.

    log/000000.txt, log/000001.txt, ...

The writer puts the last segment again, whole, every few seconds in which something was printed, and begins the next one
when it is full. So a reader sees whole bytes of it at any time, follows it with a request or two, and a log has as many
objects as it has segments. A job that is started again begins a segment of its own: what was written stays.
"""

from __future__ import annotations

import codecs
import logging
import re
import threading

from data_pipeline import storage
from data_pipeline.errors import FoldtrainError
from data_pipeline.storage.retries import patience

SEGMENT_BYTES = 256 * 1024
MOST_SEGMENTS = 4096
"""Of a job: a GiB. What it prints after that is in its scheduler's log alone."""
MOST_WAITING = 4 * 2**20
"""Bytes that are kept for storage that is away. Of more, the oldest are left out, and the log says so."""
_FOLDER = "log"
_NAME = re.compile(r"(\d{6})\.txt")
_PATIENCE_SECONDS = 20.0
_LOG = logging.getLogger(__name__)


class LogWriter:
    """Takes what a job prints, from any thread, and stores it with each `flush`, from one.

    Args:
        folder: of the job.
    """

    def __init__(self, folder: str) -> None:
        self._folder = storage.join(folder, _FOLDER)
        self._waiting, self._lock = bytearray(), threading.Lock()
        self._left_out = 0
        self._storing = b""
        self._number: int | None = None
        self._segment = b""

    def write(self, data: bytes) -> None:
        """Add output; it is stored with the next `flush`."""
        with self._lock:
            self._waiting += data
            excess = len(self._waiting) - MOST_WAITING
            if excess > 0:
                del self._waiting[:excess]
                self._left_out += excess

    def flush(self) -> bool:
        """Store what was added. Returns whether all of it is stored; what is not waits for the next call."""
        try:
            with patience(_PATIENCE_SECONDS):
                self._store()  # what an earlier call could not
                self._storing = self._take()
                self._store()
        except (OSError, FoldtrainError) as error:
            _LOG.debug("the log cannot be stored now: %s", error)
            return False
        return True

    def _take(self) -> bytes:
        with self._lock:
            data, left_out = bytes(self._waiting), self._left_out
            self._waiting.clear()
            self._left_out = 0
        if left_out:
            return f"[{left_out:,} bytes of output are not here: storage was away]\n".encode() + data
        return data

    def _store(self) -> None:
        while self._storing:
            if self._number is None:
                self._number = 1 + max(numbers(self._folder), default=-1)
            if self._number >= MOST_SEGMENTS:
                self._storing = b""
                return
            piece = self._storing[: SEGMENT_BYTES - len(self._segment)]
            self._put(self._number, self._segment + piece)
            self._storing = self._storing[len(piece) :]
            if len(self._segment) == SEGMENT_BYTES:
                self._number, self._segment = self._number + 1, b""

    def _put(self, number: int, segment: bytes) -> None:
        if self._segment:
            storage.write_bytes(segment_uri(self._folder, number), segment)
        else:
            while not storage.create_bytes(segment_uri(self._folder, number), segment):
                number += 1  # that one is of another start of the same job, which still prints
        self._number, self._segment = number, segment


class LogReader:
    """A place in the output of a job.

    Args:
        folder: of the job.
    """

    def __init__(self, folder: str) -> None:
        self._folder = storage.join(folder, _FOLDER)
        self._number = self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def news(self) -> str:
        """What was printed since the last call, a segment at most; empty if nothing is new."""
        while self._number < MOST_SEGMENTS:
            data = self._read(self._number, self._offset)
            if data:
                self._offset += len(data)
                return self._decoder.decode(data)
            if data is None or not self._next():
                return ""
        return ""

    def _next(self) -> bool:
        """Go on to the next segment, if there is one."""
        if not self._read(self._number + 1, 0, 1):
            return False
        if self._read(self._number, self._offset, 1):  # written before the next one was begun
            return True
        self._number, self._offset = self._number + 1, 0
        return True

    def _read(self, number: int, offset: int, most: int = SEGMENT_BYTES) -> bytes | None:
        """None if there is no such segment."""
        if offset >= SEGMENT_BYTES:
            return b""
        try:
            return storage.read_range(segment_uri(self._folder, number), offset, min(most, SEGMENT_BYTES - offset))
        except FileNotFoundError:
            return None


def numbers(folder: str) -> list[int]:
    """Numbers of the segments in the folder of a log."""
    return [int(match[1]) for name in storage.list_names(folder) if (match := _NAME.fullmatch(name))]


def segment_uri(folder: str, number: int) -> str:
    """URI of a segment."""
    return storage.join(folder, f"{number:06d}.txt")


def tail(folder: str, most: int = SEGMENT_BYTES) -> str:
    """The end of a job's output: of its last segment, and of the one before where that is short."""
    log = storage.join(folder, _FOLDER)
    found = b""
    for number in sorted(numbers(log), reverse=True)[:2]:
        try:
            found = storage.read_range(segment_uri(log, number), 0, SEGMENT_BYTES) + found
        except FileNotFoundError:
            continue
        if len(found) >= most:
            break
    return found[-most:].decode(errors="replace")
