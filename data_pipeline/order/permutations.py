"""The order of data, as pure functions of (seed, position).

    position p = samples consumed so far    epoch = p // N    index = permutation(seed, epoch)[p % N]
    step s consumes positions [s*B, (s+1)*B), B = global_batch; each rank takes its contiguous slice

A permutation shuffles all samples, or, with a window, the shards first and then the samples of a few shards at a time:
a node that keeps that many shards then reads each of them once per epoch.
Nothing else enters: not the world size, not the number of loader threads, not gradient accumulation. Whatever is random
about a sample (view, label dropout, quantizer dropout) is drawn by `keyed_uniform` from (seed, stream, p), and what the
network itself draws in training (stochastic depth, dropout) follows from `network_seeds`.
"""

from __future__ import annotations

import functools
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int32] | npt.NDArray[np.int64]


@dataclass(frozen=True)
class SampleOrder:
    """The order of a data set's samples, epoch after epoch."""

    seed: int
    shards: tuple[int, ...]
    """Samples of each shard, in the order of the manifest."""
    window: int | None = None
    """Shards that are shuffled together; None shuffles all samples."""

    @functools.cached_property
    def count(self) -> int:
        """Samples of the data set, which is the length of an epoch."""
        return sum(self.shards)

    def indices(self, positions: Positions) -> Positions:
        """Which samples stand at the given positions, int64 of the same shape."""
        if not positions.size:
            return positions
        first, last = int(positions.min()) // self.count, int(positions.max()) // self.count
        if first == last:
            return self._epoch(first)[positions - first * self.count].astype(np.int64)
        epochs, places = np.divmod(positions, self.count)
        indices = np.empty_like(positions)
        for epoch in range(first, last + 1):
            here = epochs == epoch
            if here.any():
                indices[here] = self._epoch(epoch)[places[here]]
        return indices

    def _epoch(self, epoch: int) -> Indices:
        if self.window is None or self.window >= len(self.shards):
            return permutation(self.seed, epoch, self.count)
        return windowed_permutation(self.seed, epoch, self.shards, self.window)


@functools.lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, count: int) -> Indices:
    """The order of one epoch: a shuffled `arange(count)`, read-only; int32 where that is enough, else int64."""
    order = _count_up(count)
    _generator(seed, epoch).shuffle(order)
    order.flags.writeable = False
    return order


@functools.lru_cache(maxsize=2)
def windowed_permutation(seed: int, epoch: int, shards: tuple[int, ...], window: int) -> Indices:
    """The order of one epoch in which the samples of `window` shards are shuffled together, as `permutation`."""
    generator = _generator(seed, epoch)
    ends = np.cumsum(shards).tolist()
    turn = generator.permutation(len(shards)).tolist()
    order = _count_up(ends[-1])
    filled = 0
    for at in range(0, len(turn), window):
        first = filled
        for shard in turn[at : at + window]:
            order[filled : filled + shards[shard]] = np.arange(ends[shard] - shards[shard], ends[shard])
            filled += shards[shard]
        generator.shuffle(order[first:filled])
    order.flags.writeable = False
    return order


def _generator(seed: int, epoch: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, epoch]))


def _count_up(count: int) -> Indices:
    """0, 1, 2, … in four bytes each where that is enough: every rank of a node holds two epochs."""
    return np.arange(count, dtype=np.int32) if count <= np.iinfo(np.int32).max else np.arange(count, dtype=np.int64)


def step_positions(step: int, global_batch: int, rank: int = 0, world: int = 1, steps: int = 1) -> Positions:
    """The positions that one rank consumes in `steps` optimizer steps from `step` (from 0) on, one step after another.

    Returns:
        int64 [steps * global_batch / world].

    Raises:
        ValueError: if the batch cannot be cut evenly.
    """
    if global_batch % world:
        raise ValueError(f"global_batch {global_batch} is no multiple of the {world} workers")
    share = global_batch // world
    firsts = np.arange(step, step + steps, dtype=np.int64) * global_batch + rank * share
    return (firsts[:, None] + np.arange(share, dtype=np.int64)).ravel()


def keyed_bits(seed: int, stream: str, positions: Positions) -> npt.NDArray[np.uint64]:
    """64 random bits per position: SplitMix64 of (seed, stream, position). Streams are independent of one another."""
    key = np.uint64((seed * 0x9E3779B97F4A7C15 + (zlib.crc32(stream.encode()) << 32 | 0x5851F42D)) % 2**64)
    with np.errstate(over="ignore"):
        x = positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key
        for _ in range(2):  # two rounds, so that neighbouring seeds share nothing
            x ^= x >> np.uint64(30)
            x *= np.uint64(0xBF58476D1CE4E5B9)
            x ^= x >> np.uint64(27)
            x *= np.uint64(0x94D049BB133111EB)
            x ^= x >> np.uint64(31)
            x += key
    return x


def network_seeds(seed: int, positions: Positions) -> Positions:
    """A random number per position, int64: all that a network draws for that sample follows from it."""
    return keyed_bits(seed, "network", positions).view(np.int64)


def keyed_uniform(seed: int, stream: str, positions: Positions) -> npt.NDArray[np.float64]:
    """One number of [0, 1) per position."""
    return (keyed_bits(seed, stream, positions) >> np.uint64(11)).astype(np.float64) * 2.0**-53
