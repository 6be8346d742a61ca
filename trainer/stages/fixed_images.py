"""The same images at each look of validation.

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline.images.transforms import Pixels, Transform
from data_pipeline.shards.image_shards import ImageShards

MEMORY_LIMIT = 256 * 2**20
"""Bytes of pixels up to which a rank keeps its images; beyond it they are decoded at each look."""


class FixedImages:
    """The first images of a data set, in batches that are the same at any number of ranks.

    Args:
        images: the data set.
        transform: what makes them squares.
        count: how many, at most.
        batch: of a batch, but for the last.
        alone: all of them are this rank's.
    """

    def __init__(
        self, images: ImageShards, transform: Transform, count: int, batch: int, *, alone: bool = False
    ) -> None:
        self._images, self._transform, self._batch = images, transform, batch
        self.count = min(count, images.count)
        self._rank, self._ranks = (0, 1) if alone else (dist.get_rank(), dist.get_world_size())
        self._kept: dict[int, Pixels] = {}
        share = self.count * 3 * transform.size**2 / self._ranks
        self._keeps = share <= MEMORY_LIMIT

    @property
    def batches(self) -> int:
        """How many there are, over all ranks that share them."""
        return math.ceil(self.count / self._batch)

    def mine(self) -> Iterator[tuple[int, Tensor]]:
        """This rank's batches with their numbers, uint8 [B, C, H, W]."""
        for number in range(self._rank, self.batches, self._ranks):
            yield number, self.part(number)

    def part(self, number: int) -> Tensor:
        """A batch, uint8 [B, C, H, W].

        Raises:
            CorruptShardError: as `pixels`.
        """
        return self.pixels(number * self._batch, min((number + 1) * self._batch, self.count))

    def pixels(self, first: int, stop: int) -> Tensor:
        """Some of them, uint8 [B, C, H, W].

        Raises:
            CorruptShardError: if an image is damaged or cannot be decoded; it names shard and key.
        """
        found = self._kept.get(first)
        if found is None or len(found) != stop - first:
            scanned = enumerate(self._images.scan(first, stop), first)
            found = np.stack([self._images.decode(index, self._transform, data) for index, data in scanned])
            if self._keeps:
                self._kept[first] = found
        return torch.from_numpy(found).permute(0, 3, 1, 2).contiguous()
