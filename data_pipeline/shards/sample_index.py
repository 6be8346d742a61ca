"""The samples of an image data set as columns: index.bin beside manifest.json, which states its digest.

    offset, length   uint32 or uint64   where the file of each image is in its shard's tar
    crc32            uint32             of that file
    label            int32              index into the manifest's classes
    extension        uint               which of the texts `extensions` the file ends in
    key              S                  name of each sample: of one width, which for keys of ImageNet's kind takes fewer
                                        bytes than an offset for each, and numpy reads it as it lies

It is made of the sidecar indexes of the shards, one shard at a time, and memory-mapped by whoever reads samples.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from data_pipeline import storage
from data_pipeline.node.node_cache import NodeCache
from data_pipeline.shards.column_file import (
    Column,
    Columns,
    Place,
    Written,
    check_shapes,
    is_whole,
    narrowest,
    open_columns,
    write_columns,
)
from data_pipeline.shards.manifest import FileStatement, ImageManifest
from data_pipeline.storage.local_disk import disk_errors
from data_pipeline.storage.tar import BLOCK, MAX_NAME_BYTES
from data_pipeline.text.names import EXTENSION, MOST_COUNT, MOST_KEY_BYTES, check_key_bytes

if TYPE_CHECKING:
    from data_pipeline.shards.image_commits import ShardIndex

INDEX_NAME = "index.bin"
INDEX_KIND = "index of images"
_ROWS = 2**18
"""Samples that are looked at, or written, at a time."""
_SPOOLED = {"offset": "<u8", "length": "<u8", "crc32": "<u4", "label": "<i4", "extension": "<u4"}


@dataclass(frozen=True)
class SampleIndex:
    """What is known of each sample, by its number in the data set; all arrays are read-only."""

    label: npt.NDArray[np.int32]
    key: npt.NDArray[np.bytes_]
    offset: npt.NDArray[np.unsignedinteger[Any]]
    length: npt.NDArray[np.unsignedinteger[Any]]
    crc32: npt.NDArray[np.uint32]
    extension: npt.NDArray[np.unsignedinteger[Any]]
    """Codes: numbers in `extensions`."""
    extensions: tuple[str, ...]


class SampleIndexWriter:
    """Collects the samples of a data set shard by shard, in files of this machine ($TMPDIR), and writes its index.

    Use it as a context manager: at the end the files are gone.
    """

    def __init__(self) -> None:
        self._files = ExitStack()
        self._spools: dict[str, BinaryIO] = {}
        self._keys: list[tuple[int, int]] = []
        """Of each shard, the samples and the width of their keys."""
        self._extensions: dict[str, int] = {}
        self._most = {"offset": 0, "length": 0}

    def __enter__(self) -> Self:
        """Open the files."""
        with disk_errors(Path(tempfile.gettempdir())):
            for name in (*_SPOOLED, "key"):
                self._spools[name] = self._files.enter_context(tempfile.TemporaryFile())
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the files."""
        self._files.close()

    def add(self, index: ShardIndex) -> None:
        """The samples of the next shard."""
        columns: dict[str, list[int]] = {name: getattr(index, name) for name in ("offset", "length", "crc32", "label")}
        columns["extension"] = [self._extensions.setdefault(each, len(self._extensions)) for each in index.extension]
        for name in self._most:
            self._most[name] = max(self._most[name], max(columns[name], default=0))
        keys = np.array([key.encode() for key in index.key], "S")
        with disk_errors(Path(tempfile.gettempdir())):
            for name, dtype in _SPOOLED.items():
                self._spools[name].write(np.array(columns[name], dtype).data)
            self._spools["key"].write(keys.data)
        self._keys.append((len(keys), keys.dtype.itemsize))

    def write(self, uri: str) -> Written:
        """Put index.bin into the folder of a data set."""
        samples = sum(count for count, _ in self._keys)
        dtypes = _SPOOLED | {"extension": narrowest(max(0, len(self._extensions) - 1))}
        most = max(self._most.values())
        dtypes |= dict.fromkeys(self._most, "<u4" if most < 2**32 else "<u8")
        columns = {name: Column(dtypes[name], (samples,), self._pieces(name)) for name in _SPOOLED}
        width = max((width for _, width in self._keys), default=1)
        columns["key"] = Column(f"|S{width}", (samples,), self._key_pieces())
        return write_columns(storage.join(uri, INDEX_NAME), INDEX_KIND, columns, {"extensions": list(self._extensions)})

    def _pieces(self, name: str) -> Iterator[npt.NDArray[Any]]:
        spool, dtype = self._spools[name], np.dtype(_SPOOLED[name])
        spool.seek(0)
        while piece := spool.read(_ROWS * dtype.itemsize):
            yield np.frombuffer(piece, dtype)

    def _key_pieces(self) -> Iterator[npt.NDArray[Any]]:
        spool = self._spools["key"]
        spool.seek(0)
        for count, width in self._keys:
            yield np.frombuffer(spool.read(count * width), f"|S{width}")


