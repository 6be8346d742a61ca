"""Sets of images that are measured: image shards, a folder, an npz, or what `foldtrain sample` has drawn.

1. image_set.py: what a set is. A worker gets the set, and opens it
2. one file for each kind; the kind is found here
"""

from __future__ import annotations

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.node.node_cache import NodeCache
from data_pipeline.shards.manifest import MANIFEST_NAME
from trainer.evaluation.samples.sample_record import SAMPLING
from trainer.evaluation.sets.folder_set import FolderSet
from trainer.evaluation.sets.image_set import NO_LABEL, ImageReader, ImageSet, Labels
from trainer.evaluation.sets.npz_set import NpzSet
from trainer.evaluation.sets.sampled_set import SampledSet
from trainer.evaluation.sets.shard_set import ShardSet

__all__ = [
    "NO_LABEL",
    "FolderSet",
    "ImageReader",
    "ImageSet",
    "Labels",
    "NpzSet",
    "SampledSet",
    "ShardSet",
    "open_images",
]


def open_images(
    uri: str, size: int | None, fit: str = "crop", most: int | None = None, cache: NodeCache | None = None
) -> ImageSet:
    """The set at a URI, whatever it is.

    Args:
        uri: of image shards, a folder of pictures (one that `foldtrain sample` wrote, say), or an npz.
        size: side of the squares that images are cut to; None leaves them as they are, which image shards cannot be.
        fit: as `data.fit`.
        most: images, the first ones; None for all.
        cache: where this node keeps copies of remote shards.

    Raises:
        UsageError: if it is none of these.
    """
    if uri.endswith(".npz"):
        return NpzSet.of(uri, most)
    if storage.exists(storage.join(uri, MANIFEST_NAME)):
        if size is None:
            raise UsageError(f"{uri} has images of any size: give --size, to which they are cut")
        return ShardSet.of(uri, size, fit, most, cache)
    if size is None and storage.exists(storage.join(uri, SAMPLING)):
        return SampledSet.of(uri, most)
    return FolderSet.of(uri, size, fit, most)
