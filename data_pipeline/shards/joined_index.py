"""The index of images that were taken from other data sets: rows of theirs, with labels and extensions of their own.

An image is its place in a shard (sample_index.py), so an edited set of images is another index over the same shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline import storage
from data_pipeline.shards.column_file import Column, Written, measure_columns, narrowest, write_columns
from data_pipeline.shards.sample_index import INDEX_KIND, INDEX_NAME, SampleIndex

_ROWS = 2**18
"""Samples that are in memory at a time."""


@dataclass(frozen=True)
class IndexPart:
    """Some samples of one data set."""

    index: SampleIndex
    rows: npt.NDArray[np.int64] | None = None
    """Their numbers; None for all."""
    labels: npt.NDArray[np.int32] | None = None
    """What its labels become; None if they stay."""

    def __len__(self) -> int:
        return len(self.index.label) if self.rows is None else len(self.rows)


@dataclass(frozen=True)
class JoinedIndex:
    """The samples of some data sets, one after another."""

    parts: tuple[IndexPart, ...]

    def written(self) -> Written:
        """What a manifest states of the file."""
        return measure_columns(INDEX_KIND, self._columns(), {"extensions": self._extensions})

    def write(self, uri: str) -> None:
        """Put index.bin into the folder of a data set."""
        write_columns(storage.join(uri, INDEX_NAME), INDEX_KIND, self._columns(), {"extensions": self._extensions})

    @property
    def _extensions(self) -> list[str]:
        return list(dict.fromkeys(name for part in self.parts for name in part.index.extensions))

    def _columns(self) -> dict[str, Column]:
        numbers = {name: number for number, name in enumerate(self._extensions)}
        codes = [np.array([numbers[name] for name in part.index.extensions], np.int64) for part in self.parts]

        def extension(number: int, column: npt.NDArray[Any]) -> npt.NDArray[Any]:
            named: npt.NDArray[Any] = codes[number][column]
            return named

        def label(number: int, column: npt.NDArray[Any]) -> npt.NDArray[Any]:
            labels = self.parts[number].labels
            return column if labels is None else labels[column]

        samples = sum(map(len, self.parts))
        wide = any(part.index.offset.dtype.itemsize > 4 for part in self.parts)
        place = "<u8" if wide else "<u4"
        width = max(part.index.key.dtype.itemsize for part in self.parts)
        return {
            "offset": Column(place, (samples,), _Pieces(self.parts, "offset")),
            "length": Column(place, (samples,), _Pieces(self.parts, "length")),
            "crc32": Column("<u4", (samples,), _Pieces(self.parts, "crc32")),
            "label": Column("<i4", (samples,), _Pieces(self.parts, "label", label)),
            "extension": Column(
                narrowest(max(0, len(numbers) - 1)), (samples,), _Pieces(self.parts, "extension", extension)
            ),
            "key": Column(f"|S{width}", (samples,), _Pieces(self.parts, "key")),
        }


@dataclass(frozen=True)
class _Pieces:
    """One column, some rows at a time, as often as it is asked for."""

    parts: Sequence[IndexPart]
    name: str
    change: Callable[[int, npt.NDArray[Any]], npt.NDArray[Any]] = lambda _number, column: column

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        for number, part in enumerate(self.parts):
            column = getattr(part.index, self.name)
            for start in range(0, len(part), _ROWS):
                here = slice(start, start + _ROWS)
                yield self.change(number, column[here] if part.rows is None else column[part.rows[here]])
