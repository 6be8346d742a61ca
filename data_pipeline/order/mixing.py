"""The order of a mix: of each of several data sets so many samples per epoch, as a pure function of (seed, position).

    an epoch has M = m_0 + m_1 + ... positions, m_k of them of set k: place x of an epoch belongs to the last set where
        floor((x + 1) m / M) > floor(x m / M), and is its draw floor(x m / M); what is left goes to the sets before it
    draw j of epoch e is position q = e m_k + j of set k's own order, which is that of the set alone (permutations.py)

So sets alternate as evenly as they can: any stretch of an epoch holds each of two sets in its proportion to within one
sample. Each set is gone through round by round, each sample once in a round of its own, however rounds and epochs meet:
with half of a set per epoch the first epoch has one half of it and the second the other; none is starved. And each set
is read by its own windows.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.order.permutations import Positions, SampleOrder, ShardSizes, keyed_bits


class MixPart(NamedTuple):
    """One set of a mix."""

    shards: int
    """Of the set; those of all sets follow one another."""
    draws: int
    """Samples in an epoch."""


class Stream(NamedTuple):
    """One set's own order, and where its samples and shards begin among those of all."""

    order: SampleOrder
    first_sample: int
    first_shard: int
    draws: int


@dataclass(frozen=True, eq=False)
class MixedOrder:
    """The order of a mix, epoch after epoch."""

    seed: int
    shards: ShardSizes
    """Samples of each shard, set after set."""
    window: int | None
    """Shards of a set that are shuffled together; None shuffles all samples of a set."""
    mix: tuple[MixPart, ...]

    @functools.cached_property
    def count(self) -> int:
        """Positions of an epoch."""
        return sum(part.draws for part in self.mix)

    @functools.cached_property
    def streams(self) -> tuple[Stream, ...]:
        """The sets."""
        sizes, found, shard, sample = np.asarray(self.shards, np.int64), [], 0, 0
        for number, part in enumerate(self.mix):
            own = sizes[shard : shard + part.shards]
            seed = int(keyed_bits(self.seed, f"mix/{number}", np.zeros(1, np.int64))[0] >> np.uint64(2))
            found.append(Stream(SampleOrder(seed, own, self.window), sample, shard, part.draws))
            shard, sample = shard + part.shards, sample + int(own.sum())
        return tuple(found)

    def indices(self, positions: Positions) -> Positions:
        """Which samples stand at the given positions, int64 of the same shape."""
        flat = np.asarray(positions, np.int64).reshape(-1)
        found = np.empty_like(flat)
        for stream, where, own in self.split(flat):
            found[where] = stream.order.indices(own) + stream.first_sample
        return found.reshape(np.shape(positions))

    def split(self, positions: Positions) -> list[tuple[Stream, npt.NDArray[np.intp], Positions]]:
        """For each set: which of the positions are its, and which positions these are of its own order."""
        epoch, place = np.divmod(positions, self.count)
        left, total, found = np.arange(len(positions)), self.count, []
        for stream in self.streams[:0:-1]:
            draw = scaled(place, stream.draws, total)
            is_its = scaled(place + 1, stream.draws, total) > draw
            where = left[is_its]
            found.append((stream, where, epoch[where] * stream.draws + draw[is_its]))
            left, place, total = left[~is_its], (place - draw)[~is_its], total - stream.draws
        first = self.streams[0]
        return [(first, left, epoch[left] * first.draws + place), *found[::-1]]

    def upcoming(self, first: int, stop: int) -> list[int]:
        """Shards of the windows that hold the positions `first` to `stop` - 1, and then those of the windows after."""
        now: list[int] = []
        later: list[int] = []
        for stream, own in zip(self.streams, self._own(np.array([first, stop], np.int64)), strict=True):
            *here, after = [[shard + stream.first_shard for shard in each] for each in windows(stream.order, *own)]
            now += [shard for each in here for shard in each]
            later += after
        return now + later

    def _own(self, ends: Positions) -> list[tuple[int, int]]:
        """How many draws of each set come before each of two positions."""
        epoch, place = np.divmod(ends, self.count)
        total, found = self.count, []
        for stream in self.streams[:0:-1]:
            draw = scaled(place, stream.draws, total)
            found.append(epoch * stream.draws + draw)
            place, total = place - draw, total - stream.draws
        found.append(epoch * self.streams[0].draws + place)
        return [(int(own[0]), int(own[1])) for own in found[::-1]]


Order = SampleOrder | MixedOrder


def windows(order: SampleOrder, first: int, stop: int) -> list[list[int]]:
    """Shards of each window that holds one of the positions `first` to `stop` - 1, and of the window after them."""
    found = []
    while True:
        window = order.window_at(first)
        found.append(list(window.shards))
        if first >= stop:
            return found
        first = window.stop


def upcoming(order: Order, first: int, stop: int) -> list[int]:
    """Shards that the positions `first` to `stop` - 1 need, and those of the window after them."""
    if isinstance(order, MixedOrder):
        return order.upcoming(first, stop)
    return [shard for shards in windows(order, first, stop) for shard in shards]


def order_of(seed: int, shards: ShardSizes, window: int | None, mix: tuple[MixPart, ...] = ()) -> Order:
    """The order of a data set, or of a mix of several."""
    return MixedOrder(seed, shards, window, mix) if mix else SampleOrder(seed, shards, window)


def scaled(x: Positions, numerator: int, denominator: int) -> Positions:
    """floor(x * numerator / denominator), exact for results below 2**50, though the products exceed 64 bits."""
    quotient = (x.astype(np.float64) * (numerator / denominator)).astype(np.int64)
    with np.errstate(over="ignore"):  # the remainder is small, so it is right modulo 2**64
        rest = x * np.int64(numerator) - quotient * np.int64(denominator)
    quotient += rest >= denominator
    quotient -= rest < 0
    return quotient
