"""Where the files of a tar lie, wherever the tar is, without reading what lies between its headers."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from data_pipeline import storage
from data_pipeline.sources.source import RawItem
from data_pipeline.tar import BLOCK, Member

WINDOW_BYTES = 16 * 2**10
"""Least bytes of a read: a header, and the small members (labels) that follow it."""
SMALL_GAP_BYTES = 192 * 2**10
"""A remote request costs the time of so many bytes or more. So a smaller gap between two headers is read with them."""
WIDE_WINDOW_BYTES = 2**20
"""Least bytes of a read after a small gap."""
LISTING_THREADS = 32
"""Parts of a source that are listed at a time. They wait for storage, not for the processor."""

_Part = TypeVar("_Part")
_Listing = TypeVar("_Listing")


@dataclass(frozen=True)
class RangeReader:
    """Reads images that are ranges of a file, or of several."""

    root: str
    """URI of the file, or of the folder that the parts lie in."""

    def read(self, item: RawItem) -> bytes:
        """The image's file, by one range read."""
        uri = storage.join(self.root, item.part) if item.part else self.root
        return storage.read_range(uri, item.offset, item.size)


class Window(io.RawIOBase):
    """A stretch of a file, local or remote, as a file. It reads little at a time, so that seeking skips bytes.

    Remote bytes are skipped only where that saves time: between images of 110 KB a request for each header takes
    longer than to read on.
    """

    def __init__(self, uri: str, start: int = 0, length: int | None = None) -> None:
        self._uri, self._start, self._length = uri, start, length
        self._position = 0
        self._held, self._held_from = b"", 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Bytes from the stretch's start."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move, without reading."""
        if whence == io.SEEK_END:
            offset += self.length()
        elif whence == io.SEEK_CUR:
            offset += self._position
        self._position = offset
        return offset

    def length(self) -> int:
        """Bytes of the stretch; asked of the storage where that is all of the file."""
        if self._length is None:
            self._length = storage.size(self._uri) - self._start
        return self._length

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes; fewer at the end."""
        if size < 0:
            size = max(0, self.length() - self._position)
        begin = self._position - self._held_from
        if begin < 0 or begin + size > len(self._held):
            gap = begin - len(self._held)
            is_small = storage.is_remote(self._uri) and self._held != b"" and -size < gap < SMALL_GAP_BYTES
            self._fetch(max(size, WIDE_WINDOW_BYTES if is_small else WINDOW_BYTES))
            begin = 0
        data = self._held[begin : begin + size]
        self._position += len(data)
        return data

    def _fetch(self, size: int) -> None:
        if self._length is not None:
            size = max(0, min(size, self._length - self._position))
        self._held = storage.read_range(self._uri, self._start + self._position, size)
        self._held_from = self._position


def list_tar(
    uri: str, start: int = 0, length: int | None = None, is_wanted: Callable[[str], bool] = lambda _name: False
) -> list[tuple[Member, bytes]]:
    """The files in a tar, with their offsets in the file at `uri`, and the contents of those that are wanted.

    Args:
        uri: the file.
        start: where the tar begins in it.
        length: bytes of the tar; None if it is all of the file.
        is_wanted: says by its name whether a member's contents are (b"" if they are not).

    Raises:
        FileNotFoundError: if there is no such file.
        tarfile.TarError: if it is no tar, or was cut.
    """
    window = Window(uri, start, length)
    found = []
    with tarfile.open(fileobj=window, mode="r:") as archive:
        for info in archive:
            if info.isfile():
                data = _contents(window, info) if is_wanted(info.name) else b""
                found.append((Member(info.name, start + info.offset_data, info.size), data))
        _check_end(window, archive.offset)
    return found


def _contents(window: Window, info: tarfile.TarInfo) -> bytes:
    window.seek(info.offset_data)
    data = window.read(info.size)
    if len(data) != info.size:
        raise tarfile.ReadError(f"it was cut within {info.name}")
    return data


def _check_end(window: Window, offset: int) -> None:
    """Any block that is no header ends a listing by tarfile, and so does a cut between two members."""
    window.seek(offset)
    if window.read(BLOCK) != bytes(BLOCK):
        raise tarfile.ReadError(f"it has no end-of-archive mark at byte {offset}, so it was cut or damaged there")


def in_parallel(function: Callable[[_Part], _Listing], parts: Iterable[_Part]) -> Iterator[_Listing]:
    """The listing of each part, in their order."""
    with ThreadPoolExecutor(LISTING_THREADS, thread_name_prefix="listing") as pool:
        yield from pool.map(function, parts)
