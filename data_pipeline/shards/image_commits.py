"""A shard of images as it is committed: a WebDataset tar, then a sidecar index, whose presence completes it.

images-00000.tar          <key>.jpg (or png, ...: the original bytes), <key>.cls (the label in digits), and so on
images-00000.index.json   extension, offset, length, label, key and CRC-32 of every sample, in columns
"""

from __future__ import annotations

import json
import operator
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, FoldtrainError
from data_pipeline.shards.shard_table import ImageShardRecord, shard_folder
from data_pipeline.storage.tar import BLOCK, MAX_NAME_BYTES, encode_member, write_tar
from data_pipeline.text import json_records
from data_pipeline.text.names import EXTENSION, Count, Sha256, check_keys

INDEX_SUFFIX = ".index.json"
REMEDY = "delete the shard and run foldtrain ingest again"


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


Extension = Annotated[str, StringConstraints(pattern=rf"^{EXTENSION.pattern}$")]
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
    path = storage.join(shard_folder(uri, shard.folder), index_name(shard.name))
    try:
        data = storage.read_bytes(path, json_records.MOST_BYTES)
    except FileNotFoundError:
        raise CorruptShardError(f"{path} is missing: run foldtrain ingest again") from None
    if storage.sha256(data) != shard.index_sha256:
        raise CorruptShardError(f"{path} is corrupt (sha256 differs): delete it and run foldtrain ingest again")
    return parse_index(path, data)


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
