"""The shards of a data set as columns: shards.bin beside manifest.json, which states its digest and its sums.

    start         int64 [shards + 1]   first sample of each shard, and the number of samples at the end
    bytes         int64 [shards]       size of each tar
    sha256        uint8 [shards, 32]   digest of each tar
    index_sha256  uint8 [shards, 32]   digest of each sidecar index; of image sets alone
    name          S [shards]           file name of each tar
    folder        uint [shards]        which of the folders it lies in

The texts `folders` name the folders: empty for that of the data set itself, else a URI, or a path relative to it.
"""

from __future__ import annotations

import functools
import operator
import posixpath
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeGuard, TypeVar, cast, overload

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.node.node_cache import NodeCache
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
from data_pipeline.text.names import MOST_COUNT, SHARD_DIGITS, Count, Sha256, ShardName

TABLE_NAME = "shards.bin"
_KIND = "table of {} shards"
_MOST_FOLDERS = 4096
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\\]")


class Record(BaseModel):
    """A part of a manifest. Nothing in it depends on when or where it was made."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def check_folder(folder: str) -> str:
    """Where shards lie that a manifest names: nowhere else, a URI, or a path relative to the data set.

    Raises:
        ValueError: if it is too long or holds control characters.
    """
    if len(folder.encode(errors="replace")) > 1024 or _CONTROL.search(folder):
        raise ValueError(f"{folder[:64]!r} is no folder of shards: it is too long, or holds control characters")
    return folder


class ShardRecord(Record):
    """One shard of a data set."""

    name: ShardName
    """File name of its tar."""
    samples: Count
    """Images in it."""
    bytes: Count
    """Size of its tar."""
    sha256: Sha256
    """Digest of its tar."""
    folder: Annotated[str, AfterValidator(check_folder), Field(exclude_if=lambda folder: not folder)] = ""
    """Where its tar lies: empty for the data set's own folder, else a URI, absolute or relative to the data set."""


class ImageShardRecord(ShardRecord):
    """One shard of images."""

    index_sha256: Sha256
    """Digest of its sidecar index."""


R_co = TypeVar("R_co", bound=ShardRecord, covariant=True)


def shard_folder(data_set_uri: str, folder: str) -> str:
    """URI of a folder that shards of a data set lie in.

    Args:
        data_set_uri: of the data set.
        folder: of a record.

    Raises:
        UsageError: if a remote data set names a folder of this machine, or one above its bucket.
    """
    if not folder:
        return data_set_uri
    if not storage.is_remote(data_set_uri):
        is_whole = "://" in folder or folder.startswith("/")
        return folder.rstrip("/") if is_whole else storage.join(data_set_uri, folder)
    if storage.is_remote(folder):
        return folder.rstrip("/")
    scheme, _, path = data_set_uri.partition("://")
    bucket, _, inside = path.partition("/")
    found = posixpath.normpath(f"{inside}/{folder}")
    if folder.startswith("/") or "://" in folder or found.startswith(".."):
        raise UsageError(
            f"{data_set_uri} says that its shards lie in {folder!r}, which is outside of its bucket and no URI of "
            "another: make the data set anew"
        )
    return f"{scheme}://{bucket}/{found}"


def shard_uri(data_set_uri: str, record: ShardRecord) -> str:
    """URI of the tar of a shard of a data set.

    Raises:
        UsageError: as `shard_folder`.
    """
    return storage.join(shard_folder(data_set_uri, record.folder), record.name)


class TableStatement(Record):
    """What a manifest states of the table of its shards."""

    count: Count
    """Shards."""
    bytes: Count
    """Of all their tars together."""
    table_bytes: Count
    """Of the file."""
    table_sha256: Sha256
    """Of the file."""


@dataclass(frozen=True)
class _Source:
    """Where a table is read from once it is asked for, and what it is compared with."""

    place: Place
    check: _Check
    copy_name: str
    cache: NodeCache | None

    def load(self) -> Columns:
        return open_columns(self.place, self.check, self.copy_name, self.cache)


