"""Remote objects read by ranges: each range is tried again by itself, and is compared with the object's length.

On S3 by obstore where it can (`object_buckets.through`), and else by the fsspec filesystem.
"""

from __future__ import annotations

import contextlib
import errno
import io
from collections.abc import Callable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from data_pipeline.errors import NotAFileError, UsageError
from data_pipeline.storage.object_buckets import Bucket, allowance, through
from data_pipeline.storage.object_clients import is_s3
from data_pipeline.storage.outside_errors import service_code
from data_pipeline.storage.pacing import pacer_of
from data_pipeline.storage.retries import FIRST_CONTACT_PATIENCE, ShortReadError, was_reached
from data_pipeline.storage.store_errors import TooLargeError

PIECE_BYTES = 64 * 2**20
"""Larger objects are read in pieces of this size, so that a cut connection costs one piece."""
PIECES_AT_ONCE = 4
FIRST_BYTES = 16 * 2**20
"""What is asked for of an object of unknown length: most are read whole by it, and a server that sends a byte at a time
has no longer than such a piece may take."""
GAP_BYTES = 64 * 2**10
"""Bytes between two ranges of an object that are read along rather than asked for apart: about what a connection
transfers in the time that a request costs."""
RANGES_AT_ONCE = 8
ANSWER_SECONDS, SLOWEST_BYTES = 60.0, 100_000
"""A read that is not answered whole within so many seconds, and the time that its bytes take at so many a second, is
tried again: a server at a byte a second keeps each connection alive for ever."""
BUFFER_BYTES = 4 * 2**20
"""What an open file asks for at least."""

_OUT_OF_RANGE = 416
UNEXPLAINED = frozenset({301, 400, 403, 404})
"""Statuses with several reasons."""

ReadRange = Callable[[int, int], bytes]
"""Reads (start, length) of one object."""
ReadTogether = Callable[[Sequence[tuple[int, int]]], "list[bytes] | None"]
"""Reads several of them, or gives None."""


def _is_async(fs: Any) -> bool:
    return bool(getattr(fs, "async_impl", False))


def seconds_for(read: int) -> float:
    """How long a request may take whose answer has so many bytes."""
    return ANSWER_SECONDS + read / SLOWEST_BYTES


def time_limit(fs: Any, uri: str, read: int = 0) -> dict[str, float]:
    """What makes fsspec give a request up in time whose answer has so many bytes; a first one sooner."""
    if not _is_async(fs):
        return {}
    seconds = seconds_for(read)
    return {"timeout": seconds if was_reached(uri) else min(seconds, FIRST_CONTACT_PATIENCE)}


def get_range(fs: Any, uri: str, start: int, length: int) -> bytes:
    """Bytes of an object from `start`; fewer than `length` only where the object ends.

    Raises:
        ShortReadError: if fewer arrived, although there are more.
    """
    return through(
        uri,
        fs,
        lambda bucket, key: _part(bucket, key, start, length)[0],
        lambda: _get_range(fs, uri, start, length),
    )


def _part(bucket: Bucket, key: str, start: int, length: int, most: int | None = None) -> tuple[bytes, int]:
    """A range of an object, and how many bytes the object has, in one request. obstore compares the lengths."""
    try:
        return bucket.read(key, start, length, seconds_for(allowance(length)), most)
    except OSError as error:
        if (service_code(error) or (0, ""))[0] != _OUT_OF_RANGE:
            raise
        return b"", start  # nothing of the range is inside the object


def _get_range(fs: Any, uri: str, start: int, length: int) -> bytes:
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


