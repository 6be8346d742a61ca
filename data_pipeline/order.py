"""The order of data, as pure functions of (seed, position). DESIGN section 5.

    position p = samples consumed so far    epoch = p // N    index = permutation(seed, epoch)[p % N]
    step s consumes positions [s*B, (s+1)*B), B = global_batch; each rank takes its contiguous slice

Nothing else enters: not the world size, not the number of loader threads, not gradient accumulation. Whatever is random
about a sample (view, label dropout, quantizer dropout) is drawn by `keyed_uniform` from (seed, stream, p).
"""

from __future__ import annotations

import functools
import zlib

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]


@functools.lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, count: int) -> Positions:
    """The order of one epoch: a shuffled `arange(count)`, read-only, int64 [count]."""
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    order = generator.permutation(count).astype(np.int64)
    order.flags.writeable = False
    return order


def sample_indices(seed: int, positions: Positions, count: int) -> Positions:
    """Which of `count` samples stand at the given positions, int64 of the same shape."""
    epochs, places = np.divmod(positions, count)
    indices = np.empty_like(positions)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = permutation(seed, int(epoch), count)[places[here]]
    return indices


def step_positions(step: int, global_batch: int, rank: int = 0, world: int = 1) -> Positions:
    """The positions that one rank consumes in optimizer step `step` (from 0), int64 [global_batch / world].

    Raises:
        ValueError: if the batch cannot be cut evenly.
    """
    if global_batch % world:
        raise ValueError(f"global_batch {global_batch} is no multiple of the {world} workers")
    share = global_batch // world
    first = step * global_batch + rank * share
    return np.arange(first, first + share, dtype=np.int64)


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


def keyed_uniform(seed: int, stream: str, positions: Positions) -> npt.NDArray[np.float64]:
    """One number of [0, 1) per position."""
    return (keyed_bits(seed, stream, positions) >> np.uint64(11)).astype(np.float64) * 2.0**-53
