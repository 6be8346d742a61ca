"""The order of data: a pure function of seed and position."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.order import keyed_uniform, permutation, sample_indices, step_positions

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
    assert sample_indices(seed, positions, count).tolist() == expected


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