def read_whole(fs: Any, uri: str, most: int | None, read: ReadRange) -> bytes:
    """A whole object, in one request if it is no larger than FIRST_BYTES.

    Args:
        fs: the filesystem of the URI.
        uri: the object.
        most: bytes that it may have; None for no bound.
        read: reads a range of it, patiently.

    Raises:
        TooLargeError: if it has more; the answer to the request says so before its bytes are read.
    """

    def near(bucket: Bucket, key: str) -> bytes:
        data, size = _part(bucket, key, 0, FIRST_BYTES, most)
        return data if len(data) == size else data + read_pieces(read, size, len(data))

    def far() -> bytes:
        size = object_size(fs, uri)
        if most is not None and size > most:
            raise TooLargeError(size)
        return read_pieces(read, size)

    return through(uri, fs, near, far)


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

    def ask(head: Callable[[], Any], get: Callable[[], Any]) -> Any:
        try:
            return head()
        except OSError as error:
            if _status(error) not in unexplained:
                raise
            get()
            raise

    def near(store: Bucket, key: str) -> Any:
        seconds = seconds_for(allowance(1))
        return ask(lambda: store.head(key, seconds), lambda: store.read(key, 0, 1, seconds))

    def far() -> Any:
        return ask(
            lambda: fs.call_s3("head_object", **place), lambda: fs.call_s3("get_object", Range="bytes=0-0", **place)
        )

    return through(uri, fs, near, far)


def _status(error: OSError) -> int | None:
    """The status of an answer that says nothing more."""
    answer = service_code(error)
    if answer is not None and answer[1].isdigit():
        return answer[0]
    return 404 if answer is None and isinstance(error, FileNotFoundError) else None


def read_pieces(read: ReadRange, size: int, start: int = 0) -> bytes:
    """An object of `size` bytes from `start` on. Large objects are written once, so their pieces belong together."""
    starts = range(start, size, PIECE_BYTES)
    if len(starts) <= 1:
        data = read(start, size - start)
    else:
        with ThreadPoolExecutor(PIECES_AT_ONCE, thread_name_prefix="read") as pool:
            data = b"".join(pool.map(lambda at: read(at, min(PIECE_BYTES, size - at)), starts))
    if len(data) != size - start:  # it was replaced between the question for its size and the read
        raise ShortReadError(f"{len(data)} of {size - start} bytes arrived from {start} on")
    return data


def read_coalesced(
    read: ReadRange, ranges: Sequence[tuple[int, int]], together: ReadTogether = lambda _: None
) -> list[bytes]:
    """Ranges of one object, each as (start, length), in their order; neighbours are read together.

    What lies between two ranges is read along and thrown away, up to GAP_BYTES, and a request has at most PIECE_BYTES
    unless one range alone has more. Several requests are under way at once.

    Args:
        read: reads one range, patiently.
        ranges: what to read.
        together: reads several in one call, or gives None: then each is read by itself.
    """
    groups = coalesce(ranges)
    wanted = [(start, length) for start, length, _ in groups]
    found = together(wanted) if len(groups) > 1 else [read(start, length) for start, length in wanted]
    if found is None:
        with ThreadPoolExecutor(min(RANGES_AT_ONCE, len(groups)), thread_name_prefix="read") as pool:
            found = list(pool.map(lambda each: read(*each), wanted))
    cut = [b""] * len(ranges)
    for (at, _, members), data in zip(groups, found, strict=True):
        for member in members:
            start, length = ranges[member]
            whole = start == at and length >= len(data)
            cut[member] = data if whole else data[start - at : start - at + length]
    return cut


def read_together(fs: Any, uri: str, ranges: Sequence[tuple[int, int]]) -> list[bytes] | None:
    """Several ranges by one call of obstore; None if that cannot be, or if anything went wrong."""
    if pacer_of(uri, writes=False).rate is not None:
        return None

    def near(bucket: Bucket, key: str) -> list[bytes] | None:
        seconds = seconds_for(allowance(max(length for _, length in ranges)))
        try:
            return bucket.read_many(key, ranges, seconds)  # obstore compares the lengths
        except Exception:  # each by itself tells what is wrong
            return None

    return through(uri, fs, near, lambda: None)


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
