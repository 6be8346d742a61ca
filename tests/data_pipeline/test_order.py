"""The order of data: a pure function of seed and position."""

from __future__ import annotations

import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.order.feistel import Permutation
from data_pipeline.order.permutations import SampleOrder, keyed_bits, keyed_uniform, step_positions

seeds = st.integers(0, 2**31)
shard_sizes = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any)
windows = st.one_of(st.none(), st.integers(1, 14))


def plain_epoch(seed: int, epoch: int, sizes: list[int], window: int | None) -> list[int]:
    """The samples of an epoch by the definition, with lists."""
    if window is None or window >= len(sizes):
        return list(Permutation(seed, f"{epoch}", sum(sizes)).permute(np.arange(sum(sizes))))
    starts = [sum(sizes[:shard]) for shard in range(len(sizes))]
    turn = Permutation(seed, f"{epoch}/shards", len(sizes)).permute(np.arange(len(sizes))).tolist()
    order = []
    for number, at in enumerate(range(0, len(turn), window)):
        pool = [starts[shard] + sample for shard in turn[at : at + window] for sample in range(sizes[shard])]
        if pool:
            taken = Permutation(seed, f"{epoch}/{number}", len(pool)).permute(np.arange(len(pool)))
            order += [pool[place] for place in taken.tolist()]
    return order


