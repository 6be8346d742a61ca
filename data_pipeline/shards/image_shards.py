"""Image shards: plain WebDataset tars with a sidecar index, so that any sample is one range read.

images-00000.tar          <key>.jpg (or png, ...: the original bytes), <key>.cls (the label in digits), and so on
images-00000.index.json   extension, offset, length, label, key and CRC-32 of every sample, in columns
manifest.json             what the data set is
"""

from __future__ import annotations

import errno
import json
import operator
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, Any, BinaryIO, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, FoldtrainError
from data_pipeline.images.transforms import Pixels
from data_pipeline.node.node_cache import NodeCache
from data_pipeline.shards.manifest import ImageManifest, ImageShardRecord
from data_pipeline.shards.shard_table import shard_folder, shard_uri
from data_pipeline.storage.tar import BLOCK, MAX_NAME_BYTES, encode_member, write_tar
from data_pipeline.storage.watchdog import reading
from data_pipeline.text import json_records
from data_pipeline.text.names import Count, Sha256, check_keys

INDEX_SUFFIX = ".index.json"
REMEDY = "delete the shard and run foldtrain ingest again"
_INDEX_READS = 16
SCAN_BYTES = 32 * 2**20
"""Bytes that one read of a sequential scan asks for."""


class ImageSample(NamedTuple):
    """An image as it is stored."""

    key: str
    label: int
    extension: str
    data: bytes

    def files(self) -> list[tuple[str, bytes]]:
        """Its tar members."""
        return [(f"{self.key}.{self.extension}", self.data), (f"{self.key}.cls", str(self.label).encode())]


class Quarantined(NamedTuple):
    """An image of the source that is left out, because it cannot be decoded."""

    key: str
    """The key that it would have."""
    source: str
    """What the source calls it."""
    reason: str
    """What is wrong with it."""


Extension = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]{1,8}$")]
"""What an image's file ends in."""


@dataclass(frozen=True)
class ShardIndex:
    """Where each sample of a shard is, and what it must be."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    plan: str
    """Fingerprint of what was planned to be in the shard."""
    size: Count
    """Bytes of the tar."""
    sha256: Sha256
    """Digest of the tar."""
    key: list[str]
    label: list[Annotated[int, Field(strict=True, ge=0, lt=2**31)]]
    extension: list[Extension]
    offset: list[Count]
    length: list[Count]
    crc32: list[Annotated[int, Field(strict=True, ge=0, lt=2**32)]]
    quarantined: list[dict[str, str]] = field(default_factory=list)
    """What was planned to be in the shard and is not, as `Quarantined`. Left out of the file if there is none."""

    def encode(self) -> bytes:
        """The sidecar's bytes."""
        record = {name: value for name, value in vars(self).items() if name != "quarantined" or value}
        return (json.dumps(record, sort_keys=True, ensure_ascii=False) + "\n").encode()

    def check(self) -> None:
        """Whether its columns fit each other and the tar.

        Raises:
            ValueError: if not; it says what does not.
        """
        columns: tuple[list[Any], ...] = (self.key, self.label, self.extension, self.offset, self.length, self.crc32)
        if len(set(map(len, columns))) > 1:
            raise ValueError("its columns have different lengths")
        if any(entry.keys() != set(Quarantined._fields) for entry in self.quarantined):
            raise ValueError(f"an image that was left out has other fields than {', '.join(Quarantined._fields)}")
        check_keys([*self.key, *(entry["key"] for entry in self.quarantined)])
        names = (f"{key}.{extension}".encode() for key, extension in zip(self.key, self.extension, strict=True))
        if max(map(len, names), default=0) > MAX_NAME_BYTES:
            raise ValueError(f"a key is too long for a tar member's name of {MAX_NAME_BYTES} bytes")
        starts = [*self.offset, self.size]
        ends = [BLOCK, *map(operator.add, self.offset, self.length)]
        if any(map(operator.lt, starts, ends)):
            raise ValueError("images overlap each other, or reach beyond the tar")


_INDEX: TypeAdapter[ShardIndex] = TypeAdapter(ShardIndex)


def index_name(shard: str) -> str:
    """The sidecar of a shard."""
    return shard.removesuffix(".tar") + INDEX_SUFFIX


def write_image_shard(
    uri: str, name: str, samples: Iterable[ImageSample], plan: str, quarantined: Iterable[Quarantined] = ()
) -> ImageShardRecord:
    """Commit a shard: its tar, then its index, whose presence means that the tar is complete."""
    columns: dict[str, list[Any]] = {"key": [], "label": [], "extension": [], "crc32": []}
    files = []
    for sample in samples:
        files += sample.files()
        for column, value in (("key", sample.key), ("label", sample.label), ("extension", sample.extension)):
            columns[column].append(value)
        columns["crc32"].append(zlib.crc32(sample.data))
    archive, members = write_tar(files)
    images = members[::2]
    index = ShardIndex(
        plan=plan,
        size=len(archive),
        sha256=storage.sha256(archive),
        offset=[member.offset for member in images],
        length=[member.length for member in images],
        quarantined=[entry._asdict() for entry in quarantined],
        **columns,
    )
    data = index.encode()
    if len(data) > json_records.MOST_BYTES:
        raise FoldtrainError(
            f"{name} would have an index of {len(data):,} bytes: set smaller shards (data.shard_bytes)"
        )
    storage.commit_bytes(storage.join(uri, name), archive)
    storage.commit_bytes(storage.join(uri, index_name(name)), data)
    return shard_record(name, index, data)


