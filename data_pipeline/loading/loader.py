"""Batches of images and of tokens for a training step.

    1. step s, rank r and world size give positions (order.step_positions)
    2. each position gives a sample's index: a permutation per epoch, from the seed alone (order.SampleOrder)
    3. tokens: the index is a row of the node's memory-mapped copy (token_dataset.py). Images: the index is a row of an
       array that was decoded at the start, if the data set fits into memory, or else one range read and one decode in a
       pool of threads, for a few steps ahead
    4. what is random about a sample (its view, its crop, a mirror) is drawn by (seed, stream, position)

So a batch is a pure function of the step: there is nothing to save, to restore, or to seek in. What is kept between
steps (a block of tokens, batches that are being made) only saves work.
Shape suffixes: B samples of this rank, S steps, L positions, F folds, C channels, H height, W width, N samples of the
data set.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_pipeline.config import ReadingConfig
from data_pipeline.images.transforms import Pixels, Transform
from data_pipeline.loading.prefetching import Ahead, prefetch
from data_pipeline.order.ledger import DataOrder
from data_pipeline.order.mixing import MixPart, Order, order_of
from data_pipeline.order.permutations import Positions, keyed_uniform, step_positions
from data_pipeline.shards.image_shards import ImageShards
from data_pipeline.shards.manifest import ImageManifest, TokenManifest
from data_pipeline.shards.token_dataset import TokenShards
from data_pipeline.shards.token_shards import Tokens
from data_pipeline.shards.token_windows import KeyColumn, TokenWindows

MEMORY_LIMIT = 2 * 2**30
"""Bytes of pixels up to which a data set is decoded once and kept."""

_BLOCK = 16_384
"""Samples whose places are worked out at once, if an epoch has as many: that costs less than step by step."""
_GATHERED = 256
"""Samples that are gathered at once where they are handed out one by one."""
_CHECKED = 1000
"""Indices of the first epoch by which the order is known again."""
_AHEAD = 2
"""Steps whose images are made ahead."""


@dataclass(frozen=True)
class TokenBatch:
    """One rank's tokens of one step."""

    tokens_BLF: Tokens
    condition_B: npt.NDArray[np.int64]
    """Classes."""
    position_B: Positions
    index_B: Positions


@dataclass(frozen=True)
class _Block:
    """Where one rank's samples of some steps are."""

    of: tuple[int, int, int]
    """Number of the block, rank, world size."""
    position_B: Positions
    index_B: Positions
    row_B: Positions
    """Rows of the data set's tokens: sample * views + view."""
    condition_B: npt.NDArray[np.int64]


@dataclass(frozen=True)
class ImageBatch:
    """One rank's images of one step. They become numbers where they are used (transforms.to_model says which)."""

    pixels_BCHW: npt.NDArray[np.uint8]
    label_B: npt.NDArray[np.int64]
    position_B: Positions
    index_B: Positions