@given(seeds, shard_sizes, windows, st.integers(0, 200), st.integers(1, 200))
def test_a_range_of_positions_across_epochs_reads_each_epochs_order(
    seed: int, sizes: list[int], window: int | None, first: int, size: int
) -> None:
    count = sum(sizes)
    epochs = {epoch: plain_epoch(seed, epoch, sizes, window) for epoch in range((first + size) // count + 1)}
    expected = [epochs[position // count][position % count] for position in range(first, first + size)]
    order = SampleOrder(seed, tuple(sizes), window)
    assert order.count == count
    assert order.indices(np.arange(first, first + size)).tolist() == expected
    assert SampleOrder(seed, np.array(sizes), window).indices(np.arange(first, first + size)).tolist() == expected


@given(seeds, shard_sizes, windows, st.data())
def test_positions_can_be_asked_for_in_any_order_and_shape(
    seed: int, sizes: list[int], window: int | None, data: st.DataObject
) -> None:
    positions = np.array(data.draw(st.lists(st.integers(0, 5 * sum(sizes)), max_size=20)), np.int64)
    order = SampleOrder(seed, tuple(sizes), window)
    alone = [order.indices(np.array([position]))[0] for position in positions.tolist()]
    assert order.indices(positions).tolist() == alone
    assert order.indices(positions[None, :, None]).shape == (1, len(positions), 1)


@given(seeds, st.integers(0, 5), shard_sizes, windows)
def test_an_epoch_holds_each_sample_once_and_its_order_is_inverted(
    seed: int, epoch: int, sizes: list[int], window: int | None
) -> None:
    order, count = SampleOrder(seed, tuple(sizes), window), sum(sizes)
    positions = np.arange(epoch * count, (epoch + 1) * count)
    indices = order.indices(positions)
    assert sorted(indices.tolist()) == list(range(count))
    assert np.array_equal(order.positions(epoch, indices), positions)
    assert np.array_equal(order.positions(epoch, indices[::-1]), positions[::-1])


@given(seeds, st.integers(1, 2**20), st.integers(1, 2**13), windows, st.integers(0, 3), st.data())
def test_billions_of_samples_are_put_in_order_and_back(
    seed: int, size: int, shards: int, window: int | None, epoch: int, data: st.DataObject
) -> None:
    order = SampleOrder(seed, np.full(shards, size), window)
    first = data.draw(st.integers(0, order.count - 1))
    positions = epoch * order.count + np.arange(first, min(first + 100, order.count))
    indices = order.indices(positions)
    assert len(set(indices.tolist())) == len(indices)
    assert np.array_equal(order.positions(epoch, indices), positions)


@given(seeds, st.integers(0, 3), shard_sizes, windows)
def test_windows_cover_the_positions_and_hold_whole_shards(
    seed: int, epoch: int, sizes: list[int], window: int | None
) -> None:
    order, count = SampleOrder(seed, tuple(sizes), window), sum(sizes)
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    position, used, number = epoch * count, list[int](), -1
    while position < (epoch + 1) * count:
        found = order.window_at(position)
        assert found.first == position
        assert found.epoch == epoch
        assert found.number > number
        assert all(order.window_at(inside) == found for inside in range(found.first, found.stop))
        assert len(found.shards) <= (window or len(sizes))
        assert list(found.shards) == sorted(found.shards)
        samples = order.indices(np.arange(found.first, found.stop))
        assert set(shard_of[samples].tolist()) == {shard for shard in found.shards if sizes[shard]}
        assert len(samples) == sum(sizes[shard] for shard in found.shards)
        position, number = found.stop, found.number
        used += found.shards
    assert position == (epoch + 1) * count
    assert len(set(used)) == len(used)
    assert {shard for shard, size in enumerate(sizes) if size} <= set(used)


def test_a_window_is_numbered_within_its_epoch() -> None:
    order = SampleOrder(0, (5,) * 7, 2)
    assert [order.window_at(position).number for position in (0, 9, 10, 29, 30, 34)] == [0, 0, 1, 2, 3, 3]
    assert (order.window_at(35 + 12).epoch, order.window_at(35 + 12).number) == (1, 1)
    assert len(order.window_at(34).shards) == 1


def test_epochs_and_windows_use_shards_in_other_orders() -> None:
    order = SampleOrder(0, (1,) * 1000, 10)
    turns = [[order.window_at(place + epoch * 1000).shards for place in range(0, 1000, 10)] for epoch in (0, 1)]
    assert len(set(turns[0]) & set(turns[1])) == 0
    within = order.indices(np.arange(1000)) - np.repeat([shards[0] for shards in turns[0]], 10)
    assert len({tuple(part) for part in np.argsort(within.reshape(100, 10), axis=1).tolist()}) > 90


def test_a_window_over_all_shards_shuffles_all_samples() -> None:
    everything = np.arange(12)
    assert np.array_equal(SampleOrder(3, (4, 8), 2).indices(everything), SampleOrder(3, (12,)).indices(everything))
    assert SampleOrder(3, (4, 8), 2).window_at(13) == SampleOrder(3, (4, 8)).window_at(13)


def test_the_shards_of_two_epochs_are_kept() -> None:
    order = SampleOrder(0, (3,) * 10, 2)
    for epoch in (0, 1, 2, 3, 2, 3, 0):
        order.indices(np.arange(epoch * 30, epoch * 30 + 30))
    assert len(order._epochs) == 2


def test_a_batch_of_a_billion_samples_takes_no_more_memory_than_itself() -> None:
    order = SampleOrder(0, (10**9,))
    positions = np.arange(10**9 - 512, 10**9 + 512)
    tracemalloc.start()
    order.indices(positions)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * positions.nbytes


@given(st.integers(0, 1000), st.sampled_from([1, 2, 4, 8]), st.integers(1, 16))
def test_any_number_of_workers_consumes_the_same_positions(step: int, world: int, share: int) -> None:
    batch = 8 * share
    parts = [step_positions(step, batch, rank, world) for rank in range(world)]
    assert np.concatenate(parts).tolist() == step_positions(step, batch).tolist()


def test_a_batch_that_cannot_be_cut_evenly_is_refused() -> None:
    with pytest.raises(ValueError, match="no multiple of the 3 workers"):
        step_positions(0, 64, 0, 3)


@given(seeds, st.lists(st.integers(0, 2**40), min_size=1, max_size=50))
def test_a_draw_depends_on_its_own_position_alone(seed: int, positions: list[int]) -> None:
    together = keyed_uniform(seed, "view", np.array(positions))
    alone = [keyed_uniform(seed, "view", np.array([position]))[0] for position in positions]
    assert together.tolist() == alone


@given(st.integers(0, 2**63), st.text(max_size=8), st.integers(0, 2**40))
def test_a_draw_is_splitmix64_of_seed_stream_and_position(seed: int, stream: str, position: int) -> None:
    key = (seed * 0x9E3779B97F4A7C15 + zlib.crc32(stream.encode()) * 2**32 + 0x5851F42D) % 2**64
    x = (position * 0x9E3779B97F4A7C15 + key) % 2**64
    for _ in range(2):
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        x = ((x ^ x >> 31) + key) % 2**64
    assert keyed_bits(seed, stream, np.array([position])).tolist() == [x]
    assert keyed_uniform(seed, stream, np.array([position])).tolist() == [(x >> 11) / 2**53]


def test_draws_are_uniform_and_streams_and_seeds_differ() -> None:
    positions = np.arange(20_000)
    draws = [keyed_uniform(seed, stream, positions) for seed, stream in ((0, "a"), (0, "b"), (1, "a"))]
    for one in draws:
        assert np.histogram(one, 10, (0, 1))[0] == pytest.approx(2000, rel=0.1)
    assert abs(np.corrcoef(draws) - np.eye(3)).max() < 0.03
