"""Which bytes of which file hold which elements of which tensor.

index.json is compact, because there is an entry for every role, parameter and rank:

    {"format": 3, "attempt": "5f0c2a91", "block": 1048576,
     "files": [{"name", "bytes"}], "tensors": [{"name", "shape", "dtype"}],
     "roles": [...], "entries": [[role, tensor, start, stop, file, offset, [crc32 of each block]], ...]}

Numbers in an entry are places in the lists before it. Elements [start, stop) of the flattened tensor lie at byte
`offset` of the file; in the safetensors header their key is role/name/start.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from data_pipeline.shards.manifest import first_problem
from data_pipeline.shards.safetensors_header import ITEM_BYTES
from data_pipeline.text import json_records
from data_pipeline.text.names import CheckpointFileName, Count, TensorName
from trainer.checkpoints.commits import FORMAT_VERSION

BLOCK_BYTES = 2**20
"""Bytes that have a CRC-32 of their own, so that a part of a tensor can be checked without the rest."""


MOST_DIMENSIONS = 16


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _File(_Part):
    name: CheckpointFileName
    bytes: Count


class _Tensor(_Part):
    name: TensorName
    shape: tuple[Count, ...] = Field(max_length=MOST_DIMENSIONS)
    dtype: Literal["F64", "I64", "F32", "I32", "F16", "BF16", "I16", "I8", "U8", "BOOL"]


class _Record(_Part):
    """The JSON of an index."""

    format: Literal[3]
    attempt: Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z_-]{1,64}$")] | None = None
    block: Annotated[int, Field(ge=BLOCK_BYTES, le=BLOCK_BYTES)]
    files: list[_File]
    roles: list[TensorName]
    tensors: list[_Tensor]
    entries: list[tuple[Count, Count, Count, Count, Count, Count, tuple[Annotated[int, Field(ge=0, lt=2**32)], ...]]]


@dataclass(frozen=True)
class TensorInfo:
    """A whole tensor, of which entries hold parts."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Entry:
    """Elements [start, stop) of a flattened tensor, at byte `offset` of a file."""

    role: str
    tensor: TensorInfo
    start: int
    stop: int
    file: str
    offset: int
    crcs: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """Its name in the safetensors file."""
        return f"{self.role}/{self.tensor.name}/{self.start}"

    @property
    def bytes(self) -> int:
        """Its size."""
        return (self.stop - self.start) * ITEM_BYTES[self.tensor.dtype]


@dataclass
class Index:
    """All entries of a checkpoint, or of one rank, and the sizes of the files."""

    entries: list[Entry] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)
    attempt: str | None = field(default=None, compare=False)
    """Which attempt at the checkpoint wrote it; earlier versions did not say."""

    def by_tensor(self, role: str) -> dict[str, list[Entry]]:
        """Entries of a role by the tensor's name, each list in the order of elements."""
        found: dict[str, list[Entry]] = {}
        for entry in self.entries:
            if entry.role == role:
                found.setdefault(entry.tensor.name, []).append(entry)
        return {name: sorted(entries, key=lambda entry: entry.start) for name, entries in found.items()}

    def to_bytes(self) -> bytes:
        """The JSON of this index."""
        roles = _places(entry.role for entry in self.entries)
        tensors = _places(entry.tensor for entry in self.entries)
        files = _places(self.files)
        rows = [
            [roles[e.role], tensors[e.tensor], e.start, e.stop, files[e.file], e.offset, e.crcs] for e in self.entries
        ]
        record = {
            "format": FORMAT_VERSION,
            "attempt": self.attempt,
            "block": BLOCK_BYTES,
            "files": [{"name": name, "bytes": size} for name, size in self.files.items()],
            "roles": list(roles),
            "tensors": [{"name": t.name, "shape": t.shape, "dtype": t.dtype} for t in tensors],
            "entries": rows,
        }
        return json.dumps(record, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Index:
        """What `to_bytes` wrote.

        Raises:
            ValueError: if it is anything else: a name that is none, a place that a list does not have, elements that a
                tensor does not have, bytes that a file does not have.
        """
        try:
            record = _Record.model_validate(json_records.parse(data))
        except ValidationError as error:
            raise ValueError(first_problem(error)) from None
        tensors = [TensorInfo(tensor.name, tensor.shape, tensor.dtype) for tensor in record.tensors]
        files = {file.name: file.bytes for file in record.files}
        names, roles, entries = list(files), record.roles, []
        if len(files) != len(record.files):
            raise ValueError("it names a file twice")
        for number, (role, tensor, start, stop, file, offset, crcs) in enumerate(record.entries):
            if role >= len(roles) or tensor >= len(tensors) or file >= len(names):
                raise ValueError(f"entry {number} is about something that no list has")
            entry = Entry(roles[role], tensors[tensor], start, stop, names[file], offset, crcs)
            if not start <= stop <= math.prod(entry.tensor.shape):
                raise ValueError(f"{entry.key} has elements {start} to {stop}, which its tensor does not")
            if offset + entry.bytes > files[entry.file] or len(crcs) != -(-entry.bytes // BLOCK_BYTES):
                raise ValueError(f"{entry.key} has {entry.bytes} bytes at {offset}, which {entry.file} does not hold")
            entries.append(entry)
        index = cls(entries, files, record.attempt)
        index._check_overlaps(roles)
        return index

    def _check_overlaps(self, roles: Iterable[str]) -> None:
        for role in roles:
            for name, entries in self.by_tensor(role).items():
                if any(one.stop > other.start for one, other in pairwise(entries)):
                    raise ValueError(f"{role}/{name} has elements that are there twice")


def merge(parts: Iterable[Index], attempt: str | None = None) -> Index:
    """The index of a checkpoint from those of its ranks, all of one attempt."""
    whole = Index(attempt=attempt)
    for part in parts:
        whole.entries += part.entries
        whole.files |= part.files
    return whole


def _places(items: Iterable[Any]) -> dict[Any, int]:
    return {item: place for place, item in enumerate(dict.fromkeys(items))}