class TokenBatches:
    """Batches of tokens, one view of each sample per epoch.

    Args:
        shards: the data set, in one copy or by windows.
        seed: of the order and of what is random about a sample.
        global_batch: samples of a step, over all ranks.
        window: shards that are shuffled together (`data.reading.shuffle_window`).
    """

    def __init__(
        self, shards: TokenShards | TokenWindows, seed: int, global_batch: int, window: int | None = None
    ) -> None:
        self._shards, self._seed, self._global_batch = shards, seed, global_batch
        self._order = order_of(seed, shards.shard_sizes, window, mix_of(shards.manifest))
        self._block: _Block | None = None
        self._windowed, self._most = shards.window is not None, min(_BLOCK, shards.count)
        # windows are let go as soon as they are over, so nothing is looked up there before its turn
        self._looks_ahead = shards.count > _BLOCK and not self._windowed
        self._ahead: Ahead[tuple[int, int, int], _Block] = Ahead(self._plan, int(self._looks_ahead))
        if shards.window is not None:  # so few positions that they seldom reach into the next window
            self._most = max(1, min(_BLOCK, shards.count * shards.window // len(shards.manifest.shards)))

    @property
    def keys(self) -> KeyColumn:
        """Keys of the data set [N]."""
        return self._shards.keys

    @property
    def held(self) -> str:
        """How this node holds the tokens, for people."""
        return self._shards.held

    @property
    def views(self) -> int:
        """Views that there are of each sample, of which an epoch draws one."""
        return len(self._shards.manifest.views)

    def order(self) -> DataOrder:
        """What the order of the samples follows from."""
        return _describe(self._shards, self._order, self._global_batch)

    def step_keys(self, step: int) -> list[str]:
        """Keys of the samples of a step (from 0), over all ranks."""
        index_B = self._order.indices(step_positions(step, self._global_batch))
        return [bytes(key).decode(errors="replace") for key in self.keys[index_B]]

    def batch(self, step: int, rank: int = 0, world: int = 1) -> TokenBatch:
        """What one rank consumes in optimizer step `step` (from 0).

        Raises:
            ValueError: if the global batch cannot be cut evenly.
        """
        share = self._global_batch // world
        number, place = divmod(step, self._steps(world))
        block = self._block
        if block is None or block.of != (number, rank, world):
            block = self._block = self._look_up((number, rank, world))
        here = slice(place * share, (place + 1) * share)
        tokens_BLF = self._shards.rows(block.row_B[here])
        return TokenBatch(tokens_BLF, block.condition_B[here], block.position_B[here], block.index_B[here])

    def samples(self, first: int = 0) -> Iterator[tuple[Tokens, int]]:
        """One sample after another from position `first` on, in the order of the batches, without end.

        For loops that make no batches, or their own.

        Returns:
            Tokens [positions, folds] and the class of each. The tokens are a row of an array of some samples, which
            lives for as long as one of them is kept.
        """
        return itertools.chain.from_iterable(self._pieces(first))

    def _pieces(self, first: int) -> Iterator[Iterable[tuple[Tokens, int]]]:
        """The samples from position `first` on, as many at a time as are gathered at once."""
        blocks: Iterable[tuple[Positions, npt.NDArray[np.int64]]]
        blocks = map(self._rows_from, itertools.count(first, self._most))
        for row_B, condition_B in prefetch(blocks, 1) if self._looks_ahead else blocks:
            for at in range(0, self._most, _GATHERED):
                rows_BLF = self._shards.rows(row_B[at : at + _GATHERED])
                yield zip(rows_BLF, condition_B[at : at + _GATHERED].tolist(), strict=True)

    def _rows_from(self, first: int) -> tuple[Positions, npt.NDArray[np.int64]]:
        """Rows and classes of the samples of a block from position `first` on."""
        self._shards.follow(self._order, first, first + self._most)
        _, row_B, condition_B = self._find(np.arange(first, first + self._most))
        return row_B, condition_B

    def _steps(self, world: int) -> int:
        """Steps of a block."""
        # in windows all ranks' positions count: they are read on one node, and follow one another
        return max(1, self._most // max(1, self._global_batch if self._windowed else self._global_batch // world))

    def _look_up(self, of: tuple[int, int, int]) -> _Block:
        """A block; in a whole copy the one after it is looked up meanwhile."""
        number, rank, world = of
        positions = self._steps(world) * self._global_batch
        self._shards.follow(self._order, number * positions, (number + 1) * positions)
        return self._ahead.get(of, [(number + 1, rank, world)])

    def _plan(self, of: tuple[int, int, int]) -> _Block:
        number, rank, world = of
        steps = self._steps(world)
        position_B = step_positions(number * steps, self._global_batch, rank, world, steps)
        index_B, row_B, condition_B = self._find(position_B)
        return _Block(of, position_B, index_B, row_B, condition_B)

    def _find(self, position_B: Positions) -> tuple[Positions, Positions, npt.NDArray[np.int64]]:
        """Samples, rows and classes at some positions."""
        index_B = self._order.indices(position_B)
        row_B, views = index_B, len(self._shards.manifest.views)
        if views > 1:
            row_B = index_B * views + (keyed_uniform(self._seed, "view", position_B) * views).astype(np.int64)
        return index_B, row_B, self._shards.conditions[index_B].astype(np.int64)


class ImageBatches:
    """Batches of images.

    Args:
        images: the data set.
        image_size: side of the squares, in pixels.
        fit: how an image becomes a square (`data.fit`).
        seed: of the order and of what is random about a sample.
        global_batch: samples of a step, over all ranks.
        reading: how images are read (`data.reading`).
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
        reading: ReadingConfig | None = None,
        horizontal_flip: bool = False,
        memory_limit: int = MEMORY_LIMIT,
    ) -> None:
        self._reading = reading or ReadingConfig()
        self._images, self._transform = images, Transform(image_size, fit, self._reading.decode, self._reading.crop)
        self._seed, self._global_batch, self._flip = seed, global_batch, horizontal_flip
        self._order = order_of(seed, images.shard_sizes, self._reading.shuffle_window, mix_of(images.manifest))
        fits = images.count * image_size * image_size * 3 <= memory_limit and not self._transform.draws
        self._pixels_NHWC = decode_all(images, self._transform) if fits else None
        threads = 0 if fits else self._reading.threads
        self._pool = ThreadPoolExecutor(threads, "decode") if threads else None
        self._ahead: Ahead[tuple[int, int, int], ImageBatch] = Ahead(self._make, _AHEAD if threads else 0)

    @property
    def keys(self) -> npt.NDArray[np.bytes_]:
        """Keys of the data set [N]."""
        return self._images.keys

    @property
    def held(self) -> str:
        """How this node holds the images, for people."""
        return "from memory, decoded at the start" if self._pixels_NHWC is not None else self._images.held

    @property
    def views(self) -> int:
        """1: what is random about a crop is drawn anew at each position."""
        return 1

    def order(self) -> DataOrder:
        """What the order of the samples follows from."""
        return _describe(self._images, self._order, self._global_batch)

    def step_keys(self, step: int) -> list[str]:
        """Keys of the samples of a step (from 0), over all ranks."""
        index_B = self._order.indices(step_positions(step, self._global_batch))
        return [bytes(key).decode(errors="replace") for key in self.keys[index_B]]

    def batch(self, step: int, rank: int = 0, world: int = 1) -> ImageBatch:
        """What one rank consumes in optimizer step `step` (from 0).

        Raises:
            ValueError: if the global batch cannot be cut evenly.
            CorruptShardError: as above.
        """
        later = [(step + more, rank, world) for more in range(1, _AHEAD + 1)]
        return self._ahead.get((step, rank, world), later)

    def _make(self, place: tuple[int, int, int]) -> ImageBatch:
        step, rank, world = place
        position_B = step_positions(step, self._global_batch, rank, world)
        index_B = self._order.indices(position_B)
        pixels_BHWC = self._pixels(index_B, position_B)
        if self._flip:
            mirrored_B = keyed_uniform(self._seed, "flip", position_B) < 0.5
            pixels_BHWC[mirrored_B] = pixels_BHWC[mirrored_B, :, ::-1]
        pixels_BCHW = np.ascontiguousarray(pixels_BHWC.transpose(0, 3, 1, 2))
        return ImageBatch(pixels_BCHW, self._images.labels[index_B].astype(np.int64), position_B, index_B)

    def _pixels(self, index_B: Positions, position_B: Positions) -> Pixels:
        if self._pixels_NHWC is not None:
            return self._pixels_NHWC[index_B]
        names = self._transform.draws
        draws = [keyed_uniform(self._seed, f"crop_{name}", position_B).tolist() for name in names]
        work = zip(index_B.tolist(), zip(*draws, strict=True) if draws else [()] * len(index_B), strict=True)
        decoded = self._pool.map(self._decode, work) if self._pool else map(self._decode, work)
        return np.stack(list(decoded))

    def _decode(self, work: tuple[int, Sequence[float]]) -> Pixels:
        index, draws = work
        return self._images.decode(index, lambda data: self._transform(data, draws))


def _describe(data: ImageShards | TokenShards | TokenWindows, order: Order, global_batch: int) -> DataOrder:
    return DataOrder(
        data=data.uri,
        kind=data.manifest.kind,
        fingerprint=data.manifest.fingerprint,
        seed=order.seed,
        window=order.window,
        global_batch=global_batch,
        mix=mix_of(data.manifest),
        check=zlib.crc32(order.indices(np.arange(min(order.count, _CHECKED))).tobytes()),
    )


def mix_of(manifest: ImageManifest | TokenManifest) -> tuple[MixPart, ...]:
    """What the order of a mix follows from; nothing for any other data set."""
    edit = manifest.edit
    return edit.mix() if edit is not None else ()


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
