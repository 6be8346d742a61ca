"""The planned shards of all splits as columns: some tens of bytes a shard, however many images it has."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from data_pipeline.ingest.item_files import Place


@dataclass(frozen=True)
class PlannedShard:
    """A shard before it is written. Which images are in it lies on storage (`IngestPlan.items`)."""

    number: int
    """Among the shards of all splits."""
    split: str
    """train or validation."""
    name: str
    """File name of its tar."""
    images: int
    """That are to be in it."""
    plan: str
    """sha256 of what is to be in it, from the source's listing alone."""
    place: Place
    """Where its rows lie in the plan."""


_KINDS: dict[str, Any] = {"split": "<i8", "images": "<i8", "part": "<i8", "group": "<i8", "plan": "V32"}
"""What the columns hold."""


class ShardRows:
    """Takes one planned shard after another, split after split, in some tens of bytes each."""

    def __init__(self) -> None:
        self._numbers = array("q")
        self._plans = bytearray()
        self._splits: list[str] = []

    def add(self, split: str, images: int, place: Place, plan: str) -> None:
        """Take the next shard; `plan` is its fingerprint."""
        if split not in self._splits:
            self._splits.append(split)
        self._numbers.extend((self._splits.index(split), images, *place))
        self._plans += bytes.fromhex(plan)

    def table(self) -> ShardTable:
        """All that was taken."""
        numbers = np.array(self._numbers, np.int64).reshape(-1, 4)
        columns: dict[str, Any] = dict(zip(_KINDS, numbers.T.copy(), strict=False))
        return ShardTable(tuple(self._splits), columns | {"plan": np.frombuffer(bytes(self._plans), "V32")})


class ShardTable(Sequence[PlannedShard]):
    """All shards of a plan, in its order: split after split.

    Args:
        splits: names of the splits.
        columns: by shard: the number of its split, its images, the part and the row group of its rows, its digest.
    """

    def __init__(self, splits: tuple[str, ...], columns: dict[str, npt.NDArray[Any]]) -> None:
        self.splits = splits
        self._columns = columns
        numbers = columns["split"]
        self._firsts = [int(np.searchsorted(numbers, number)) for number in range(len(splits))]
        self.images: npt.NDArray[np.int64] = columns["images"]
        """Of each shard."""

    def encode(self) -> bytes:
        """As a file: the columns' bytes, one after another, little-endian."""
        return b"".join(np.ascontiguousarray(self._columns[name], _KINDS[name]).tobytes() for name in _KINDS)

    @classmethod
    def decode(cls, splits: tuple[str, ...], shards: int, data: bytes) -> ShardTable:
        """The table of a file.

        Raises:
            ValueError: if it is none of so many shards.
        """
        width = sum(np.dtype(kind).itemsize for kind in _KINDS.values())
        if len(data) != shards * width:
            raise ValueError(f"{len(data):,} bytes are not {shards:,} shards")
        columns, start = {}, 0
        for name, kind in _KINDS.items():
            columns[name] = np.frombuffer(data, kind, shards, start)
            start += columns[name].nbytes
        least = {"split": 0, "images": 1, "part": 0, "group": 0}
        for name, lowest in least.items():
            if shards and int(columns[name].min()) < lowest:
                raise ValueError(f"its column {name} has the value {int(columns[name].min())}")
        if (np.diff(columns["split"]) < 0).any() or (shards and int(columns["split"][-1]) >= len(splits)):
            raise ValueError("its splits are not in order")
        return cls(splits, columns)

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> PlannedShard: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[PlannedShard]: ...

    def __getitem__(self, index: int | slice) -> PlannedShard | Sequence[PlannedShard]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        at = {name: column[number] for name, column in self._columns.items()}
        split = int(at["split"])
        return PlannedShard(
            number=number,
            split=self.splits[split],
            name=f"images-{number - self._firsts[split]:05d}.tar",
            images=int(at["images"]),
            plan=at["plan"].tobytes().hex(),
            place=Place(int(at["part"]), int(at["group"])),
        )

    def __iter__(self) -> Iterator[PlannedShard]:
        return (self[number] for number in range(len(self)))

    def of_split(self, split: str) -> range:
        """The numbers of a split's shards."""
        which = self.splits.index(split)
        ends = [*self._firsts[1:], len(self)]
        return range(self._firsts[which], ends[which])
