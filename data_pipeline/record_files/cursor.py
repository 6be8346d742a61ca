"""Reads of a file of records what is new since the last look."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, TypeVar

from data_pipeline import storage
from data_pipeline.record_files.reading import State, last_lines, of_one_state

T = TypeVar("T")
_LAST_BYTES = 64 * 2**10
"""Of the end of a file in which its last line is looked for first."""


class News(NamedTuple):
    """What a look has found."""

    lines: bytes
    """Whole lines that are new."""
    is_other: bool
    """Whether what was read before does not count: lines were taken back, or the file is another one."""


class Cursor:
    """A place in a file of records, behind the last whole line that was read.

    Segments that are put together do not move it. It is known again by the bytes of the line before it, which has the
    time at which it was written.

    Args:
        uri: the file.
        most: bytes from the end that the first look reads at most; None for all.
    """

    def __init__(self, uri: str, most: int | None = None) -> None:
        self._uri, self._most = uri, most
        self._offset, self._last = 0, b""
        self._version: storage.Entry | None = None

    def news(self) -> News:
        """Look, with one request where nothing has changed, and one more where something has.

        Nothing is new without a file. Errors as for `of_one_state`.
        """
        try:
            version = storage.stat(self._uri)
            if version == self._version:
                return News(b"", False)
            news = of_one_state(self._uri, self._news, version.bytes)
        except FileNotFoundError:
            was_there = self._offset > 0
            self._offset, self._last, self._version = 0, b"", None
            return News(b"", was_there)
        self._version = version  # of before the read: what comes after it is another one
        return news

    def begin(self, use: Callable[[State], T]) -> T:
        """Have `use` read all whole lines that there are, in whatever way; the next look finds what follows them.

        Errors as for `of_one_state`; without a file FileNotFoundError.
        """
        version = storage.stat(self._uri)

        def read(state: State) -> tuple[T, int, bytes]:
            stop, last = _last_line(state)
            return use(replace(state, size=stop)), stop, last

        found, self._offset, self._last = of_one_state(self._uri, read, version.bytes)
        self._version = version
        return found

    def _news(self, state: State) -> News:
        knows_place = 0 < self._offset <= state.size and self._is_place(state)
        data = state.read(self._offset, state.size) if knows_place else last_lines(state, self._most)
        whole = data[: data.rfind(b"\n") + 1]
        is_other = not knows_place and self._offset > 0
        self._offset = (self._offset if knows_place else state.size - len(data)) + len(whole)
        if whole:
            self._last = whole[whole.rfind(b"\n", 0, -1) + 1 :]
        return News(whole, is_other)

    def _is_place(self, state: State) -> bool:
        return state.read(self._offset - len(self._last), self._offset) == self._last


def _last_line(state: State) -> tuple[int, bytes]:
    """Where the last whole line of a file ends, and that line; 0 and nothing if there is none."""
    reach = _LAST_BYTES
    while True:
        start = max(0, state.size - reach)
        text = state.read(start, state.size)
        end = text.rfind(b"\n") + 1
        begin = text.rfind(b"\n", 0, max(0, end - 1)) + 1
        if start == 0 or begin:
            return (start + end, text[begin:end]) if end else (0, b"")
        reach *= 2
