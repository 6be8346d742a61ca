"""Permutations that are computed: each number once, the same on every platform, and as well mixed as a shuffle."""

from __future__ import annotations

import hashlib
import itertools
import math
import tracemalloc
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.order.feistel import MOST, Permutation, digit_sizes

Numbers = npt.NDArray[np.int64]
IMAGENET = 1_281_167

seeds = st.integers(0, 2**63)
counts = st.integers(1, 2**33)

VECTORS = [
    (0, "0", 10, [8, 6, 5, 2, 1]),
    (7, "3", 1000, [847, 222, 937, 596, 380]),
    (7, "3", 1024, [862, 767, 762, 588, 187]),
    (1, "0", IMAGENET, [584282, 992193, 435189, 554165, 77048]),
    (1, "1", IMAGENET, [996517, 348650, 1086623, 1200034, 487085]),
    (1, "0", 10**9, [888964844, 803858301, 230543963, 280596, 674001368]),
    (2**31, "5/12", 2**33, [1011229197, 5458037200, 1566861501, 6056828020, 487448196]),
    (5, "2/shards", 2**33 - 1, [691225374, 2606960475, 3048288231, 5623311459, 6693659884]),
]
"""Seed, name, count, and where 0, 1, 2, count // 2 and count - 1 are taken."""


