"""A file of columns that is memory-mapped: the shards of a data set (shards.bin), the samples of one (index.bin).

    "foldcols", version, bytes of the head, CRC-32 of the head      20 bytes
    head: JSON; kind, bytes of the file, dtype, shape and offset of each column, and short lists of text
    columns: plain little-endian arrays, each at a multiple of 64 bytes

A manifest names the sha256 of the whole file. Anybody may have written both, so a head is checked before a column is
looked at, and the content by whoever knows what it means. The same columns give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError
from data_pipeline.node.copy_seal import SEAL_BYTES
from data_pipeline.node.node_cache import NodeCache
from data_pipeline.storage.local_disk import open_file
from data_pipeline.storage.watchdog import reading
from data_pipeline.text import json_records
from data_pipeline.text.names import Count

FORMAT_VERSION = 1
PIECE_BYTES = 72 * 2**20
"""Bytes of a file that one request asks for, and that are in memory at a time."""
_DIGEST_BYTES = 8 * 2**20
_PREFIX = struct.Struct("<8sIII")
_MAGIC = b"foldcols"
_ALIGNMENT = 64
_MOST_HEAD_BYTES = 2**20
_MOST_COLUMNS = 64
_DTYPE = r"^(?:\|u1|<u[248]|<i[48]|\|S[1-9]\d{0,3})$"


@dataclass(frozen=True)
class Columns:
    """What a file holds. The arrays are read-only, and views of the file where it is mapped."""

    arrays: dict[str, npt.NDArray[Any]]
    texts: dict[str, list[str]]
    """Short lists, which codes of a column point into."""
    release: Callable[[], object] = field(default=lambda: None, compare=False)
    """Takes what was read of a mapped file off this process's memory; who reads it again, maps it again."""


class Column(NamedTuple):
    """A column that is about to be written."""

    dtype: str
    shape: tuple[int, ...]
    pieces: Iterable[npt.NDArray[Any]]
    """Its rows in order, a few at a time; they are written as `dtype`."""


class Written(NamedTuple):
    """What a manifest states of a file."""

    bytes: int
    sha256: str


def column(array: npt.NDArray[Any]) -> Column:
    """A column that is in memory."""
    return Column(array.dtype.str, array.shape, [array])


def narrowest(most: int) -> str:
    """The smallest unsigned dtype that holds numbers from 0 to `most`."""
    return next(dtype for dtype, bits in (("|u1", 8), ("<u2", 16), ("<u4", 32), ("<u8", 64)) if most < 2**bits)


def write_columns(
    uri: str, kind: str, columns: Mapping[str, Column], texts: Mapping[str, Sequence[str]] | None = None
) -> Written:
    """Put a file of columns, piece by piece; it is there whole or not at all.

    Raises:
        ValueError: if its lists of text are too long for its head.
    """
    measured = _Measure()
    storage.write_stream(uri, lambda draft: measured.all(encode_columns(kind, columns, texts), draft.write))
    return measured.written()


def measure_columns(
    kind: str, columns: Mapping[str, Column], texts: Mapping[str, Sequence[str]] | None = None
) -> Written:
    """What a manifest will state of a file, before it is written.

    Raises:
        ValueError: as `write_columns`.
    """
    measured = _Measure()
    measured.all(encode_columns(kind, columns, texts))
    return measured.written()


class _Measure:
    """Size and digest of what passes."""

    def __init__(self) -> None:
        self._size, self._digest = 0, hashlib.sha256()

    def all(self, pieces: Iterable[bytes | memoryview], then: Callable[[bytes | memoryview], object] = len) -> None:
        for piece in pieces:
            self._size += len(piece)
            self._digest.update(piece)
            then(piece)
            del piece

    def written(self) -> Written:
        return Written(self._size, self._digest.hexdigest())


def encode_columns(
    kind: str, columns: Mapping[str, Column], texts: Mapping[str, Sequence[str]] | None = None
) -> Iterator[bytes | memoryview]:
    """The bytes of a file, a few at a time.

    Raises:
        ValueError: as `write_columns`.
    """
    head = _head(kind, columns, texts or {})
    yield head
    position = len(head)
    for each in columns.values():
        yield bytes(-position % _ALIGNMENT)
        position, end = _aligned(position), _aligned(position) + _bytes_of(each.dtype, each.shape)
        for piece in each.pieces:
            array = np.ascontiguousarray(piece, each.dtype)
            position += array.nbytes
            if array.size:
                yield array.reshape(-1).view(np.uint8).data
        assert position == end, (position, end)


