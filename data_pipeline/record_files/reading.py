"""One state of a file of records, on a disk or in object storage, as one run of bytes."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError
from data_pipeline.record_files.layout import Segment, decode, segments_folder
from data_pipeline.text.json_records import Lines, parse_lines

T = TypeVar("T")
_TRIES = 5
"""Lists of segments that are read at most, because what they named was put together meanwhile."""


class SupersededError(FileNotFoundError):
    """A segment is gone: the file names others by now, or it was removed by somebody else."""


@dataclass(frozen=True)
class State:
    """What a file held at one instant."""

    uri: str
    size: int
    """Bytes of all its lines."""
    segments: tuple[Segment, ...] = ()
    """The oldest lines, in their order; none on a disk."""
    newest: bytes | None = None
    """Lines after those; None on a disk, where they are read when they are asked for."""

    @property
    def sealed(self) -> int:
        """Bytes of all segments."""
        return sum(segment.bytes for segment in self.segments)

    def read(self, start: int, stop: int) -> bytes:
        """Bytes of the lines from `start` to `stop`; fewer where a file on a disk was cut meanwhile.

        Raises:
            SupersededError: if a segment is gone.
            CorruptShardError: if a segment that is read whole has other bytes than were put; it names it.
        """
        if self.newest is None:
            return storage.read_range(self.uri, start, stop - start)
        parts, at = [], 0
        for segment in self.segments:
            if at < stop and at + segment.bytes > start:
                parts.append(self._part(segment, max(0, start - at), min(segment.bytes, stop - at)))
            at += segment.bytes
        parts.append(self.newest[max(0, start - at) : max(0, stop - at)])
        return b"".join(parts)

    def text(self, segment: Segment) -> bytes:
        """All lines of a segment; errors as for `read`."""
        return self._part(segment, 0, segment.bytes)

    def segment_uri(self, segment: Segment) -> str:
        """Where a segment is."""
        return storage.join(segments_folder(self.uri), segment.name)

    def _part(self, segment: Segment, start: int, stop: int) -> bytes:
        uri = self.segment_uri(segment)
        try:
            data = storage.read_range(uri, start, stop - start)
        except FileNotFoundError:
            raise SupersededError(f"{uri} is missing, which {self.uri} names") from None
        is_whole = stop - start == segment.bytes
        if len(data) != stop - start or (is_whole and zlib.crc32(data) != segment.crc):
            raise CorruptShardError(
                f"{uri} has other bytes than were put there: restore it, or take it out of the first line of {self.uri}"
            )
        return data


def open_state(uri: str, size: int | None = None) -> State:
    """The state of a file now.

    Args:
        uri: the file.
        size: its length if that was just asked for, which saves a request.

    Raises:
        FileNotFoundError: if there is none.
        UsageError: if its list of segments is damaged.
    """
    if not storage.is_remote(uri):
        return State(uri, storage.size(uri))
    data = b""
    for number in range(_TRIES):
        data = storage.read_bytes(uri) if size is None or number else storage.read_range(uri, 0, size)
        if data.endswith(b"\n"):
            break  # else it grew between the question for its length and the read, or somebody cut it
    segments, newest = decode(uri, data)
    return State(uri, sum(segment.bytes for segment in segments) + len(newest), segments, newest)


def of_one_state(uri: str, use: Callable[[State], T], size: int | None = None) -> T:
    """What `use` makes of the state of a file; it is called again if segments were put together meanwhile.

    Args:
        uri: the file.
        use: reads what it needs.
        size: as for `open_state`.

    Raises:
        FileNotFoundError: if there is no file.
        CorruptShardError: if a segment stays away.
    """
    before: State | None = None
    for _ in range(_TRIES):
        state = open_state(uri, size if before is None else None)
        try:
            return use(state)
        except SupersededError as error:
            if state == before:
                raise CorruptShardError(f"{error}: restore it, or take it out of the first line of {uri}") from error
            before = state
    raise CorruptShardError(f"{uri}: its segments are put together faster than they can be read; try again")


def last_lines(state: State, most: int | None = None) -> bytes:
    """The last lines of a file, `most` bytes of them at most, without one that is cut at its beginning."""
    start = 0 if most is None else max(0, state.size - most)
    data = state.read(start, state.size)
    return data.partition(b"\n")[2] if start else data


def whole_lines(uri: str, is_record: Callable[[dict[str, Any]], bool] = lambda _record: True) -> Lines:
    """The records of a file, and which lines are none. Errors as for `of_one_state`."""
    return parse_lines(of_one_state(uri, lambda state: state.read(0, state.size)), is_record)