def scalar(seed: int, name: str, count: int, number: int) -> int:
    """The definition, number by number, in Python's own integers."""
    root = math.isqrt(count - 1) + 1
    sizes = [1, 1] if count == 1 else [0, 0]
    for left in range(root, max(2, root - min(root // 4, 256)) - 1, -1):
        right = (count + left - 1) // left
        if count > 1 and (sizes == [0, 0] or left * right <= sizes[0] * sizes[1]):
            sizes = [left, right]
    rounds = 6 if count >= 1024 else 16
    stream = hashlib.shake_256(f"{seed}/{name}".encode()).digest(4 * rounds)
    while True:
        digits = list(divmod(number, sizes[1]))
        for turn in range(rounds):
            x = digits[1 - turn % 2] + int.from_bytes(stream[4 * turn : 4 * turn + 4], "little")
            x = x * 0x7FEB352D % 2**32
            x = (x ^ x >> 15) * 0x846CA68B % 2**32
            digits[turn % 2] = (digits[turn % 2] + x // 16) % sizes[turn % 2]
        number = digits[0] * sizes[1] + digits[1]
        if number < count:
            return number


@pytest.mark.parametrize(("seed", "name", "count", "expected"), VECTORS)
def test_the_published_vectors_hold(seed: int, name: str, count: int, expected: list[int]) -> None:
    numbers = [0, 1, 2, count // 2, count - 1]
    assert Permutation(seed, name, count).permute(np.array(numbers)).tolist() == expected
    assert [scalar(seed, name, count, number) for number in numbers] == expected


@given(seeds, st.text(max_size=8), counts, st.data())
@settings(max_examples=40)
def test_it_is_the_scalar_definition(seed: int, name: str, count: int, data: st.DataObject) -> None:
    numbers = data.draw(st.lists(st.integers(0, count - 1), max_size=5))
    expected = [scalar(seed, name, count, number) for number in numbers]
    assert Permutation(seed, name, count).permute(np.array(numbers, np.int64)).tolist() == expected


def test_it_is_the_scalar_definition_at_every_small_count() -> None:
    for count in range(1, 40):
        expected = [scalar(3, "e", count, number) for number in range(count)]
        assert Permutation(3, "e", count).permute(np.arange(count)).tolist() == expected


@pytest.mark.parametrize("first", range(1, 400, 100))
def test_every_number_comes_once_at_every_small_count(first: int) -> None:
    for count in range(first, first + 100):
        everything = np.arange(count)
        permutation = Permutation(count, "e", count)
        taken = permutation.permute(everything)
        assert np.array_equal(np.sort(taken), everything)
        assert np.array_equal(permutation.invert(taken), everything)


@pytest.mark.parametrize("count", [1023, 1024, 16_384, 16_385, 65_537, 200_000, 2**18 - 5, IMAGENET])
def test_every_number_comes_once(count: int) -> None:
    taken = Permutation(9, "e", count).permute(np.arange(count))
    assert np.array_equal(np.bincount(taken, minlength=count), np.ones(count, np.int64))


@given(seeds, counts, st.data())
def test_it_can_be_inverted_at_any_count(seed: int, count: int, data: st.DataObject) -> None:
    numbers = data.draw(st.lists(st.integers(0, count - 1), unique=True, max_size=50))
    permutation = Permutation(seed, "e", count)
    taken = permutation.permute(np.array(numbers, np.int64))
    assert len(set(taken.tolist())) == len(numbers)
    assert all(0 <= number < count for number in taken.tolist())
    assert permutation.invert(taken).tolist() == numbers
    assert permutation.permute(permutation.invert(np.array(numbers, np.int64))).tolist() == numbers


@pytest.mark.parametrize("count", [2**33, 2**33 - 1, MOST, MOST - 1, (2**27 - 1) ** 2 + 1])
def test_long_ranges_of_large_permutations_are_inverted(count: int) -> None:
    permutation = Permutation(1, "e", count)
    numbers = np.concatenate([np.arange(20_000), np.arange(count - 20_000, count)])
    taken = permutation.permute(numbers)
    assert len(np.unique(taken)) == len(numbers)
    assert taken.min() >= 0
    assert taken.max() < count
    assert np.array_equal(permutation.invert(taken), numbers)


@given(st.integers(1, MOST))
def test_digits_are_about_equal_and_hold_little_more_than_the_count(count: int) -> None:
    left, right = digit_sizes(count)
    assert count <= left * right < count + left
    assert left <= 2 * right
    assert right <= 2 * left


def test_shape_is_kept_and_what_is_given_is_not_changed() -> None:
    numbers = np.arange(24).reshape(2, 3, 4)
    permutation = Permutation(0, "e", 24)
    assert np.array_equal(permutation.permute(numbers).ravel(), permutation.permute(np.arange(24)))
    assert np.array_equal(permutation.permute(numbers.transpose()), permutation.permute(numbers).transpose())
    assert np.array_equal(permutation.invert(permutation.permute(numbers)), numbers)
    assert np.array_equal(numbers.ravel(), np.arange(24))
    assert permutation.permute(np.arange(0)).tolist() == []


@pytest.mark.parametrize("number", [-1, 24])
def test_a_number_outside_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match="24 numbers"):
        Permutation(0, "e", 24).permute(np.array([0, number]))
    with pytest.raises(ValueError, match="24 numbers"):
        Permutation(0, "e", 24).invert(np.array([0, number]))


@pytest.mark.parametrize("count", [-1, 0, MOST + 1])
def test_a_count_that_cannot_be_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"not of {count}"):
        Permutation(0, "e", count)


def test_memory_is_that_of_the_batch() -> None:
    numbers = np.arange(10**9 - 1024, 10**9)
    tracemalloc.start()
    Permutation(0, "e", 10**9).permute(numbers)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * numbers.nbytes


# How well it mixes, in standard deviations of a random permutation. numpy's own shuffle passes the same tests.

SIGMAS = 4.5
"""None of the figures below may be further off. Seeds are fixed, so nothing here is up to chance."""


def feistel(seed: int, epoch: int, count: int) -> Numbers:
    return Permutation(seed, str(epoch), count).permute(np.arange(count))


def shuffle(seed: int, epoch: int, count: int) -> Numbers:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)


Draw = Callable[[int, int, int], Numbers]
both = pytest.mark.parametrize("draw", [feistel, shuffle])


def uneven(observed: Numbers) -> float:
    """Pearson's chi-square of counts that should be equal, in standard deviations."""
    expected, freedom = observed.mean(), observed.size - 1
    return float((((observed - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom))


@both
@pytest.mark.parametrize("count", [2**18, IMAGENET])
def test_every_part_of_an_epoch_holds_samples_of_every_part_of_the_data(draw: Draw, count: int) -> None:
    cells = 128
    pairs = np.arange(count) * cells // count * cells + draw(1, 0, count) * cells // count
    assert abs(uneven(np.bincount(pairs, minlength=cells**2))) < SIGMAS


@both
@pytest.mark.parametrize("count", [2**18, IMAGENET])
def test_neighbours_are_taken_to_places_that_have_nothing_to_do_with_each_other(draw: Draw, count: int) -> None:
    taken = draw(1, 0, count)
    for lag in (1, 2, 256, *digit_sizes(count)):
        apart = (taken[lag:] - taken[:-lag]) % count
        assert abs(uneven(np.bincount(apart * 1000 // count, minlength=1000))) < SIGMAS, lag
        correlation = np.corrcoef(taken[lag:], taken[:-lag])[0, 1]
        assert abs(correlation) * math.sqrt(count) < SIGMAS, lag


@both
@pytest.mark.parametrize(("seed", "epoch"), [(1, 1), (2, 0), (2**31, 0)])
def test_another_seed_or_epoch_is_another_order(draw: Draw, seed: int, epoch: int) -> None:
    one, other = draw(1, 0, IMAGENET), draw(seed, epoch, IMAGENET)
    apart = (one - other) % IMAGENET
    assert abs(uneven(np.bincount(apart * 1000 // IMAGENET, minlength=1000))) < SIGMAS
    assert (apart == 0).sum() < 8  # Poisson, mean 1
    assert abs(np.corrcoef(one, other)[0, 1]) * math.sqrt(IMAGENET) < SIGMAS


@both
@pytest.mark.parametrize("bit", [0, 1, 7, 10, 16])
def test_a_bit_of_a_number_changes_half_of_the_bits_of_where_it_is_taken(draw: Draw, bit: int) -> None:
    count, bits = 2**17, 17
    taken, numbers = draw(3, 0, count), np.arange(count)
    turned = taken ^ taken[numbers ^ (1 << bit)]
    shares = [((turned >> place) & 1).mean() for place in range(bits)]
    assert np.abs(np.array(shares) - 0.5).max() * 2 * math.sqrt(count / 2) < SIGMAS


@both
@pytest.mark.parametrize("count", [12, 200, 1024, 1500])
def test_descents_and_fixed_points_are_those_of_random_permutations(draw: Draw, count: int) -> None:
    # Means and variances: 1 and 1 fixed points; (n - 1) / 2 and (n + 1) / 12 descents.
    draws = 1000
    drawn = np.stack([draw(seed, 0, count) for seed in range(draws)])
    descents = (drawn[:, :-1] > drawn[:, 1:]).sum(1)
    fixed = (drawn == np.arange(count)).sum(1)
    for found, mean, variance in ((descents, (count - 1) / 2, (count + 1) / 12), (fixed, 1, 1)):
        assert abs(found.mean() - mean) / math.sqrt(variance / draws) < SIGMAS
    assert abs(descents.var() / ((count + 1) / 12) - 1) / math.sqrt(2 / draws) < SIGMAS
    assert abs(fixed.var() - 1) / math.sqrt(3 / draws) < SIGMAS  # the fourth central moment of Poisson(1) is 4


@both
@pytest.mark.parametrize(("count", "draws"), [(3, 600), (4, 1200), pytest.param(5, 4800, marks=pytest.mark.slow)])
def test_each_order_of_a_few_samples_is_as_likely(draw: Draw, count: int, draws: int) -> None:
    number = {order: at for at, order in enumerate(itertools.permutations(range(count)))}
    found = [number[tuple(draw(seed, 0, count).tolist())] for seed in range(draws)]
    assert abs(uneven(np.bincount(found, minlength=len(number)))) < SIGMAS
