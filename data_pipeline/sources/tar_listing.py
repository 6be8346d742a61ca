"""Where the files of a tar lie, wherever the tar is, without reading what lies between its headers.

Every member is accounted for: it is a file, or a link to one; it is a folder; it is hidden, and counted; or it is an
error that names it. So is what lies behind the mark that ends the archive, at which most programs stop reading.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.sources.skipped import Skipped
from data_pipeline.sources.source import RawItem, check_length
from data_pipeline.sources.tar_members import Members
from data_pipeline.storage.local_listing import check_file
from data_pipeline.storage.tar import BLOCK, Member

WINDOW_BYTES = 16 * 2**10
"""Least bytes of a read: a header, and the small members (labels) that follow it."""
SMALL_GAP_BYTES = 192 * 2**10
"""A remote request costs the time of so many bytes or more. So a smaller gap between two headers is read with them."""
WIDE_WINDOW_BYTES = 2**20
"""Least bytes of a read after a small gap."""
MOST_HEADER_BYTES = 16 * 2**20
"""A longer header, or label, is damage: it would be held in memory."""

_COMPRESSED = {
    "gzip": b"\x1f\x8b",
    "bzip2": b"BZh",
    "xz": b"\xfd7zXZ\0",
    "zstd": b"\x28\xb5\x2f\xfd",
    "lz4": b"\x04\x22\x4d\x18",
    "compress": b"\x1f\x9d",
    "zip": b"PK\x03\x04",
    "7z": b"7z\xbc\xaf\x27\x1c",
}
"""How compressed files begin, by the program that unpacks them."""


@dataclass(frozen=True)
class RangeReader:
    """Reads images that are ranges of a file, or of several."""

    root: str
    """URI of the file, or of the folder that the parts lie in."""

    def read(self, item: RawItem) -> bytes:
        """The image's file, by one range read.

        Raises:
            UsageError: if the file of the source has become shorter since it was listed.
        """
        uri = storage.join(self.root, item.part) if item.part else self.root
        return check_length(uri, item, storage.read_range(uri, item.offset, item.size))


class Window(io.RawIOBase):
    """A stretch of a file, local or remote, as a file. It reads little at a time, so that seeking skips bytes.

    Remote bytes are skipped only where that saves time: between images of 110 KB a request for each header takes
    longer than to read on.

    Args:
        uri: the file.
        start: where the stretch begins in it.
        length: bytes of the stretch; None if it goes to the end.
        most: bytes of a read; more are an error. None if there is no limit but the stretch's length.

    Raises:
        FileNotFoundError: if there is no such file on this machine.
        UsageError: if it is none that can be read to an end, such as a FIFO.
    """

    def __init__(self, uri: str, start: int = 0, length: int | None = None, most: int | None = None) -> None:
        if not storage.is_remote(uri):
            check_file(storage.local_path(uri))
        self._uri, self._start, self._length, self._most = uri, start, length, most
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
        """The next `size` bytes, all that are left if it is negative; fewer at the end.

        Raises:
            ValueError: if that is more than the window may read at a time.
        """
        if size < 0 or size > WIDE_WINDOW_BYTES:
            left = max(0, self.length() - self._position)
            size = left if size < 0 else min(size, left)
        if self._most is not None and size > self._most:
            raise ValueError(f"a header or label of {size} bytes at byte {self._position}")
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


class TarListing(NamedTuple):
    """What a tar holds."""

    files: list[tuple[Member, bytes]]
    """Its files, with their offsets in the file that the tar lies in, and the contents of those that are wanted."""
    skipped: Skipped
    """Its members that are no part of the data."""


def list_tar(
    uri: str,
    start: int = 0,
    length: int | None = None,
    is_wanted: Callable[[str], bool] = lambda _name: False,
    where: str | None = None,
) -> TarListing:
    """List a tar. A link counts as the file that it leads to.

    Args:
        uri: the file.
        start: where the tar begins in it.
        length: bytes of the tar; None if it is all of the file.
        is_wanted: says by its name whether a member's contents are (b"" if they are not).
        where: what to call the tar in messages; its URI if that is None.

    Raises:
        FileNotFoundError: if there is no such file.
        tarfile.TarError: if it is no tar, or was cut or damaged, or goes on behind its end.
        UsageError: if it is compressed, or a member is none that can be read as a file; it names it.
    """
    window = Window(uri, start, length, MOST_HEADER_BYTES)
    members = Members(where or uri, f"{uri}@{start}")

    def read(member: Member) -> bytes:
        return _contents(window, member) if is_wanted(member.name) else b""

    try:
        with tarfile.open(fileobj=window, mode="r:", encoding="utf-8") as archive:
            for info in archive:
                members.add(info, read)
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep a kilobyte and more of each
            _check_end(window, archive.offset)
        files = members.files(read)
    except tarfile.TarError:
        _check_compression(where or uri, window)
        raise
    except (ValueError, ArithmeticError, LookupError, RecursionError) as error:  # tarfile's own, on hostile headers
        raise tarfile.ReadError(str(error) or type(error).__name__) from error
    if start:
        files = [(Member(member.name, start + member.offset, member.length), data) for member, data in files]
    return TarListing(files, members.skipped)


def _contents(window: Window, member: Member) -> bytes:
    window.seek(member.offset)
    data = window.read(member.length)
    if len(data) != member.length:
        raise tarfile.ReadError(f"it was cut within {member.name}")
    return data


def _check_end(window: Window, offset: int) -> None:
    """Any block that is no header ends a listing by tarfile, and so does a cut between two members.

    Behind the mark there are zeros, up to the size of a tape's record. Most programs do not look there.
    """
    window.seek(offset)
    if window.read(BLOCK) != bytes(BLOCK):
        raise tarfile.ReadError(f"it has no end-of-archive mark at byte {offset}, so it was cut or damaged there")
    while data := window.read(WINDOW_BYTES):
        rest = data.lstrip(b"\0")
        if rest:
            raise tarfile.ReadError(
                f"it holds more behind its end-of-archive mark, at byte {window.tell() - len(rest)}, as files do that "
                "were joined with cat: unpack it with tar --ignore-zeros and write it again"
            )
        if len(data) < WINDOW_BYTES:
            break


def _check_compression(where: str, window: Window) -> None:
    """Say of what is no tar that it is a compressed one, if it is."""
    window.seek(0)
    begin = window.read(BLOCK)
    for program, magic in _COMPRESSED.items():
        if begin.startswith(magic) and begin[257:262] != b"ustar":
            raise UsageError(
                f"{where} is compressed ({program}): images are read out of a tar by their places in it, so unpack it "
                "first"
            )