class ShardTable(Sequence[R_co]):
    """The shards of a data set. Records are made when they are asked for; a stored table is read then, and not before.

    Args:
        record: type of the records.
        statement: what the manifest states of it.
        source: of the columns, or the columns themselves; None if nobody has said yet where the table is.
    """

    def __init__(self, record: type[R_co], statement: TableStatement, source: _Source | Columns | None = None) -> None:
        self._record, self.statement, self._source = record, statement, source

    @classmethod
    def of(cls, record: type[R_co], kind: str, records: Iterable[Any]) -> ShardTable[R_co]:
        """A table in memory."""
        columns = _columns_of(records, with_indexes=issubclass(record, ImageShardRecord))
        written = measure_columns(_KIND.format(kind), _as_columns(columns), columns.texts)
        sizes = columns.arrays["bytes"]
        statement = TableStatement(
            count=len(sizes), bytes=int(sizes.sum()), table_bytes=written.bytes, table_sha256=written.sha256
        )
        return cls(record, statement, columns)

    def stored(self, uri: str, kind: str, samples: int, least: int, remedy: str, key: str) -> ShardTable[R_co]:
        """The table in a data set's folder.

        Args:
            uri: of the data set.
            kind: of its shards.
            samples: images in all shards.
            least: bytes that a sample takes of its shard at least.
            remedy: what to do about a damaged table: an imperative.
            key: fingerprint of the manifest, from which all of this follows.
        """
        stated = Written(self.statement.table_bytes, self.statement.table_sha256)
        place = Place(storage.join(uri, TABLE_NAME), _KIND.format(kind), stated, remedy)
        check = _Check(kind, samples, least, self.statement, issubclass(self._record, ImageShardRecord))
        return type(self)(self._record, self.statement, _Source(place, check, f"{key}.shards", None))

    def through(self, cache: NodeCache) -> ShardTable[R_co]:
        """The same table, mapped through this node's copy where it is remote, so that processes share its memory."""
        source = self._source
        return type(self)(self._record, self.statement, replace(source, cache=cache)) if _is_stored(source) else self

    def check(self, kind: str, samples: int, least: int) -> None:
        """Whether a table in memory can be of a data set; one that is stored is checked when it is read.

        Raises:
            ValueError: if not; it says why.
        """
        if isinstance(self._source, Columns):
            _Check(kind, samples, least, self.statement, issubclass(self._record, ImageShardRecord))(self._source)

    def write(self, uri: str, kind: str) -> None:
        """Put the table into a data set's folder, before the manifest that states its digest."""
        columns = self._columns
        written = write_columns(storage.join(uri, TABLE_NAME), _KIND.format(kind), _as_columns(columns), columns.texts)
        assert written == (self.statement.table_bytes, self.statement.table_sha256), uri

    @functools.cached_property
    def _columns(self) -> Columns:
        assert self._source is not None, "nobody has said where the table is"
        return self._source.load() if isinstance(self._source, _Source) else self._source

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """First sample of each shard, and the number of samples at the end; int64 [shards + 1], read-only.

        Raises:
            CorruptShardError: if the table is not the one that the manifest states.
        """
        return self._columns.arrays["start"]

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Bytes of each tar; int64 [shards], read-only.

        Raises:
            CorruptShardError: as `starts`.
        """
        return self._columns.arrays["bytes"]

    @property
    def total_bytes(self) -> int:
        """Of all tars together; known without reading the table."""
        return self.statement.bytes

    def __len__(self) -> int:
        """Shards; known without reading the table."""
        return self.statement.count

    @overload
    def __getitem__(self, number: int) -> R_co: ...
    @overload
    def __getitem__(self, number: slice) -> tuple[R_co, ...]: ...
    def __getitem__(self, number: int | slice) -> R_co | tuple[R_co, ...]:
        """A record, or several."""
        if isinstance(number, slice):
            return tuple(self._at(each) for each in range(*number.indices(len(self))))
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        return self._at(number % len(self))

    def __iter__(self) -> Iterator[R_co]:
        """All records, one at a time."""
        return (self._at(number) for number in range(len(self)))

    def _at(self, number: int) -> R_co:
        held, folders = self._columns.arrays, self._columns.texts["folders"]
        fields: dict[str, Any] = {
            "name": held["name"][number].decode(),
            "samples": int(held["start"][number + 1]) - int(held["start"][number]),
            "bytes": int(held["bytes"][number]),
            "sha256": held["sha256"][number].tobytes().hex(),
            "folder": folders[held["folder"][number]],
        }
        if "index_sha256" in held:
            fields["index_sha256"] = held["index_sha256"][number].tobytes().hex()
        return cast("R_co", self._record.model_construct(**fields))  # the columns were checked

    def __eq__(self, other: object) -> bool:
        """With a table by digest, with any other sequence by its records."""
        if isinstance(other, ShardTable):
            return self.statement == other.statement
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    def __hash__(self) -> int:
        """Of the digest."""
        return hash(self.statement)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was read: a process that gets a stored table reads it itself."""
        return {name: value for name, value in vars(self).items() if name != "_columns"}


