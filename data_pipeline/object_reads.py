"""Remote objects read by ranges: each range is tried again by itself, and is compared with the object's length."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from data_pipeline.storage_retries import ShortReadError

PIECE_BYTES = 64 * 2**20
"""Larger objects are read in pieces of this size, so that a cut connection costs one piece."""
PIECES_AT_ONCE = 4
BUFFER_BYTES = 4 * 2**20
"""What an open file asks for at least."""

ReadRange = Callable[[int, int], bytes]
"""Reads (start, length) of one object."""


def get_range(fs: Any, uri: str, start: int, length: int) -> bytes:
    """Bytes of an object from `start`; fewer than `length` only where the object ends.

    Raises:
        ShortReadError: if fewer arrived, although there are more.
    """
    try:
        data = bytes(fs.cat_file(uri, start=start, end=start + length))
    except OSError as error:
        if error.errno != errno.EINVAL:  # HTTP 416: nothing of the range is inside the object
            raise
        data = b""
    if len(data) != length:
        there = min(max(0, int(fs.size(uri)) - start), length)
        if len(data) != there:
            raise ShortReadError(f"{len(data)} of {there} bytes arrived from {start} on")
    return data


def read_pieces(read: ReadRange, size: int) -> bytes:
    """A whole object of `size` bytes. Large objects are written once, so their pieces belong together."""
    if size <= PIECE_BYTES:
        data = read(0, size)
    else:
        starts = range(0, size, PIECE_BYTES)
        with ThreadPoolExecutor(PIECES_AT_ONCE, thread_name_prefix="read") as pool:
            data = b"".join(pool.map(lambda start: read(start, min(PIECE_BYTES, size - start)), starts))
    if len(data) != size:  # it was replaced between the question for its size and the read
        raise ShortReadError(f"{len(data)} of {size} bytes arrived")
    return data


class RangeFile(io.RawIOBase):
    """An object as a seekable file; wrap it in io.BufferedReader."""

    def __init__(self, read: ReadRange, size: int) -> None:
        super().__init__()
        self._read, self._size, self._position = read, size, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move, as files do."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if origin + offset < 0:
            raise OSError(errno.EINVAL, "a seek to before the start of a file")
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from here on; returns how many bytes there were."""
        view = memoryview(buffer).cast("B")
        length = max(0, min(len(view), self._size - self._position))
        data = self._read(self._position, length)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)
