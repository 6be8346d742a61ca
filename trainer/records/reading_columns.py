"""All numbers of a metrics.jsonl in columns: from what is stored in columns where there is any, else from its lines."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import BinaryIO, NamedTuple

from data_pipeline import storage
from data_pipeline.record_files.cursor import Cursor
from data_pipeline.record_files.layout import Segment, columns_folder
from data_pipeline.record_files.reading import State, of_one_state
from data_pipeline.text.json_records import parse_lines
from trainer.records import columns
from trainer.records.columns import Columns, Wanted
from trainer.records.local_file import ColumnsOf, columns_there
from trainer.records.plain_lines import plain_columns
from trainer.records.record_shapes import is_metrics
from trainer.records.segmented_object import COLUMNS

_LOG = logging.getLogger(__name__)
_PIECE_BYTES = 4 * 2**20
"""Lines that are turned into columns at once: as objects they take some 10 times as much memory."""


_CHECKED_BYTES = 32 * 2**20
"""Of lines whose CRC a look compares with that of columns that were taken before, some more at most."""
_END_BYTES = 4096
"""Of the first and the last lines; ours have some hundred bytes."""


class Part(NamedTuple):
    """A stretch of a file."""

    numbers: Columns
    lines: int
    left_out: list[int]
    """Lines of it, from 1, that are no records."""


def read_columns(uri: str, wanted: Wanted) -> Columns:
    """The numbers of the records of metrics.jsonl, in their order; no rows without a file.

    Lines that are no records are left out, and the log says how many.

    Args:
        uri: the file.
        wanted: which columns to read; those that say when a step was, and how long it took, are read always.
    """
    try:
        parts = of_one_state(uri, lambda state: list(_parts(state, wanted)))
    except FileNotFoundError:
        return columns.joined([])
    before, left_out = 0, list[int]()
    for part in parts:
        left_out += [before + number for number in part.left_out]
        before += part.lines
    if left_out:
        many = "s" if len(left_out) > 1 else ""
        _LOG.warning("%s: %d line%s left out, the first is line %d: no record", uri, len(left_out), many, left_out[0])
    return columns.joined(part.numbers for part in parts)


class ColumnCursor:
    """For whoever looks again and again: the numbers that are new since the last look, each byte read once.

    What is there at the first look is read as `read_columns` does; what comes later from its lines. Of a file on a disk
    the first look takes columns whose first and last rows are those of their lines; the next ones compare the CRC of a
    part of the lines each, and have all read again should one be another.

    Args:
        uri: metrics.jsonl of a stage.
        wanted: which columns to read, as for `read_columns`.
    """

    def __init__(self, uri: str, wanted: Wanted = lambda _name: True) -> None:
        self._uri, self._cursor, self._wanted = uri, Cursor(uri, most=1), wanted
        self._has_begun = self._doubts = False
        self._unchecked: list[ColumnsOf] = []

    def look(self) -> tuple[Columns, bool]:
        """The new rows, and whether those before them do not count any more: lines were taken back."""
        was_there = self._has_begun
        if was_there and self._is_sound():
            news = self._cursor.news()
            if not news.is_other:
                return _of_lines(news.lines, self._wanted).numbers, False
        try:
            parts = self._cursor.begin(self._begin)
        except FileNotFoundError:
            self._has_begun = False
            return columns.joined([]), was_there
        self._has_begun = True
        return columns.joined(part.numbers for part in parts), was_there

    def _begin(self, state: State) -> list[Part]:
        self._unchecked = []
        return list(_parts(state, self._wanted, None if self._doubts else self._unchecked))

    def _is_sound(self) -> bool:
        """Compare some of what was taken without its CRC."""
        left = _CHECKED_BYTES
        with suppress(FileNotFoundError):
            while self._unchecked and left > 0:
                each = self._unchecked.pop()
                if storage.size(self._uri) < each.stop or _crcs(self._uri, [each]) != [each.crc]:
                    self._doubts = True
                    return False
                left -= each.stop - each.start
        return True


def _parts(state: State, wanted: Wanted, unchecked: list[ColumnsOf] | None = None) -> Iterator[Part]:
    """All of a file; as for `_local_parts`."""
    if state.newest is None:
        yield from _local_parts(state, wanted, unchecked)
        return
    for segment in state.segments:
        found = _of_segment(state, segment, wanted) if segment.column_bytes else None
        yield found or _of_lines(state.text(segment), wanted)
    yield _of_lines(state.newest, wanted)


def _local_parts(state: State, wanted: Wanted, unchecked: list[ColumnsOf] | None) -> Iterator[Part]:
    """All of a file on a disk.

    Args:
        state: of it.
        wanted: which columns.
        unchecked: gets the columns whose lines are to be compared later; None to compare all of them now.
    """
    there = [each for each in columns_there(state.uri) if each.start < each.stop <= state.size]
    if unchecked is None:
        there = [each for each, crc in zip(there, _crcs(state.uri, there), strict=True) if crc == each.crc]
    at = 0
    with storage.open_reader(state.uri) as file:
        for each in there:
            uri = storage.join(columns_folder(state.uri), each.name)
            found = _stored(uri, None, wanted) if each.start >= at else None
            if found is None or (unchecked is not None and not _has_ends(file, each, found.numbers)):
                continue
            if unchecked is not None:
                unchecked.append(each)
            yield from _between(state, at, each.start, wanted)
            yield found
            at = each.stop
    yield from _between(state, at, state.size, wanted)


def _crcs(uri: str, there: Sequence[ColumnsOf]) -> list[int | None]:
    """Of the lines that a file on a disk has now where columns were made of some; None where it ends before."""
    if not there:
        return []
    found = list[int | None]()
    with storage.open_reader(uri) as file:
        buffer = memoryview(bytearray(min(_PIECE_BYTES, max(each.stop - each.start for each in there))))
        for each in there:
            file.seek(each.start)
            crc, left = 0, each.stop - each.start
            while left and (count := file.readinto(buffer[:left])):  # type: ignore[attr-defined]
                crc, left = zlib.crc32(buffer[:count], crc), left - count
            found.append(None if left else crc)
    return found


def _has_ends(file: BinaryIO, each: ColumnsOf, numbers: Columns) -> bool:
    """Whether a file has whole lines there now, of the steps and times of the first and the last row."""
    file.seek(max(0, each.start - 1))
    first = file.read(_END_BYTES)
    file.seek(max(0, each.stop - _END_BYTES))
    end = file.read(each.stop - file.tell())
    if (each.start and first[:1] != b"\n") or end[-1:] != b"\n":
        return False
    lines = first.removeprefix(b"\n").partition(b"\n")[0], end[:-1].rpartition(b"\n")[2]
    rows = parse_lines(b"\n".join(lines) + b"\n", is_metrics).records
    named = {name: numbers[name][[0, -1]].tolist() for name in ("step", "time") if name in numbers}
    return len(rows) == 2 and all([row.get(name) for row in rows] == values for name, values in named.items())


def _between(state: State, start: int, stop: int, wanted: Wanted) -> Iterator[Part]:
    """Lines of a file on a disk, piece by piece."""
    while start < stop:
        text = state.read(start, min(stop, start + _PIECE_BYTES))
        end = text.rfind(b"\n") + 1
        if start + len(text) < stop and end:
            text = text[:end]
        if not text:
            return
        yield _of_lines(text, wanted)
        start += len(text)


def _of_lines(text: bytes, wanted: Wanted) -> Part:
    numbers = plain_columns(text, wanted)
    if numbers is not None:
        return Part(numbers, text.count(b"\n"), [])
    found = parse_lines(text, is_metrics)
    return Part(columns.from_records(found.records, wanted), text.count(b"\n"), found.left_out)


def _of_segment(state: State, segment: Segment, wanted: Wanted) -> Part | None:
    return _stored(state.segment_uri(segment) + COLUMNS, segment.rows, wanted, segment.column_bytes)


def _stored(uri: str, lines: int | None, wanted: Wanted, size: int | None = None) -> Part | None:
    """Numbers that are stored in columns; None if they cannot be used, so that the lines are read.

    Args:
        uri: of the columns.
        lines: that they are of, if that is known.
        wanted: which columns.
        size: bytes of the file, if it is known and read by ranges.
    """
    try:
        if size is None:
            data = memoryview(storage.read_bytes(uri))
            numbers = columns.read(lambda ranges: [data[at : at + length] for at, length in ranges], len(data), wanted)
        else:
            numbers = columns.read(lambda ranges: [storage.read_range(uri, *each) for each in ranges], size, wanted)
        rows = len(numbers["step"])
        if lines not in {None, rows}:
            raise ValueError(f"it has other rows than the {lines:,} lines that it is of")  # noqa: TRY301
    except FileNotFoundError:
        return None
    except ValueError as error:
        _LOG.warning("%s is not used: %s; the lines are read instead", uri, error)
        return None
    return Part(numbers, rows, [])