def _head(kind: str, columns: Mapping[str, Column], texts: Mapping[str, Sequence[str]]) -> bytes:
    """The prefix and head of a file. Offsets count from the end of the head, aligned."""
    places, position = {}, 0
    for name, each in columns.items():
        position = _aligned(position)
        places[name] = {"dtype": each.dtype, "shape": list(each.shape), "offset": position}
        position += _bytes_of(each.dtype, each.shape)
    record = {"kind": kind, "bytes": position, "columns": places, "texts": {k: list(v) for k, v in texts.items()}}
    head = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
    if len(head) > _MOST_HEAD_BYTES:
        raise ValueError(f"the head of a {kind} would have {len(head):,} bytes, and has at most {_MOST_HEAD_BYTES:,}")
    return _PREFIX.pack(_MAGIC, FORMAT_VERSION, len(head), zlib.crc32(head)) + head


def _aligned(position: int) -> int:
    return position + -position % _ALIGNMENT


def _bytes_of(dtype: str, shape: Sequence[int]) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


Check = Callable[[Columns], None]
"""Raises a ValueError if the content cannot be; it says what."""


class Place(NamedTuple):
    """Where a file is read from, and what it has to be."""

    uri: str
    kind: str
    stated: Written
    """What the manifest says."""
    remedy: str
    """What to do about a damaged one, for the error."""


def open_columns(place: Place, check: Check, copy_name: str = "", cache: NodeCache | None = None) -> Columns:
    """A file that a manifest names: mapped where it lies on a disk, else through one copy for all of the node.

    Digest and content are checked when a process maps a file where it lies, and when the copy is made; a process that
    opens the copy compares it with its seal.

    Args:
        place: of the file.
        check: of its content.
        copy_name: of the copy, which must follow from all that `check` compares the content with.
        cache: where this node keeps copies; without one a remote file is held in memory.

    Raises:
        CorruptShardError: if it is missing, or not the one that the manifest names, or cannot be.
        UsageError: if the cache is too small for it.
    """
    try:
        if not storage.is_remote(place.uri):
            with open_file(storage.local_path(place.uri)) as file:
                return _checked(place, _Held(file), check)
        if cache is None:
            return _checked(place, _Held(b"".join(_pieces(place))), check)
        with cache.open(copy_name, place.stated.bytes, lambda draft: _make_copy(place, check, draft)) as copy:
            return parse_columns(_Held(copy).array[:-SEAL_BYTES], place.kind)
    except FileNotFoundError:
        raise CorruptShardError(f"{place.uri} is missing: {place.remedy}") from None
    except ValueError as error:
        raise CorruptShardError(f"{place.uri} is no {place.kind} ({error}): {place.remedy}") from None


def is_whole(place: Place) -> bool:
    """Whether a file is there with the digest that is stated; it is read piece by piece."""
    measured = _Measure()
    try:
        measured.all(_pieces(place))
    except (FileNotFoundError, ValueError):
        return False
    return measured.written() == place.stated


def _checked(place: Place, held: _Held, check: Check) -> Columns:
    array = held.array
    if len(array) != place.stated.bytes:
        raise ValueError(f"it has {len(array):,} bytes, and {place.stated.bytes:,} in the manifest")
    digest = hashlib.sha256()
    for start in range(0, len(array), _DIGEST_BYTES):
        digest.update(array[start : start + _DIGEST_BYTES].data)
        held.release()
    if digest.hexdigest() != place.stated.sha256:
        raise ValueError("its sha256 is not that of the manifest")
    columns = replace(parse_columns(array, place.kind), release=held.release)
    check(columns)
    held.release()
    return columns


def _make_copy(place: Place, check: Check, draft: BinaryIO) -> None:
    for piece in _pieces(place):
        draft.write(piece)
        del piece  # before the next one is read
    draft.flush()
    _checked(place, _Held(draft), check)


def _pieces(place: Place) -> Iterator[bytes]:
    """The bytes of a file; no question for its size, which the manifest states."""
    for start in range(0, place.stated.bytes, PIECE_BYTES):
        length = min(PIECE_BYTES, place.stated.bytes - start)
        yield _read_piece(place, start, length)  # not held here while the next one is read


def _read_piece(place: Place, start: int, length: int) -> bytes:
    with reading(place.uri):
        piece = storage.read_range(place.uri, start, length)
    if len(piece) != length:
        raise ValueError(f"it has {start + len(piece):,} bytes, and {place.stated.bytes:,} in the manifest")
    return piece


