"""The order of a mix, against counting by hand."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.order.mixing import MixedOrder, MixPart, scaled, upcoming

PART = st.tuples(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 30))


def order_of(parts: list[tuple[list[int], int]], window: int | None = None, seed: int = 1) -> MixedOrder:
    shards = [size for sizes, _ in parts for size in sizes]
    return MixedOrder(seed, shards, window, tuple(MixPart(len(sizes), draws) for sizes, draws in parts))


@given(st.lists(PART, min_size=1, max_size=4), st.sampled_from([None, 1, 2]), st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_an_epoch_draws_from_each_set_its_number_and_each_round_has_each_sample_once(
    parts: list[tuple[list[int], int]], window: int | None, seed: int
) -> None:
    order, first = order_of(parts, window, seed), 0
    assert order.count == sum(draws for _, draws in parts)
    everything = order.indices(np.arange(4 * order.count))
    for sizes, draws in parts:
        its = (everything >= first) & (everything < first + sum(sizes))
        assert its.reshape(4, -1).sum(1).tolist() == [draws] * 4
        own = everything[its]
        for start in range(0, len(own) - sum(sizes) + 1, sum(sizes)):
            assert sorted(own[start : start + sum(sizes)]) == list(range(first, first + sum(sizes)))
        first += sum(sizes)


@given(st.lists(PART, min_size=2, max_size=3), st.lists(st.integers(0, 10**6), min_size=1, max_size=20))
@settings(deadline=None, max_examples=60)
def test_a_position_says_its_sample_alone(parts: list[tuple[list[int], int]], positions: list[int]) -> None:
    order = order_of(parts)
    one_by_one = [int(order.indices(np.array([position]))[0]) for position in positions]
    assert order.indices(np.array(positions)).tolist() == one_by_one


@pytest.mark.parametrize("draws", [(1, 1), (3, 7), (999, 2), (5, 1000)])
def test_two_sets_alternate_as_evenly_as_they_can(draws: tuple[int, int]) -> None:
    order = order_of([([10], draws[0]), ([10], draws[1])])
    is_second = order.indices(np.arange(order.count)) >= 10
    ideal = np.arange(1, order.count + 1) * draws[1] / order.count
    assert np.abs(np.cumsum(is_second) - ideal).max() < 1


@given(st.integers(0, 2**49), st.integers(1, 2**49), st.integers(0, 2**49))
def test_scaling_is_exact_beyond_64_bits(numerator: int, more: int, x: int) -> None:
    denominator = numerator + more
    x %= denominator
    assert scaled(np.array([x]), numerator, denominator).tolist() == [x * numerator // denominator]


@pytest.mark.parametrize("denominator", [2**49 - 1, 2**49 + 1, 3**30, 10**14 + 31])
@pytest.mark.parametrize("beside", [-1, 0, 1])
def test_scaling_is_exact_just_beside_whole_numbers(denominator: int, beside: int) -> None:
    """Where a quotient of doubles may be rounded to a whole number: x m is a multiple of M, or one less or more."""
    for numerator in (n for n in range(denominator // 3, denominator // 3 + 40) if math.gcd(n, denominator) == 1):
        x = beside * pow(numerator, -1, denominator) % denominator
        assert scaled(np.array([x]), numerator, denominator).tolist() == [x * numerator // denominator]


@given(st.lists(PART, min_size=1, max_size=3), st.integers(0, 300), st.integers(1, 40))
@settings(deadline=None, max_examples=60)
def test_what_is_upcoming_holds_the_samples_of_the_positions(
    parts: list[tuple[list[int], int]], first: int, count: int
) -> None:
    order = order_of(parts, 1)
    ends = np.cumsum(np.asarray(order.shards))
    needed = set(np.searchsorted(ends, order.indices(np.arange(first, first + count)), side="right").tolist())
    assert needed <= set(upcoming(order, first, first + count))


def test_sets_of_one_size_are_not_in_one_order() -> None:
    order = order_of([([1000], 1000), ([1000], 1000)])
    found = order.indices(np.arange(2000))
    first, second = found[found < 1000], found[found >= 1000] - 1000
    assert Counter((first == second).tolist())[True] < 20