def _is_stored(source: _Source | Columns | None) -> TypeGuard[_Source]:
    return isinstance(source, _Source)


def _columns_of(records: Iterable[ShardRecord], *, with_indexes: bool) -> Columns:
    samples, sizes, digests, indexes = array("q"), array("q"), bytearray(), bytearray()
    names, codes, folders = [], array("I"), dict[str, int]()
    for each in records:
        samples.append(each.samples)
        sizes.append(each.bytes)
        digests += bytes.fromhex(each.sha256)
        names.append(each.name)
        codes.append(folders.setdefault(each.folder, len(folders)))
        if with_indexes:
            assert isinstance(each, ImageShardRecord), each.name
            indexes += bytes.fromhex(each.index_sha256)
    arrays = {
        "start": np.concatenate([np.zeros(1, "<i8"), np.cumsum(np.array(samples, "<i8"))]),
        "bytes": np.array(sizes, "<i8"),
        "sha256": np.frombuffer(bytes(digests), "|u1").reshape(-1, 32),
        **({"index_sha256": np.frombuffer(bytes(indexes), "|u1").reshape(-1, 32)} if with_indexes else {}),
        "name": np.array([name.encode() for name in names], "S"),
        "folder": np.array(codes, narrowest(max(codes, default=0))),
    }
    return Columns(arrays, {"folders": list(folders)})


def _as_columns(columns: Columns) -> dict[str, Column]:
    return {name: column(held) for name, held in columns.arrays.items()}


@dataclass(frozen=True)
class _Check:
    """Whether a table can be of a data set. Whoever wrote it, a record that it gives is as if it had been parsed."""

    kind: str
    samples: int
    least: int
    statement: TableStatement
    with_indexes: bool

    def __call__(self, columns: Columns) -> None:
        shards = self.statement.count
        expected: dict[str, tuple[str, int | None]] = {
            "start": ("i8", None),
            "bytes": ("i8", None),
            "sha256": ("u1", 32),
        }
        expected |= {"name": ("S", None), "folder": ("u", None)}
        check_shapes(columns, expected | ({"index_sha256": ("u1", 32)} if self.with_indexes else {}), "folders")
        held = columns.arrays
        if any(len(column) != shards + (name == "start") for name, column in held.items()):
            raise ValueError(f"its columns are not of {shards} shards")
        self._check_sizes(held["start"], held["bytes"], held["name"])
        self._check_places(held["name"], held["folder"], columns.texts["folders"])

    def _check_sizes(
        self, start: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], name: npt.NDArray[np.bytes_]
    ) -> None:
        if start[0] != 0 or (start[1:] < start[:-1]).any() or (sizes < 0).any() or sizes.max(initial=0) > MOST_COUNT:
            raise ValueError("it has negative numbers, or numbers beyond all bounds")
        samples = np.diff(start)
        if start[-1] != self.samples:
            raise ValueError(f"its shards have {start[-1]} samples, the manifest states {self.samples}")
        if sizes.sum() != self.statement.bytes:
            raise ValueError(f"its shards have {sizes.sum()} bytes, the manifest states {self.statement.bytes}")
        wide = np.flatnonzero(samples > sizes // self.least if self.least else [])
        if len(wide):
            shard = wide[0]
            named = name[shard].decode(errors="replace")
            raise ValueError(f"{named} has no room for {samples[shard]} samples in {sizes[shard]} bytes")

    def _check_places(self, name: npt.NDArray[np.bytes_], folder: npt.NDArray[Any], folders: list[str]) -> None:
        if len(folders) > _MOST_FOLDERS or (len(folder) and folder.max() >= len(folders)):
            raise ValueError(f"it has {len(folders)} folders, and a shard of another")
        for each in folders:
            check_folder(each)
        text = b"\n".join([*name.tolist(), b""]).decode("latin-1")
        if not re.fullmatch(rf"(?:{self.kind}-{SHARD_DIGITS}\.tar\n)*", text):
            pattern = re.compile(rf"{self.kind}-{SHARD_DIGITS}\.tar")
            other = next(each for each in text.split("\n") if not pattern.fullmatch(each))
            raise ValueError(f"a shard of {self.kind} is not called {other[:64]!r}")
        own = name[folder == folders.index("")] if "" in folders else name[:0]  # a mix may hold others' twice
        if len(np.unique(own)) != len(own):
            raise ValueError("it names a shard twice")
