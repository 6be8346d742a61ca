"""The order of data: a pure function of seed and position."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.order.permutations import (
    SampleOrder,
    keyed_uniform,
    permutation,
    step_positions,
    windowed_permutation,
)

seeds = st.integers(0, 2**31)


@given(seeds, st.integers(0, 5), st.integers(1, 500))
def test_an_epoch_holds_each_sample_once(seed: int, epoch: int, count: int) -> None:
    assert sorted(permutation(seed, epoch, count)) == list(range(count))


@given(seeds, st.integers(1, 60), st.integers(0, 200), st.integers(1, 200))
def test_a_range_of_positions_across_epochs_reads_each_epochs_order(
    seed: int, count: int, first: int, size: int
) -> None:
    positions = np.arange(first, first + size)
    expected = [permutation(seed, int(p) // count, count)[p % count] for p in positions]
    assert SampleOrder(seed, (count,)).indices(positions).tolist() == expected


shard_sizes = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any)


@given(seeds, st.integers(0, 5), shard_sizes, st.integers(1, 14))
def test_a_windowed_epoch_holds_each_sample_once_and_a_window_reads_few_shards(
    seed: int, epoch: int, sizes: list[int], window: int
) -> None:
    order = windowed_permutation(seed, epoch, tuple(sizes), window)
    assert sorted(order.tolist()) == list(range(sum(sizes)))
    shard_of = np.repeat(np.arange(len(sizes)), sizes)[order]
    remaining = shard_of.tolist()
    while remaining:  # the shards of one window are used up before another shard is begun
        together = list(dict.fromkeys(remaining))[:window]
        here = [shard for shard in remaining if shard in together]
        if len(together) < window or 0 in sizes:
            break  # the last window, or empty shards, which fill a window without a sample
        assert sorted(remaining[: len(here)]) == sorted(here)
        remaining = remaining[len(here) :]


@given(seeds, shard_sizes, st.integers(1, 14), st.integers(0, 100), st.integers(1, 100))
def test_a_window_changes_the_order_within_an_epoch_alone(
    seed: int, sizes: list[int], window: int, first: int, size: int
) -> None:
    order, count = SampleOrder(seed, tuple(sizes), window), sum(sizes)
    positions = np.arange(first, first + size)
    expected = [order.indices(np.arange(p // count * count, p + 1))[-1] for p in positions.tolist()]
    assert order.indices(positions).tolist() == expected


def test_a_window_over_all_shards_shuffles_all_samples() -> None:
    everything = np.arange(12)
    assert np.array_equal(SampleOrder(3, (4, 8), 2).indices(everything), SampleOrder(3, (12,)).indices(everything))


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


def test_draws_are_uniform_and_streams_and_seeds_differ() -> None:
    positions = np.arange(20_000)
    draws = [keyed_uniform(seed, stream, positions) for seed, stream in ((0, "a"), (0, "b"), (1, "a"))]
    for one in draws:
        assert np.histogram(one, 10, (0, 1))[0] == pytest.approx(2000, rel=0.1)
    assert abs(np.corrcoef(draws) - np.eye(3)).max() < 0.03
