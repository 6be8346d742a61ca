"""The data sets that a stage is trained from, opened as `data.reading` says."""

from __future__ import annotations

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.node.copy_seal import SEAL_BYTES
from data_pipeline.node.node_cache import UNSET_LIMIT, NodeCache
from data_pipeline.shards import token_windows
from data_pipeline.shards.image_shards import ImageShards
from data_pipeline.shards.manifest import ImageManifest, TokenManifest
from data_pipeline.shards.token_dataset import TokenShards
from trainer.job import HELD_OUT, TrainJob


def open_images(job: TrainJob) -> ImageShards:
    """The images, by range reads or through copies on this node.

    Raises:
        UsageError: if a copy of every shard would be thrown away before its samples are used up.
    """
    cache = _cache(job) if job.reading.cache_images else None
    manifest = job.manifests.get("images")
    assert not isinstance(manifest, TokenManifest)
    images = ImageShards(job.inputs["images"], manifest, cache, index_cache=_cache(job))
    if cache is not None:
        limit, shards = cache.capacity(), images.manifest.shards
        edit = images.manifest.edit
        sets = len(edit.parents) if edit is not None and edit.draws else 1  # each of a mix by windows of its own
        window = min((job.reading.shuffle_window or len(shards)) * sets, len(shards))
        held = _index_bytes(images) if storage.is_remote(images.uri) else 0
        needed = held + (window + 1) * (int(shards.sizes.max(initial=0)) + SEAL_BYTES)
        if needed > limit and held + shards.total_bytes + len(shards) * SEAL_BYTES > limit:
            raise UsageError(
                f"this node's cache may hold {limit:,} bytes ({UNSET_LIMIT}), but {window} shards are shuffled "
                f"together, which take {needed:,}: raise it, set data.reading.shuffle_window lower, or set "
                "data.reading.cache_images to false"
            )
    return images


def open_held_out(job: TrainJob, name: str = HELD_OUT) -> ImageShards:
    """The images that nothing is trained on, by range reads: few of them are looked at."""
    manifest = job.manifests.get(name)
    assert not isinstance(manifest, TokenManifest)
    return ImageShards(job.inputs[name], manifest, index_cache=_cache(job))


def _index_bytes(images: ImageShards) -> int:
    """Of the copies that stay in the cache as long as the images are in use."""
    index = images.manifest.index.bytes if images.manifest.index is not None else 0
    return index + images.manifest.shards.statement.table_bytes + 2 * SEAL_BYTES


def open_tokens(job: TrainJob) -> TokenShards | token_windows.TokenWindows:
    """The tokens, through this node's copies, as `data.reading.tokens` says.

    Raises:
        UsageError: if the cache has no room for them.
    """
    reading, manifest = job.reading, job.manifests.get("tokens")
    assert not isinstance(manifest, ImageManifest)
    return token_windows.open_tokens(
        job.inputs["tokens"], _cache(job), reading.tokens, reading.shuffle_window, manifest
    )


def _cache(job: TrainJob) -> NodeCache:
    return NodeCache(job.reading.cache_dir, job.reading.cache_bytes)
