"""The data sets that a stage is trained from, opened as `data.reading` says."""

from __future__ import annotations

from data_pipeline.image_shards import ImageShards
from data_pipeline.node_cache import NodeCache
from data_pipeline.token_dataset import TokenShards
from trainer.job import TrainJob


def open_images(job: TrainJob) -> ImageShards:
    """The images, by range reads or through copies on this node."""
    return ImageShards(job.inputs["images"], cache=_cache(job) if job.reading.cache_images else None)


def open_tokens(job: TrainJob) -> TokenShards:
    """The tokens, through this node's copy."""
    return TokenShards(job.inputs["tokens"], _cache(job))


def _cache(job: TrainJob) -> NodeCache:
    return NodeCache(job.reading.cache_dir, job.reading.cache_bytes)