def open_sample_index(uri: str, manifest: ImageManifest, cache: NodeCache) -> SampleIndex:
    """The index of a data set's samples, memory-mapped: where it lies on a disk, else in one copy for the node.

    Args:
        uri: of the data set.
        manifest: of it.
        cache: where this node keeps copies.

    Raises:
        CorruptShardError: if the index is missing, not the one that the manifest names, or cannot be.
        UsageError: if the cache is too small for it.
    """
    if manifest.index is None:
        return _from_columns(_no_samples())
    place = index_place(uri, manifest, manifest.index)
    check = functools.partial(check_samples, manifest)
    # The name follows from all of the manifest: the content is checked against its classes and its shards.
    return _from_columns(open_columns(place, check, f"{manifest.fingerprint}.index", cache))


def holds_index(uri: str, manifest: ImageManifest) -> bool:
    """Whether the index that a manifest names is there and whole; it is read piece by piece."""
    return manifest.index is None or is_whole(index_place(uri, manifest, manifest.index))


def index_place(uri: str, manifest: ImageManifest, index: FileStatement) -> Place:
    """Where the index of a data set is, and what the manifest says of it."""
    stated = Written(index.bytes, index.sha256)
    return Place(storage.join(uri, INDEX_NAME), INDEX_KIND, stated, f"{manifest.remedy} again")


def _from_columns(columns: Columns) -> SampleIndex:
    return SampleIndex(**columns.arrays, extensions=tuple(columns.texts["extensions"]))


def _no_samples() -> Columns:
    arrays: dict[str, npt.NDArray[Any]] = {name: np.empty(0, dtype) for name, dtype in _SPOOLED.items()}
    return Columns(arrays | {"key": np.empty(0, "S1")}, {"extensions": []})


def check_samples(manifest: ImageManifest, columns: Columns) -> None:
    """Whether an index can be of a data set. Whoever wrote it, nothing in it leads out of a shard or of the classes.

    Raises:
        ValueError: if not; it says which sample cannot be.
    """
    expected: dict[str, tuple[str, int | None]] = dict.fromkeys(("offset", "length", "extension"), ("u", None))
    check_shapes(columns, expected | {"crc32": ("u4", None), "label": ("i4", None), "key": ("S", None)}, "extensions")
    held, starts, sizes = columns.arrays, manifest.shards.starts, manifest.shards.sizes
    if any(len(column) != manifest.samples for column in held.values()):
        raise ValueError(f"its columns are not of {manifest.samples} samples")
    extensions = columns.texts["extensions"]
    if not all(map(EXTENSION.fullmatch, extensions)):
        raise ValueError("one of its extensions is none")
    longest = max(map(len, extensions), default=0)
    most_key = min(MOST_KEY_BYTES, MAX_NAME_BYTES - 1 - longest)
    end = 0
    for start in range(0, manifest.samples, _ROWS):
        here = slice(start, start + _ROWS)
        label, extension, key = held["label"][here], held["extension"][here], held["key"][here]
        _refuse((label < 0) | (label >= len(manifest.classes)), key, f"has a label of none of {len(manifest.classes)}")
        _refuse(extension >= len(extensions), key, "has an extension of none that is listed")
        if key.dtype.itemsize > most_key:
            _refuse(np.char.str_len(key) > most_key, key, "has a key that is too long")
        check_key_bytes(key)
        end = _check_places(start, held["offset"][here], held["length"][here], key, end, starts, sizes)
        columns.release()


def _check_places(
    start: int,
    offset: npt.NDArray[Any],
    length: npt.NDArray[Any],
    key: npt.NDArray[np.bytes_],
    end: int,
    starts: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
) -> int:
    """No image of these reaches beyond its tar, or into another; `end` is that of the sample before the first of them.

    Returns:
        The end of the last.
    """
    _refuse((offset > MOST_COUNT) | (length > MOST_COUNT), key, "has a place beyond all bounds")
    begins, ends = offset.astype(np.int64), offset.astype(np.int64) + length.astype(np.int64)
    before = np.concatenate([[end], ends[:-1]])
    first, last = np.searchsorted(starts, [start, start + len(key)])
    before[starts[first:last] - start] = BLOCK
    _refuse(begins < before, key, "overlaps the sample before it")
    shard = np.searchsorted(starts, np.arange(start, start + len(key)), side="right") - 1
    _refuse(ends > sizes[shard], key, "reaches beyond its tar")
    return int(ends[-1])


def _refuse(wrong: npt.NDArray[np.bool_], key: npt.NDArray[np.bytes_], what: str) -> None:
    if wrong.any():
        raise ValueError(f"sample {key[int(wrong.argmax())].decode(errors='replace')[:64]!r} {what}")
