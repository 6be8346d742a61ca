"""A file of records in object storage: the newest lines in one object, older ones in segments.

data_pipeline/record_files says how, and why it may be killed at any instant. One thread uses it, that of `JsonlWriter`:
nothing here is locked.
"""

from __future__ import annotations

import logging
import secrets
import zlib
from collections.abc import Iterator, Sequence

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError
from data_pipeline.record_files.layout import LARGEST_BYTES, MIDDLE_BYTES, SEAL_BYTES, Segment, encode, segments_folder
from data_pipeline.record_files.reading import State, of_one_state
from trainer.records import columns
from trainer.records.cutting import Block, Cut, IsRecord, cut_back

_LOG = logging.getLogger(__name__)
COLUMNS = ".columns"
"""Behind the name of a segment: its numbers in columns."""


class SegmentedObject:
    """The stored side of a file of records.

    Args:
        uri: the file.
        in_columns: whether the numbers of its segments are stored in columns, too.
    """

    def __init__(self, uri: str, *, in_columns: bool) -> None:
        self._uri, self._in_columns = uri, in_columns
        self._segments: list[Segment] = []
        self._made: list[str] = []  # files of segments, since these were last adopted
        self._superseded: list[str] = []  # of which the stored list may name some, and the next one none
        self._resting: list[str] = []  # which the stored list does not name
        self._removable: list[str] = []  # nor did the one before it
        self._knows_strays = False
        self._merges = True

    def take_over(self, is_record: IsRecord, unwanted: IsRecord) -> tuple[list[bytes], Cut] | None:
        """Go on with the file that is there, without what is not wanted at its end.

        Returns:
            The lines that follow its segments, and what was taken out; None if there is no file.
        """

        def cut(state: State) -> tuple[State, Cut]:
            return state, cut_back(_blocks(state), is_record, unwanted)

        try:
            state, found = of_one_state(self._uri, cut)
        except FileNotFoundError:
            return None
        self._segments = list(state.segments)
        assert state.newest is not None
        if not found.is_changed or found.stop > len(self._segments):
            return [line for line in state.newest.splitlines(keepends=True) if line.strip()], found
        self.adopt(self._segments[: found.stop])
        return found.kept, found

    def cut(self, unwanted: IsRecord) -> list[bytes]:
        """Take unwanted records out of the segments. Returns lines of theirs that are in no segment any more."""
        state = State(self._uri, 0, tuple(self._segments), b"")
        found = cut_back(_blocks(state), lambda _record: True, unwanted)
        if not found.is_changed:
            return []
        self.adopt(self._segments[: found.stop])
        return found.kept

    def sealed(self, lines: Sequence[bytes]) -> list[Segment] | None:
        """Store the newest lines as segments, if there are enough of them.

        Returns:
            The segments of the file then, to be adopted or discarded; None if the lines are too few.
        """
        if sum(map(len, lines)) < SEAL_BYTES:
            return None
        segments = self._segments + [self._put_segment(text, rows) for text, rows in _pieces(lines)]
        try:
            for least in (MIDDLE_BYTES, LARGEST_BYTES) if self._merges else ():
                segments = self._merged(segments, least)
        except (CorruptShardError, FileNotFoundError) as error:  # that is for readers to say; new lines still go up
            self._merges = False
            _LOG.warning("%s: its small segments stay apart: %s", self._uri, error)
        return segments

    def adopt(self, segments: list[Segment]) -> None:
        """These are the segments from now on."""
        kept = set(_files(segments))
        self._superseded += [name for name in [*_files(self._segments), *self._made] if name not in kept]
        self._segments, self._made = segments, []

    def discard(self) -> None:
        """The segments stay what they were."""
        self.adopt(self._segments)

    def publish(self, lines: bytes) -> None:
        """Put the object that names the segments and holds the lines after them."""
        storage.write_bytes(self._uri, encode(self._segments, lines))
        self._removable += self._resting
        self._resting, self._superseded = self._superseded, []

    def clean(self) -> None:
        """Remove what neither the stored list names nor the one before it, and what a killed writer has left."""
        folder = segments_folder(self._uri)
        if not self._knows_strays:
            named = {*_files(self._segments), *self._made, *self._superseded, *self._resting}
            strays = set(storage.list_names(folder)) - named
            self._removable = sorted(strays | set(self._removable))
            self._knows_strays = True
        while self._removable:
            storage.remove_file(storage.join(folder, self._removable[-1]))
            self._removable.pop()

    def _merged(self, segments: list[Segment], least: int) -> list[Segment]:
        """One segment in place of the last ones below `least` bytes, as soon as they have as many together."""
        first = len(segments)
        while first and segments[first - 1].bytes < least:
            first -= 1
        small = segments[first:]
        if len(small) < 2 or sum(segment.bytes for segment in small) < least:
            return segments
        state = State(self._uri, 0, tuple(small), b"")
        return [*segments[:first], self._put_segment(b"".join(map(state.text, small)), sum(one.rows for one in small))]

    def _put_segment(self, text: bytes, rows: int) -> Segment:
        uri = storage.join(segments_folder(self._uri), name := secrets.token_hex(8))
        self._made.append(name)
        numbers = columns.encode(text) if self._in_columns and len(text) >= MIDDLE_BYTES else None
        if numbers:
            self._made.append(name + COLUMNS)
            storage.write_bytes(uri + COLUMNS, numbers)
        storage.write_bytes(uri, text)
        return Segment(name, rows, len(text), zlib.crc32(text), len(numbers or b""))


def _files(segments: Sequence[Segment]) -> list[str]:
    return [name for one in segments for name in (one.name, one.name + COLUMNS) if name == one.name or one.column_bytes]


def _blocks(state: State) -> Iterator[Block]:
    """The newest lines, and then each segment from the last to the first, by its number."""
    if state.newest:
        yield len(state.segments), len(state.segments) + 1, state.newest
    for number in reversed(range(len(state.segments))):
        yield number, number + 1, state.text(state.segments[number])


def _pieces(lines: Sequence[bytes]) -> Iterator[tuple[bytes, int]]:
    piece, size = list[bytes](), 0
    for line in lines:
        piece.append(line)
        size += len(line)
        if size >= LARGEST_BYTES:
            yield b"".join(piece), len(piece)
            piece, size = [], 0
    if piece:
        yield b"".join(piece), len(piece)