class _Held:
    """All bytes of a file, mapped, or of one that is in memory.

    A map keeps the file open, and with it the lock that keeps a copy from being removed.
    """

    def __init__(self, source: BinaryIO | bytes) -> None:
        self._map: mmap.mmap | None = None
        if not isinstance(source, bytes) and os.fstat(source.fileno()).st_size:
            self._map = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)
        self.array = np.frombuffer(self._map or (source if isinstance(source, bytes) else b""), np.uint8)

    def release(self) -> None:
        """Count its pages as this process's no more; they stay in the node's page cache."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)


def parse_columns(held: npt.NDArray[np.uint8], kind: str) -> Columns:
    """The columns of a file, as views of its bytes.

    Raises:
        ValueError: if it is no file of columns, or of another kind; it says why.
    """
    record, start = _read_head(held, kind)
    body = held[_aligned(start) :]
    if len(body) != record.bytes:
        raise ValueError(f"its columns have {len(body):,} bytes, and {record.bytes:,} in its head")
    return Columns({name: _view(body, name, each) for name, each in record.columns.items()}, record.texts)


class StoredColumn(NamedTuple):
    """Where a column lies in its file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    """Of its first byte in the file."""


def find_columns(place: Place) -> tuple[dict[str, StoredColumn], dict[str, list[str]]]:
    """Where the columns of a file lie, and its texts, from its head alone: for who reads rows by ranges.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: as `parse_columns`.
    """
    first = storage.read_range(place.uri, 0, min(place.stated.bytes, _PREFIX.size + _MOST_HEAD_BYTES))
    record, start = _read_head(np.frombuffer(first, np.uint8), place.kind)
    body = place.stated.bytes - _aligned(start)
    if body != record.bytes:
        raise ValueError(f"its columns have {body:,} bytes, and {record.bytes:,} in its head")
    found = {}
    for name, each in record.columns.items():
        if each.offset + _bytes_of(each.dtype, each.shape) > body:
            raise ValueError(f"its column {name[:64]!r} reaches beyond its end")
        found[name] = StoredColumn(np.dtype(each.dtype), tuple(each.shape), _aligned(start) + each.offset)
    return found, record.texts


def _read_head(held: npt.NDArray[np.uint8], kind: str) -> tuple[_Head, int]:
    """The head of a file from its first bytes, and where it ends."""
    if len(held) < _PREFIX.size:
        raise ValueError(f"it has {len(held)} bytes")
    magic, version, length, crc32 = _PREFIX.unpack(held[: _PREFIX.size].tobytes())
    if magic != _MAGIC:
        raise ValueError("it does not begin as one")
    if version != FORMAT_VERSION:
        raise ValueError(f"it has version {version} of the format, and version {FORMAT_VERSION} is read here")
    start = _PREFIX.size + length
    if length > _MOST_HEAD_BYTES or start > len(held):
        raise ValueError(f"its head should have {length:,} bytes")
    head = held[_PREFIX.size : start].tobytes()
    if zlib.crc32(head) != crc32:
        raise ValueError("the CRC-32 of its head differs")
    record = _parse_head(head)
    if record.kind != kind:
        raise ValueError(f"it is of the kind {record.kind[:64]!r}")
    return record, start


class _ColumnHead(BaseModel):
    model_config = ConfigDict(extra="forbid")

    dtype: Annotated[str, StringConstraints(pattern=_DTYPE)]
    shape: Annotated[list[Count], Field(min_length=1, max_length=2)]
    offset: Annotated[Count, Field(multiple_of=_ALIGNMENT)]


class _Head(BaseModel):
    """The JSON of a head."""

    model_config = ConfigDict(extra="forbid")

    kind: str
    bytes: Count
    columns: Annotated[dict[str, _ColumnHead], Field(max_length=_MOST_COLUMNS)]
    texts: dict[str, list[str]]


def _parse_head(head: bytes) -> _Head:
    try:
        return _Head.model_validate(json_records.parse(head))
    except ValidationError as error:
        raise ValueError(f"its head: {json_records.first_problem(error)}") from None


def _view(body: npt.NDArray[np.uint8], name: str, each: _ColumnHead) -> npt.NDArray[Any]:
    size = _bytes_of(each.dtype, each.shape)
    if each.offset + size > len(body):
        raise ValueError(f"its column {name[:64]!r} reaches beyond its end")
    return body[each.offset : each.offset + size].view(each.dtype).reshape(each.shape)


def check_shapes(columns: Columns, expected: Mapping[str, tuple[str, int | None]], *texts: str) -> None:
    """The columns are these and no others, and so are the lists of text.

    Args:
        columns: of a file.
        expected: by name, how the elements are spelled by numpy (i8, u1) or begin to be (u, S), and the elements of a
            row, None for one.
        texts: names of the lists of text.

    Raises:
        ValueError: if not; it says why.
    """
    if columns.arrays.keys() != expected.keys():
        raise ValueError(f"its columns are {', '.join(sorted(columns.arrays))}")
    if columns.texts.keys() != set(texts):
        raise ValueError(f"its lists of text are {', '.join(sorted(columns.texts)) or 'none'}")
    for name, (kind, width) in expected.items():
        held = columns.arrays[name]
        if not held.dtype.str[1:].startswith(kind) or held.shape[1:] != (() if width is None else (width,)):
            raise ValueError(f"its column {name} holds {held.dtype} {held.shape}")
