"""The order of data, as pure functions of (seed, position).

    position p = samples consumed so far    epoch = p // N    index = permutation(seed, epoch)[p % N]
    step s consumes positions [s*B, (s+1)*B), B = global_batch; each rank takes its contiguous slice

The permutation is computed, not stored (feistel.py), so that an order takes no memory per sample and begins anywhere at
once. It shuffles all samples; or, with a window, the shards first, and then the samples of a few shards at a time: a
node that keeps that many shards reads each of them once per epoch. Then a table of two epochs' shards is kept.
Nothing else enters: not the world size, not the number of loader threads, not gradient accumulation. Whatever is random
about a sample (view, label dropout, quantizer dropout) is drawn by `keyed_uniform` from (seed, stream, p), and what the
network itself draws in training (stochastic depth, dropout) follows from `network_seeds`.
"""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_pipeline.order.feistel import Permutation

Positions = npt.NDArray[np.int64]
ShardSizes = Sequence[int] | npt.NDArray[np.int64]

ORDER_VERSION = 2
"""Of the permutations: the same seed gives another order in another version. Version 1 was numpy's shuffle."""


@dataclass(frozen=True)
class Window:
    """Positions whose samples are shuffled together, and the shards that hold them."""

    epoch: int
    number: int
    """Of the window in its epoch."""
    first: int
    """First position."""
    stop: int
    """The position after the last; the next window begins there."""
    shards: Sequence[int]
    """Numbers of its shards, in the order of the manifest."""


@dataclass(frozen=True, eq=False)
class _Epoch:
    """The shards of an epoch in windows."""

    number: int
    turn: Positions
    """Shards, in the order in which they are used [shards]."""
    ends: Positions
    """Samples of the epoch up to the end of each of them [shards]."""
    window_ends: Positions
    """Samples of the epoch up to the end of each window [windows]."""


@dataclass(frozen=True, eq=False)
class SampleOrder:
    """The order of a data set's samples, epoch after epoch."""

    seed: int
    shards: ShardSizes
    """Samples of each shard, in the order of the manifest."""
    window: int | None = None
    """Shards that are shuffled together; None shuffles all samples."""

    @functools.cached_property
    def count(self) -> int:
        """Samples of the data set, which is the length of an epoch."""
        return int(self._sizes.sum())

    def indices(self, positions: Positions) -> Positions:
        """Which samples stand at the given positions, int64 of the same shape."""
        indices = np.array(positions, np.int64, order="C")
        flat = indices.reshape(-1)
        for epoch, here in _runs(flat // self.count):
            places = flat[here]
            places -= epoch * self.count
            flat[here] = self._shuffle(epoch, places)
        return indices

    def positions(self, epoch: int, indices: Positions) -> Positions:
        """Where the given samples stand in an epoch, the inverse of `indices`: int64 of the same shape."""
        if not self._is_windowed:
            return self._permutation(epoch).invert(indices) + epoch * self.count
        table = self._epoch(epoch)
        shard = np.searchsorted(self._starts, indices, side="right") - 1
        turn_of = np.empty_like(table.turn)
        turn_of[table.turn] = np.arange(len(turn_of))
        turns = turn_of[shard]
        places = table.ends[turns] - self._sizes[shard] + indices - self._starts[shard]
        flat = places.reshape(-1)
        for number, here in _runs(np.searchsorted(table.window_ends, flat, side="right")):
            first, stop = self._window_places(table, number)
            flat[here] = self._permutation(epoch, number, stop - first).invert(flat[here] - first) + first
        places += epoch * self.count
        return places

    def window_at(self, position: int) -> Window:
        """The window that holds a position: all of the epoch where all samples are shuffled."""
        epoch, place = divmod(position, self.count)
        before = epoch * self.count
        if not self._is_windowed:
            return Window(epoch, 0, before, before + self.count, range(len(self.shards)))
        assert self.window is not None
        table = self._epoch(epoch)
        number = int(np.searchsorted(table.window_ends, place, side="right"))
        first, stop = self._window_places(table, number)
        shards = np.sort(table.turn[number * self.window : (number + 1) * self.window])
        return Window(epoch, number, before + first, before + stop, tuple(shards.tolist()))

    @functools.cached_property
    def _sizes(self) -> Positions:
        return np.asarray(self.shards, np.int64)

    @functools.cached_property
    def _starts(self) -> Positions:
        return np.cumsum(self._sizes) - self._sizes

    @property
    def _is_windowed(self) -> bool:
        return self.window is not None and self.window < len(self.shards)

    @functools.cached_property
    def _epochs(self) -> dict[int, _Epoch]:
        return {}

    def _epoch(self, number: int) -> _Epoch:
        """The windows of an epoch, of which those of two epochs are kept."""
        found = self._epochs.get(number)
        if found is None:
            assert self.window is not None
            turn = Permutation(self.seed, f"{number}/shards", len(self.shards)).permute(np.arange(len(self.shards)))
            ends = np.cumsum(self._sizes[turn])
            window_ends = np.append(ends[self.window - 1 : -1 : self.window], ends[-1])
            found = _Epoch(number, turn, ends, window_ends)
            for old in list(self._epochs)[:-1]:
                self._epochs.pop(old, None)
            self._epochs[number] = found
        return found

    def _shuffle(self, epoch: int, places: Positions) -> Positions:
        """The samples at some places of an epoch."""
        if not self._is_windowed:
            return self._permutation(epoch).permute(places)
        table = self._epoch(epoch)
        for number, here in _runs(np.searchsorted(table.window_ends, places, side="right")):
            first, stop = self._window_places(table, number)
            places[here] = self._permutation(epoch, number, stop - first).permute(places[here] - first) + first
        turns = np.searchsorted(table.ends, places, side="right")
        shard = table.turn[turns]
        indices: Positions = places - table.ends[turns] + self._sizes[shard] + self._starts[shard]
        return indices

    @staticmethod
    def _window_places(table: _Epoch, number: int) -> tuple[int, int]:
        """Samples of the epoch before a window, and up to its end."""
        return int(table.window_ends[number - 1]) if number else 0, int(table.window_ends[number])

    def _permutation(self, epoch: int, window: int | None = None, count: int | None = None) -> Permutation:
        name = f"{epoch}" if window is None else f"{epoch}/{window}"
        return _permutation(self.seed, name, self.count if count is None else count)


_permutation = functools.lru_cache(maxsize=8)(Permutation)
"""Those in use are kept: to derive the keys of one takes as long as to permute a few samples."""


def _runs(numbers: Positions) -> list[tuple[int, slice]]:
    """Neighbours that are equal, as (number, where): there are few where positions are consecutive."""
    if not numbers.size:
        return []
    if (numbers == numbers[0]).all():
        return [(int(numbers[0]), slice(0, len(numbers)))]
    cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
    return [(int(numbers[a]), slice(a, b)) for a, b in itertools.pairwise(cuts)]


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