def shard_record(name: str, index: ShardIndex, index_bytes: bytes) -> ImageShardRecord:
    """How a manifest names a shard."""
    return ImageShardRecord(
        name=name,
        samples=len(index.key),
        bytes=index.size,
        sha256=index.sha256,
        index_sha256=storage.sha256(index_bytes),
    )


def parse_index(uri: str, data: bytes) -> ShardIndex:
    """A sidecar's content.

    Raises:
        CorruptShardError: if it is none; it names the file.
    """
    try:
        index = _INDEX.validate_python(json_records.parse(data))
        index.check()
    except ValueError as error:
        reason = json_records.first_problem(error) if isinstance(error, ValidationError) else error
        raise CorruptShardError(
            f"{uri} is no index of a shard ({reason}): delete it and run foldtrain ingest again"
        ) from None
    return index


def read_index(uri: str, shard: ImageShardRecord) -> ShardIndex:
    """The sidecar of a shard of the data set at `uri`.

    Raises:
        CorruptShardError: if it is missing, or is not the one that the manifest names.
    """
    path = storage.join(shard_folder(uri, shard), index_name(shard.name))
    try:
        data = storage.read_bytes(path, json_records.MOST_BYTES)
    except FileNotFoundError:
        raise CorruptShardError(f"{path} is missing: run foldtrain ingest again") from None
    if storage.sha256(data) != shard.index_sha256:
        raise CorruptShardError(f"{path} is corrupt (sha256 differs): delete it and run foldtrain ingest again")
    return parse_index(path, data)


class ImageShards:
    """The samples of a data set by number, in the order of its shards. Holds the indexes, reads images when asked.

    Args:
        uri: the data set.
        manifest: of it, if it was read already.
        cache: where this node keeps copies of its shards, if they are remote; None reads each image from the URI.

    Raises:
        UsageError: if there is no complete data set at `uri`.
        CorruptShardError: if an index is missing or damaged.
    """

    def __init__(self, uri: str, manifest: ImageManifest | None = None, cache: NodeCache | None = None) -> None:
        self.uri = uri
        self._cache = cache if storage.is_remote(uri) else None
        self.manifest = manifest or ImageManifest.read(uri)
        self.count = self.manifest.samples
        self.starts = self.manifest.shards.starts
        with ThreadPoolExecutor(_INDEX_READS, "index") as pool:
            indexes = list(pool.map(self._index, self.manifest.shards))
        self.labels: npt.NDArray[np.int32] = _column(indexes, "label", np.int32)
        self.keys: npt.NDArray[np.bytes_] = np.array([key.encode() for index in indexes for key in index.key], "S")
        self._offsets = _column(indexes, "offset", np.int64)
        self._lengths = _column(indexes, "length", np.int64)
        self._crc32 = _column(indexes, "crc32", np.uint32)

    def _index(self, shard: ImageShardRecord) -> ShardIndex:
        """The index of a shard, once it is known to be about the shard of the manifest."""
        index = read_index(self.uri, shard)
        classes = len(self.manifest.classes)
        stated, found = (shard.samples, shard.bytes, shard.sha256), (len(index.key), index.size, index.sha256)
        if stated != found or max(index.label, default=-1) >= classes:
            path = storage.join(shard_folder(self.uri, shard), index_name(shard.name))
            raise CorruptShardError(
                f"{path} is about another tar than the manifest, or has a label that is none of its {classes} classes: "
                "delete it and run foldtrain ingest again"
            )
        return index

    @property
    def held(self) -> str:
        """How images are read on this node, for people."""
        return "by range reads" if self._cache is None else "in copies of their shards"

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
            if self._cache is None:
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


def first_damage(index: ShardIndex, archive: bytes) -> str:
    """Which sample of a damaged shard is the first that is not as it was committed, in words."""
    for row, (key, offset, length) in enumerate(zip(index.key, index.offset, index.length, strict=True)):
        data = archive[offset : offset + length]
        if len(data) != length or zlib.crc32(data) != index.crc32[row]:
            return f"sample {key} is corrupt (CRC-32 differs)"
        sample = ImageSample(key, index.label[row], index.extension[row], data)
        written = b"".join(encode_member(*file) for file in sample.files())
        if archive[offset - BLOCK : offset - BLOCK + len(written)] != written:
            return f"sample {key} is corrupt (its tar headers or its label differ)"
    return f"its end is corrupt, after the last sample {index.key[-1]}" if index.key else "it should hold no samples"


def _column(indexes: list[ShardIndex], name: str, dtype: Any) -> npt.NDArray[Any]:
    columns = [np.array(getattr(index, name), dtype=dtype) for index in indexes]
    return np.concatenate([np.empty(0, dtype), *columns])
