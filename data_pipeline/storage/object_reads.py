"""Remote objects read by ranges: each range is tried again by itself, and is compared with the object's length."""

from __future__ import annotations

import contextlib
import errno
import io
from collections.abc import Callable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from data_pipeline.errors import NotAFileError, UsageError
from data_pipeline.storage.object_clients import is_s3
from data_pipeline.storage.outside_errors import service_code
from data_pipeline.storage.retries import FIRST_CONTACT_PATIENCE, ShortReadError, was_reached

PIECE_BYTES = 64 * 2**20
"""Larger objects are read in pieces of this size, so that a cut connection costs one piece."""
PIECES_AT_ONCE = 4
GAP_BYTES = 64 * 2**10
"""Bytes between two ranges of an object that are read along rather than asked for apart: about what a connection
transfers in the time that a request costs."""
RANGES_AT_ONCE = 8
ANSWER_SECONDS, SLOWEST_BYTES = 60.0, 100_000
"""A read that is not answered whole within so many seconds, and the time that its bytes take at so many a second, is
tried again: a server at a byte a second keeps each connection alive for ever."""
BUFFER_BYTES = 4 * 2**20
"""What an open file asks for at least."""

UNEXPLAINED = frozenset({301, 400, 403, 404})
"""Statuses with several reasons."""

ReadRange = Callable[[int, int], bytes]
"""Reads (start, length) of one object."""


def _is_async(fs: Any) -> bool:
    return bool(getattr(fs, "async_impl", False))


def time_limit(fs: Any, uri: str, read: int = 0) -> dict[str, float]:
    """What makes fsspec give a request up in time whose answer has so many bytes; a first one sooner."""
    if not _is_async(fs):
        return {}
    seconds = ANSWER_SECONDS + read / SLOWEST_BYTES
    return {"timeout": seconds if was_reached(uri) else min(seconds, FIRST_CONTACT_PATIENCE)}


def get_range(fs: Any, uri: str, start: int, length: int) -> bytes:
    """Bytes of an object from `start`; fewer than `length` only where the object ends.

    Raises:
        ShortReadError: if fewer arrived, although there are more.
    """
    try:
        data = bytes(fs.cat_file(uri, start=start, end=start + length, **time_limit(fs, uri, length)))
    except OSError as error:
        if error.errno != errno.EINVAL:  # HTTP 416: nothing of the range is inside the object
            raise
        data = b""
    if len(data) != length:
        there = min(max(0, object_size(fs, uri) - start), length)
        if len(data) != there:
            raise ShortReadError(f"{len(data)} of {there} bytes arrived from {start} on")
    return data


def object_size(fs: Any, uri: str) -> int:
    """Bytes of an object.

    Raises:
        FileNotFoundError: if there is none.
        UsageError: if the server does not say.
    """
    if is_s3(fs):
        if not fs.split_path(uri)[1]:
            raise NotAFileError(f"{uri} is a bucket, and a file is expected: name the file")
        return int(head_object(fs, uri)["ContentLength"])
    found = object_info(fs, uri).get("size") if _is_async(fs) else fs.size(uri)
    if found is None:
        raise UsageError(f"{uri}: the server does not say how long it is; copy it to a disk or a bucket first")
    return int(found)


def exists(fs: Any, uri: str) -> bool:
    """Whether there is an object or a folder.

    s3fs takes every failure at the level of a bucket (a dead server, wrong credentials) for "no", and so does
    fsspec's `exists` with every failure.
    """
    if not is_s3(fs):
        with contextlib.suppress(FileNotFoundError):
            object_info(fs, uri)
            return True
        return False
    bucket, key, _ = fs.split_path(uri.rstrip("/"))
    if key:
        with contextlib.suppress(FileNotFoundError):
            head_object(fs, uri, UNEXPLAINED - {404})  # what is missing is looked for as a folder below
            return True
    prefix = f"{key}/" if key else ""
    page = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1, **time_limit(fs, uri))
    return not key or bool(page.get("Contents") or page.get("CommonPrefixes"))


def object_info(fs: Any, uri: str) -> dict[str, Any]:
    """What a filesystem other than s3fs says of an object. fsspec's HTTP says of any failure that there is none."""
    try:
        return dict(fs.info(uri, **time_limit(fs, uri)))
    except FileNotFoundError as error:
        cause = error.__cause__
        if cause is None or isinstance(cause, FileNotFoundError) or getattr(cause, "status", 0) in {404, 410}:
            raise
        raise cause from None


def head_object(fs: Any, uri: str, unexplained: Set[int] = UNEXPLAINED) -> Any:
    """What the server says of an object. Its refusal of a HEAD has no body that says why, so a GET is sent after it."""
    bucket, key, _ = fs.split_path(uri)
    place = {"Bucket": bucket, "Key": key, **time_limit(fs, uri)}
    try:
        return fs.call_s3("head_object", **place)
    except OSError as error:
        answer = service_code(error)
        if answer is None or not answer[1].isdigit() or answer[0] not in unexplained:
            raise
        fs.call_s3("get_object", Range="bytes=0-0", **place)
        raise


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


def read_coalesced(read: ReadRange, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Ranges of one object, each as (start, length), in their order; neighbours are read together.

    What lies between two ranges is read along and thrown away, up to GAP_BYTES, and a request has at most PIECE_BYTES
    unless one range alone has more. Several requests are under way at once.
    """
    groups = coalesce(ranges)
    if len(groups) <= 1:
        found = [read(start, length) for start, length, _ in groups]
    else:
        with ThreadPoolExecutor(min(RANGES_AT_ONCE, len(groups)), thread_name_prefix="read") as pool:
            found = list(pool.map(lambda group: read(group[0], group[1]), groups))
    cut = [b""] * len(ranges)
    for (at, _, members), data in zip(groups, found, strict=True):
        for member in members:
            start, length = ranges[member]
            whole = start == at and length >= len(data)
            cut[member] = data if whole else data[start - at : start - at + length]
    return cut


def coalesce(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int, list[int]]]:
    """The requests that read some ranges: start and length of each, and which of the ranges it holds."""
    groups: list[tuple[int, int, list[int]]] = []
    for member in sorted(range(len(ranges)), key=lambda number: ranges[number]):
        start, length = ranges[member]
        if length <= 0 or start < 0:
            continue  # nothing is read of it
        if groups:
            at, size, members = groups[-1]
            end = max(at + size, start + length)
            if start <= at + size or (start - at - size <= GAP_BYTES and end - at <= PIECE_BYTES):
                groups[-1] = (at, end - at, [*members, member])
                continue
        groups.append((start, length, [member]))
    return groups


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
