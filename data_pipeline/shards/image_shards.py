"""Image shards as they are read: any sample is one range read, by an index that all processes of a node share.

images-*.tar, images-*.index.json   the shards as they were committed (image_commits.py)
index.bin                           the samples of all shards, in columns (sample_index.py)
shards.bin, manifest.json           what the data set is (manifest.py)
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import BinaryIO

import numpy as np

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError
from data_pipeline.images.transforms import Pixels
from data_pipeline.node.node_cache import NodeCache
from data_pipeline.shards.image_commits import (
    INDEX_SUFFIX,
    REMEDY,
    Extension,
    ImageSample,
    Quarantined,
    ShardIndex,
    first_damage,
    index_name,
    parse_index,
    read_index,
    shard_record,
    write_image_shard,
)
from data_pipeline.shards.manifest import FileStatement, ImageManifest, ImageShardRecord
from data_pipeline.shards.sample_index import SampleIndexWriter, holds_index, open_sample_index
from data_pipeline.shards.shard_table import ShardTable, shard_folder, shard_uri
from data_pipeline.storage.watchdog import reading

__all__ = [
    "INDEX_SUFFIX",
    "REMEDY",
    "Extension",
    "ImageSample",
    "ImageShards",
    "Quarantined",
    "ShardIndex",
    "finish_images",
    "first_damage",
    "holds_index",
    "index_name",
    "parse_index",
    "read_index",
    "read_indexes",
    "shard_record",
    "write_image_shard",
]

SCAN_BYTES = 32 * 2**20
"""Bytes that one read of a sequential scan asks for."""
_INDEX_READS = 16
"""Sidecar indexes that are read at a time."""


def read_indexes(uri: str, shards: Iterable[ImageShardRecord]) -> Iterator[tuple[ImageShardRecord, ShardIndex]]:
    """The sidecar index of each shard of the data set at `uri`, in order; a few are held at a time.

    Raises:
        CorruptShardError: as `read_index`.
    """
    left = iter(shards)
    with ThreadPoolExecutor(_INDEX_READS, "index") as pool:
        while some := list(islice(left, 4 * _INDEX_READS)):
            yield from zip(some, pool.map(lambda shard: read_index(uri, shard), some), strict=True)


def finish_images(
    uri: str,
    shards: Iterable[tuple[ImageShardRecord, ShardIndex]],
    *,
    classes: tuple[str, ...],
    split: str,
    quarantined: int = 0,
) -> ImageManifest:
    """Complete a data set whose shards are committed: index.bin, shards.bin, then manifest.json.

    What is written follows from the shards alone, so it may be repeated. One shard's index is in memory at a time.

    Args:
        uri: of the data set.
        shards: those that it consists of, in order, each with its sidecar index (`read_indexes`).
        classes: names by label.
        split: which part of the source it is.
        quarantined: images of the source that are left out.

    Raises:
        FoldtrainError: if an index is not about its shard, or has a label that is no class.
    """
    with SampleIndexWriter() as writer:

        def collect() -> Iterator[ImageShardRecord]:
            for record, index in shards:
                _check_index(uri, record, index, len(classes))
                writer.add(index)
                yield record

        table = ShardTable.of(ImageShardRecord, "images", collect())
        written = writer.write(uri)
    manifest = ImageManifest.build(
        samples=int(table.starts[-1]),
        classes=classes,
        split=split,
        quarantined=quarantined,
        shards=table,
        index=FileStatement(bytes=written.bytes, sha256=written.sha256),
    )
    manifest.write(uri)
    return manifest


def _check_index(uri: str, shard: ImageShardRecord, index: ShardIndex, classes: int) -> None:
    stated, found = (shard.samples, shard.bytes, shard.sha256), (len(index.key), index.size, index.sha256)
    if stated != found or max(index.label, default=-1) >= classes:
        path = storage.join(shard_folder(uri, shard.folder), index_name(shard.name))
        raise CorruptShardError(
            f"{path} is about another tar than the manifest, or has a label that is none of its {classes} classes: "
            "delete it and run foldtrain ingest again"
        )


class ImageShards:
    """The samples of a data set by number, in the order of its shards. Maps their index, reads images when asked.

    Args:
        uri: the data set.
        manifest: of it, if it was read already.
        cache: where this node keeps copies of its shards, if they are remote; None reads each image from the URI.
        index_cache: where this node keeps its copy of the index, if that is remote; None for `cache`, or the default.

    Raises:
        UsageError: if there is no complete data set at `uri`, or the cache is too small for its index.
        CorruptShardError: if its index is missing or damaged.
    """

    def __init__(
        self,
        uri: str,
        manifest: ImageManifest | None = None,
        cache: NodeCache | None = None,
        *,
        index_cache: NodeCache | None = None,
    ) -> None:
        self.uri = uri
        self._cache = cache
        copies = index_cache or cache or NodeCache()
        self.manifest = (manifest or ImageManifest.read(uri)).through(copies)
        self.count = self.manifest.samples
        self.starts = self.manifest.shards.starts
        """First sample of each shard, and the number of samples at the end."""
        self._index = open_sample_index(uri, self.manifest, copies)
        self.labels = self._index.label
        """Of each sample; read-only and mapped, as the keys."""
        self.keys = self._index.key
        self._offsets, self._lengths, self._crc32 = self._index.offset, self._index.length, self._index.crc32

    @property
    def held(self) -> str:
        """How images are read on this node, for people."""
        return "by range reads" if self._cache is None else "through copies of its shards on each node"

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Samples of each shard."""
        return tuple(np.diff(self.starts).tolist())

    def key(self, index: int) -> str:
        """The key of a sample."""
        return bytes(self.keys[index]).decode()

    def where(self, index: int) -> str:
        """A sample's shard and key, for messages."""
        return f"{shard_uri(self.uri, self.manifest.shards[self.shard_of(index)])}: sample {self.key(index)}"

    def shard_of(self, index: int) -> int:
        """The number of the shard that holds a sample."""
        return int(np.searchsorted(self.starts, index, side="right")) - 1

    def read(self, index: int) -> bytes:
        """The file of one image, by one range read.

        Raises:
            CorruptShardError: if its bytes are not those that were committed; it names shard and key.
        """
        shard = self.manifest.shards[self.shard_of(index)]
        return self._checked(index, self._read(shard, int(self._offsets[index]), int(self._lengths[index])))

    def scan(self, start: int, stop: int) -> Iterator[bytes]:
        """The files of images `start` to `stop`, read in large pieces and in order.

        Raises:
            CorruptShardError: as `read`.
        """
        while start < stop:
            number = self.shard_of(start)
            origin = int(self._offsets[start])
            here = self._offsets[start : min(stop, int(self.starts[number + 1]))]
            many = int(np.searchsorted(here, origin + SCAN_BYTES))
            last = start + many - 1
            length = int(self._offsets[last] + self._lengths[last]) - origin
            piece = self._read(self.manifest.shards[number], origin, length)
            for index in range(start, start + many):
                begin = int(self._offsets[index]) - origin
                yield self._checked(index, piece[begin : begin + int(self._lengths[index])])
            start += many

    def shard_samples(self, shard: int) -> Iterator[bytes]:
        """The files of all images of one shard, in order."""
        return self.scan(int(self.starts[shard]), int(self.starts[shard + 1]))

    def decode(self, index: int, transform: Callable[[bytes], Pixels], data: bytes | None = None) -> Pixels:
        """One image as a square of pixels, uint8 [H, W, 3]; `data` is its file, if it was read already.

        Raises:
            CorruptShardError: if it cannot be decoded or fitted; it names shard and key.
        """
        try:
            return transform(self.read(index) if data is None else data)
        except ValueError as error:
            raise CorruptShardError(f"{self.where(index)} {error}") from error

    def _read(self, shard: ImageShardRecord, offset: int, length: int) -> bytes:
        path = shard_uri(self.uri, shard)
        with reading(path):
            if self._cache is None or not storage.is_remote(path):
                try:
                    return storage.read_range(path, offset, length)
                except FileNotFoundError:
                    raise _missing(path) from None
            with self._open_copy(self._cache, shard, path) as file:
                return _pread(file, length, offset)

    def _open_copy(self, cache: NodeCache, shard: ImageShardRecord, path: str) -> BinaryIO:
        # check=False: each image has a CRC-32, by which it is checked when it is read
        return cache.open(_copy_name(shard), shard.bytes, lambda draft: _copy(path, shard, draft), check=False)

    def _checked(self, index: int, data: bytes) -> bytes:
        """The file of an image, if it is what was committed; a damaged copy of its shard is fetched again, once."""
        if not self._is_whole(index, data) and self._cache is not None:
            shard = self.manifest.shards[self.shard_of(index)]
            self._cache.recheck(_copy_name(shard))
            data = self._read(shard, int(self._offsets[index]), int(self._lengths[index]))
        if not self._is_whole(index, data):
            raise CorruptShardError(f"{self.where(index)} is corrupt (CRC-32 differs); {REMEDY}")
        return data

    def _is_whole(self, index: int, data: bytes) -> bool:
        return len(data) == int(self._lengths[index]) and zlib.crc32(data) == int(self._crc32[index])


def _missing(path: str) -> CorruptShardError:
    return CorruptShardError(f"{path} is missing: run foldtrain ingest again")


def _copy_name(shard: ImageShardRecord) -> str:
    return f"{shard.sha256}.tar"


def _copy(path: str, shard: ImageShardRecord, draft: BinaryIO) -> None:
    try:
        archive = storage.read_bytes(path, shard.bytes)
    except FileNotFoundError:
        raise _missing(path) from None
    if len(archive) != shard.bytes or storage.sha256(archive) != shard.sha256:
        raise CorruptShardError(f"{path} is corrupt (sha256 differs); {REMEDY}")
    draft.write(archive)
    draft.truncate()


def _pread(file: BinaryIO, length: int, offset: int) -> bytes:
    """Bytes of a copy; none if the disk cannot read them, which is a damage like others."""
    try:
        return os.pread(file.fileno(), length, offset)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return b""
