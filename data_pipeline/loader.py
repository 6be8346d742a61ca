"""Batches of images and of tokens for a training step.

    1. step s, rank r and world size give positions (order.step_positions)
    2. each position gives a sample's index: a permutation per epoch, from the seed alone (order.sample_indices)
    3. tokens: the index is a row of a memory map. Images: the index is a row of an array that was decoded at the start,
       if the data set fits into memory, or else one range read and one decode in a pool of threads
    4. what is random about a sample (its view, a mirror) is drawn by (seed, stream, position)

So a batch is a pure function of the step: there is nothing to save, to restore, or to seek in.
Shape suffixes: B samples of this rank, L positions, F folds, C channels, H height, W width, N samples of the data set.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_pipeline.image_shards import ImageShards
from data_pipeline.order import Positions, keyed_uniform, sample_indices, step_positions
from data_pipeline.token_shards import Tokens, TokenShards
from data_pipeline.transforms import Pixels, Transform, to_model

MEMORY_LIMIT = 2 * 2**30
"""Bytes of pixels up to which a data set is decoded once and kept."""


@dataclass(frozen=True)
class TokenBatch:
    """One rank's tokens of one step."""

    tokens_BLF: Tokens
    label_B: npt.NDArray[np.int64]
    position_B: Positions
    index_B: Positions


@dataclass(frozen=True)
class ImageBatch:
    """One rank's images of one step, float32 in [-1, 1]."""

    image_BCHW: npt.NDArray[np.float32]
    label_B: npt.NDArray[np.int64]
    position_B: Positions
    index_B: Positions


class TokenBatches:
    """Batches of tokens, one view of each sample per epoch."""

    def __init__(self, shards: TokenShards, seed: int, global_batch: int) -> None:
        self._shards, self._seed, self._global_batch = shards, seed, global_batch

    def batch(self, step: int, rank: int = 0, world: int = 1) -> TokenBatch:
        """What one rank consumes in optimizer step `step` (from 0).

        Raises:
            ValueError: if the global batch cannot be cut evenly.
        """
        position_B = step_positions(step, self._global_batch, rank, world)
        index_B = sample_indices(self._seed, position_B, self._shards.count)
        views = len(self._shards.manifest.views)
        view_B = (keyed_uniform(self._seed, "view", position_B) * views).astype(np.int64)
        return TokenBatch(
            self._shards.views(index_B, view_B), self._shards.labels[index_B].astype(np.int64), position_B, index_B
        )


class ImageBatches:
    """Batches of images.

    Args:
        images: the data set.
        image_size: side of the square, in pixels.
        fit: how an image becomes a square (`data.fit`).
        seed: of order and mirrors.
        global_batch: samples per step, over all ranks.
        horizontal_flip: mirror half of the images.
        memory_limit: bytes of pixels up to which the data set is decoded at once and kept.

    Raises:
        CorruptShardError: if an image is damaged or cannot be decoded; it names shard and key.
    """

    def __init__(
        self,
        images: ImageShards,
        *,
        image_size: int,
        fit: str,
        seed: int,
        global_batch: int,
        horizontal_flip: bool = False,
        memory_limit: int = MEMORY_LIMIT,
    ) -> None:
        self._images, self._transform = images, Transform(image_size, fit)
        self._seed, self._global_batch, self._flip = seed, global_batch, horizontal_flip
        self._pool = ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0))), "decode")
        fits = images.count * image_size * image_size * 3 <= memory_limit
        self._pixels_NHWC = decode_all(images, self._transform) if fits else None

    def batch(self, step: int, rank: int = 0, world: int = 1) -> ImageBatch:
        """What one rank consumes in optimizer step `step` (from 0).

        Raises:
            ValueError: if the global batch cannot be cut evenly.
            CorruptShardError: as above.
        """
        position_B = step_positions(step, self._global_batch, rank, world)
        index_B = sample_indices(self._seed, position_B, self._images.count)
        pixels_BHWC = self._gather(index_B)
        if self._flip:
            mirrored_B = keyed_uniform(self._seed, "flip", position_B) < 0.5
            pixels_BHWC[mirrored_B] = pixels_BHWC[mirrored_B, :, ::-1]
        return ImageBatch(to_model(pixels_BHWC), self._images.labels[index_B].astype(np.int64), position_B, index_B)

    def _gather(self, index_B: Positions) -> Pixels:
        if self._pixels_NHWC is not None:
            return self._pixels_NHWC[index_B]
        decoded = self._pool.map(lambda index: self._images.decode(int(index), self._transform), index_B)
        return np.stack(list(decoded))


def decode_all(images: ImageShards, transform: Transform, most: int | None = None) -> Pixels:
    """The first `most` images of a data set, or all of them, uint8 [N, H, W, 3].

    Raises:
        CorruptShardError: if an image is damaged or cannot be decoded; it names shard and key.
    """
    count = images.count if most is None else min(most, images.count)
    pixels_NHWC = np.empty((count, transform.size, transform.size, 3), dtype=np.uint8)
    for index, data in enumerate(images.scan(0, count)):
        pixels_NHWC[index] = images.decode(index, transform, data)
    return pixels_NHWC
