"""Is a data set what its manifest says? Asked by every command before it starts work; imports no torch.

Sizes are always compared. Digests are compared too where that takes less than a moment: on local data sets up to 1 GiB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from data_pipeline import image_shards, storage, token_shards
from data_pipeline.errors import CorruptShardError
from data_pipeline.manifest import ImageManifest, ImageShardRecord, ShardRecord, TokenManifest

_Shard = TypeVar("_Shard", bound=ShardRecord)

DIGEST_LIMIT = 2**30
"""Bytes up to which a local data set is read in full."""


def check_images(uri: str, *, every_byte: bool = False) -> ImageManifest:
    """The manifest of the image shards at `uri`, once they are found to match it.

    Args:
        uri: of the data set.
        every_byte: compare digests wherever and however large it is.

    Raises:
        UsageError: if there is no complete data set.
        CorruptShardError: if a shard is missing or damaged; it names the shard and the first bad key.
    """
    manifest = ImageManifest.read(uri)

    def damage(shard: ImageShardRecord, archive: bytes) -> str:
        return image_shards.first_damage(image_shards.read_index(uri, shard), archive)

    _check_shards(uri, manifest.shards, damage, image_shards.REMEDY, every_byte)
    for shard in manifest.shards:
        image_shards.read_index(uri, shard)
    return manifest


def check_tokens(uri: str, *, every_byte: bool = False) -> TokenManifest:
    """The manifest of the token shards at `uri`, once they are found to match it.

    Args:
        uri: of the data set.
        every_byte: compare digests wherever and however large it is.

    Raises:
        UsageError: if there is no complete data set.
        CorruptShardError: if a shard is missing or damaged; it names the shard and the first bad key.
    """
    manifest = TokenManifest.read(uri)

    def damage(shard: ShardRecord, archive: bytes) -> str:
        return token_shards.first_damage(shard.name, archive)

    _check_shards(uri, manifest.shards, damage, token_shards.REMEDY, every_byte)
    return manifest


def _check_shards(
    uri: str, shards: Sequence[_Shard], damage: Callable[[_Shard, bytes], str], remedy: str, every_byte: bool
) -> None:
    sizes = storage.walk(uri)
    total = sum(shard.bytes for shard in shards)
    digest = every_byte or (not storage.is_remote(uri) and total <= DIGEST_LIMIT)
    for shard in shards:
        path = storage.join(uri, shard.name)
        if shard.name not in sizes:
            raise CorruptShardError(f"{path} is missing; {remedy.partition(' and ')[2]}")
        if sizes[shard.name] == shard.bytes and not digest:
            continue
        archive = storage.read_bytes(path)
        if len(archive) != shard.bytes or storage.sha256(archive) != shard.sha256:
            raise CorruptShardError(f"{path}: {damage(shard, archive)}; {remedy}")
