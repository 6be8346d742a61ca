"""Is a data set what its manifest says? Asked by every command before it starts work; imports no torch.

Sizes are always compared. Digests are compared too where that takes less than a moment: on local data sets up to 1 GiB.
`foldtrain verify` asks for more (data_pipeline.tools.verifying).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError
from data_pipeline.node.node_cache import NodeCache
from data_pipeline.shards import image_shards, token_shards
from data_pipeline.shards.edits import parent_uri
from data_pipeline.shards.manifest import ImageManifest, ImageShardRecord, ShardRecord, TokenManifest, shard_uri
from data_pipeline.shards.sample_index import INDEX_NAME, open_sample_index
from data_pipeline.shards.shard_table import shard_folder
from data_pipeline.tools.in_order import in_order
from data_pipeline.tools.one_pass import OnePass

DIGEST_LIMIT = 2**30
"""Bytes up to which a local data set is read in full."""
_THREADS = 8
"""Shards that are read at a time, a piece of each."""
Sizes = Callable[[str], dict[str, int]]


@dataclass(frozen=True)
class _Kind:
    """What differs between shards of images and of tokens."""

    damage: Callable[[str, Any, bytes], str]
    """Says what is wrong with the bytes of a shard, given URI and record."""
    remedy: str
    """What to do about it."""


def _image_damage(uri: str, shard: ImageShardRecord, archive: bytes) -> str:
    return image_shards.first_damage(image_shards.read_index(uri, shard), archive)


def _token_damage(_uri: str, shard: ShardRecord, archive: bytes) -> str:
    return token_shards.first_damage(shard.name, archive)


_IMAGES = _Kind(_image_damage, image_shards.REMEDY)
_TOKENS = _Kind(_token_damage, token_shards.REMEDY)


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
    sizes, digest = _check(uri, manifest, _IMAGES, every_byte)
    found = sizes("").get(INDEX_NAME)
    if manifest.index is not None and found != manifest.index.bytes:
        state = "is missing" if found is None else f"has {found} bytes, {manifest.index.bytes} in the manifest"
        raise CorruptShardError(f"{storage.join(uri, INDEX_NAME)} {state}: {manifest.remedy} again")
    if digest:
        open_sample_index(uri, manifest, NodeCache())
    return manifest


def check_tokens(uri: str, *, every_byte: bool = False) -> TokenManifest:
    """The manifest of the token shards at `uri`, once they are found to match it; otherwise as `check_images`."""
    manifest = TokenManifest.read(uri)
    _check(uri, manifest, _TOKENS, every_byte)
    if manifest.edit is not None and manifest.edit.operation == "views":  # whose other views lie in other shards
        for parent in manifest.edit.parents[1:]:
            check_tokens(parent_uri(uri, parent), every_byte=every_byte)
    return manifest


def _check(uri: str, manifest: ImageManifest | TokenManifest, kind: _Kind, every_byte: bool) -> tuple[Sizes, bool]:
    """Returns the sizes of the files by folder and name, and whether digests were compared."""
    sizes: Sizes = functools.cache(lambda folder: storage.walk(shard_folder(uri, folder)))
    total = manifest.shards.total_bytes
    digest = every_byte or (not storage.is_remote(uri) and total <= DIGEST_LIMIT)

    def is_read(shard: Any) -> bool:
        if shard.name not in sizes(shard.folder):
            raise CorruptShardError(f"{shard_uri(uri, shard)} is missing; {kind.remedy.partition(' and ')[2]}")
        return digest or sizes(shard.folder)[shard.name] != shard.bytes

    def read(shard: Any) -> None:
        path, size = shard_uri(uri, shard), sizes(shard.folder)[shard.name]
        if size == shard.bytes and OnePass(path, size).finish() == shard.sha256:
            return
        archive = storage.read_bytes(path, max(2 * shard.bytes, DIGEST_LIMIT))
        raise CorruptShardError(f"{path}: {kind.damage(uri, shard, archive)}; {kind.remedy}")

    for _ in in_order(read, filter(is_read, manifest.shards), _THREADS):
        pass
    return sizes, digest
