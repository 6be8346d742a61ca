"""The images of a data set of image shards, each cut to a square.

Shapes: B images, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.errors import UsageError
from data_pipeline.images.crop_kinds import CENTER, AnyCrop
from data_pipeline.images.transforms import Pixels, Transform
from data_pipeline.node.node_cache import NodeCache
from data_pipeline.shards.image_shards import ImageShards
from data_pipeline.shards.manifest import ImageManifest
from trainer.evaluation.sets.image_set import ImageReader, Labels

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ShardSet:
    """The first images of a data set of image shards, each cut to a square."""

    uri: str
    fingerprint: str
    """Of its manifest."""
    count: int
    size: int
    fit: str
    crop: AnyCrop = CENTER
    cache: NodeCache | None = None

    @classmethod
    def of(
        cls, uri: str, size: int, fit: str, most: int | None, cache: NodeCache | None = None, crop: AnyCrop = CENTER
    ) -> ShardSet:
        """The first `most` images, or all; shards are in shuffled order.

        Raises:
            UsageError: if there is no data set.
        """
        manifest = ImageManifest.read(uri)
        count = manifest.samples if most is None else min(most, manifest.samples)
        return cls(uri, manifest.fingerprint, count, size, fit, crop, cache)

    @property
    def how_cut(self) -> dict[str, Any]:
        """How an image becomes a square, as JSON."""
        kind = {"crop": self.crop.model_dump(mode="json")} if self.fit == "crop" else {}
        return {"size": self.size, "fit": self.fit} | kind

    def identity(self) -> dict[str, Any]:
        """The data set, how many of it, and how they are cut."""
        return {"kind": "shards", "sha256": self.fingerprint, "count": self.count, "crop": self.how_cut}

    def open(self, device: torch.device) -> ImageReader:  # noqa: ARG002 - images of files are read anywhere
        """Map its index.

        Raises:
            UsageError: if the data set is another one by now.
        """
        shards = ImageShards(self.uri, index_cache=self.cache)
        if shards.manifest.fingerprint != self.fingerprint:
            raise UsageError(f"{self.uri} was made again meanwhile: start the evaluation again")
        return _ShardReader(shards, Transform(self.size, self.fit, crop=self.crop))


@dataclass(frozen=True)
class _ShardReader:
    shards: ImageShards
    transform: Transform

    def read(self, start: int, stop: int) -> tuple[Pixels, Labels]:
        pixels = [
            self.shards.decode(start + at, self.transform, data)
            for at, data in enumerate(self.shards.scan(start, stop))
        ]
        return np.stack(pixels), np.asarray(self.shards.labels[start:stop], np.int64)
