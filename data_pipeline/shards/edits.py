"""Data sets that are made of others: a manifest over shards that exist, with nothing copied and nothing computed anew.

    append   the samples of some sets, one set after another; classes are joined by name
    subset   some samples of a set, in its order; which ones stands in rows.bin beside the manifest
    mix      the samples of some sets, of each so many per epoch; classes are joined by name
    views    some sets of tokens of the same images, as one with the views of all of them

The manifest names its parents by URI and fingerprint, and its shards by the folders that they lie in. What a sample is
follows from the parents' own manifests, which are read again (token_reader.py); images carry it in their index instead.

    rows.bin: of    uint [shards]     the parent's shard that each shard is taken from
              row   uint [samples]    the row in that shard, ascending in each
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, Field, model_validator

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.order.mixing import MixPart
from data_pipeline.shards.column_file import (
    Column,
    Columns,
    Place,
    Written,
    check_shapes,
    column,
    measure_columns,
    narrowest,
    open_columns,
    write_columns,
)
from data_pipeline.shards.shard_table import Record, check_folder, shard_folder
from data_pipeline.text.names import Count, Sha256

ROWS_NAME = "rows.bin"
MOST_PARENTS = 1024
MOST_DEPTH = 32
"""Generations of data sets that are made of others."""
_KIND = "selection of rows"

Operation = Literal["append", "subset", "mix", "views"]


class Parent(Record):
    """A data set that another one is made of."""

    uri: Annotated[str, AfterValidator(check_folder)]
    """Its folder."""
    fingerprint: Sha256
    """Of its manifest."""
    shards: Count
    """Of it."""


class RowsStatement(Record):
    """What a manifest states of rows.bin."""

    bytes: Count
    sha256: Sha256


class Edit(Record):
    """How a data set follows from its parents."""

    operation: Operation
    """As above."""
    parents: tuple[Parent, ...] = Field(min_length=1, max_length=MOST_PARENTS)
    """In their order."""
    asked: dict[str, str] = Field({}, exclude_if=lambda asked: not asked)
    """What was asked for, for people."""
    draws: tuple[Count, ...] = Field((), exclude_if=lambda draws: not draws)
    """Of a mix: samples of each parent in an epoch."""
    rows: RowsStatement | None = Field(None, exclude_if=lambda rows: rows is None)
    """Of a subset of tokens: its selection."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.operation == "mix" and (len(self.draws) != len(self.parents) or not all(self.draws)):
            raise ValueError("a mix has samples of each of its sets in an epoch")
        if self.draws and self.operation != "mix":
            raise ValueError("only a mix states samples of an epoch")
        return self

    def mix(self) -> tuple[MixPart, ...]:
        """Of a mix: what its order follows from."""
        return tuple(MixPart(each.shards, draws) for each, draws in zip(self.parents, self.draws, strict=False))


def parent_uri(child: str, parent: Parent) -> str:
    """URI of a parent of the data set at `child`.

    Raises:
        UsageError: if a remote data set names a folder of this machine, or one above its bucket.
    """
    return shard_folder(child, parent.uri)


class Selection:
    """Which samples of a set a subset holds.

    Args:
        of: the parent's shard of each shard of the subset.
        row: the rows of all shards, one shard after another.
        starts: the first of them of each shard, and their number.
    """

    def __init__(self, of: npt.NDArray[np.int64], row: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]) -> None:
        self.of, self.row, self.starts = of, row, starts

    @classmethod
    def take(cls, indices: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]) -> Selection:
        """The samples with these numbers, ascending, of a set whose shards begin at `starts`."""
        shard = np.searchsorted(starts, indices, side="right") - 1
        of, firsts = np.unique(shard, return_index=True)
        return cls(of, indices - starts[shard], np.append(firsts, len(indices)).astype(np.int64))

    def rows(self, number: int) -> npt.NDArray[np.int64]:
        """Rows of one shard."""
        return self.row[self.starts[number] : self.starts[number + 1]].astype(np.int64)

    def _columns(self) -> dict[str, Column]:
        arrays = {"of": self.of, "row": self.row}
        return {name: column(array.astype(narrowest(int(array.max(initial=0))))) for name, array in arrays.items()}

    def statement(self) -> RowsStatement:
        """What a manifest states of rows.bin."""
        written = measure_columns(_KIND, self._columns())
        return RowsStatement(bytes=written.bytes, sha256=written.sha256)

    def write(self, uri: str) -> None:
        """Put rows.bin into a folder."""
        write_columns(storage.join(uri, ROWS_NAME), _KIND, self._columns())

    @classmethod
    def read(
        cls, uri: str, statement: RowsStatement, starts: npt.NDArray[np.int64], parent: npt.NDArray[np.int64]
    ) -> Selection:
        """Of the subset at `uri`.

        Args:
            uri: of the subset.
            statement: of its manifest.
            starts: of its shards.
            parent: starts of the parent's shards.

        Raises:
            CorruptShardError: if it is not the one that the manifest states, or selects what is not there.
        """

        def check(columns: Columns) -> None:
            check_shapes(columns, {"of": ("u", None), "row": ("u", None)})
            of, row = columns.arrays["of"].astype(np.int64), columns.arrays["row"].astype(np.int64)
            if len(of) != len(starts) - 1 or len(row) != starts[-1] or of.max(initial=0) >= len(parent) - 1:
                raise ValueError("it has rows of other shards than the manifest")
            shard = np.repeat(np.arange(len(of)), np.diff(starts))
            if (row >= np.diff(parent)[of[shard]]).any() or (np.diff(of) <= 0).any():
                raise ValueError("it selects rows that are not there")
            if ((np.diff(row) <= 0) & (np.diff(shard) == 0)).any():
                raise ValueError("it selects a row twice")

        place = Place(
            storage.join(uri, ROWS_NAME),
            _KIND,
            Written(statement.bytes, statement.sha256),
            "run foldtrain data subset again",
        )
        columns = open_columns(place, check)
        return cls(columns.arrays["of"], columns.arrays["row"], starts)


def class_map(parent: Sequence[str], child: Sequence[str]) -> npt.NDArray[np.int32] | None:
    """The label in a joined set of each label of one of its parents; None if they are the same.

    Raises:
        UsageError: if a class is missing there.
    """
    if tuple(parent) == tuple(child[: len(parent)]):
        return None
    numbers = {name: label for label, name in enumerate(child)}
    missing = next((name for name in parent if name not in numbers), None)
    if missing is not None:
        raise UsageError(f"the class {missing!r} of a parent is none of the joined data set's: make it anew")
    return np.array([numbers[name] for name in parent], np.int32)


def join_classes(sets: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The classes of some sets by name, those of the first one first.

    Raises:
        UsageError: if sets with different classes have a name twice, so that names do not tell classes apart.
    """
    if all(classes == sets[0] for classes in sets):
        return sets[0]
    for classes in sets:
        if len(set(classes)) != len(classes):
            twice = next(name for name in classes if classes.count(name) > 1)
            raise UsageError(f"classes are joined by name, but a set has the class {twice!r} twice")
    return tuple(dict.fromkeys(name for classes in sets for name in classes))
