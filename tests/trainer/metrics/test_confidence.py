"""Standard errors, against closed forms and repeated draws."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from trainer.metrics.confidence import bootstrap_error, standard_error, times_of_blocks
from trainer.metrics.frechet import FeatureStatistics, FrechetDistance, frechet_distance
from trainer.metrics.inception_score import InceptionScore


class MeanOf:
    """The mean of a column, as a metric."""

    def __init__(self, *values: float) -> None:
        self.count, self.total = len(values), float(sum(values))

    def update(self, values_BD: np.ndarray) -> None:
        raise NotImplementedError

    def merge(self, other: MeanOf) -> None:
        self.count += other.count
        self.total += other.total

    def compute(self) -> float:
        return self.total / self.count


def test_of_a_mean_it_is_the_deviation_by_the_root_of_the_count() -> None:
    # 1, 2, 3, 6: mean 3, squares 4 + 1 + 0 + 9, by 3, by 4
    assert standard_error(np.array([1.0, 2.0, 3.0, 6.0])) == pytest.approx((14 / 3 / 4) ** 0.5)


def test_a_large_mean_costs_no_digits() -> None:
    assert standard_error(np.array([1, 2, 3, 6]) + 2**20) == pytest.approx((14 / 3 / 4) ** 0.5)


@pytest.mark.parametrize("values", [np.ones(1), np.ones((2, 2)), np.array([1.0, np.nan]), np.array([1.0, np.inf])])
def test_values_without_a_finite_deviation_are_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"deviation|finite"):
        standard_error(values)


def test_the_bootstrap_of_a_mean_has_its_closed_form() -> None:
    values = np.random.default_rng(0).gamma(2, size=40)
    blocks = [functools.partial(MeanOf, value) for value in values]
    expected = standard_error(values) * (39 / 40) ** 0.5  # resamples are of the 40 values, whose variance is by 40
    assert bootstrap_error(blocks, MeanOf, 2000) == pytest.approx(expected, rel=0.05)


def test_a_resample_has_as_many_blocks_as_there_are_each_equally_often() -> None:
    times = np.stack([times_of_blocks(10, resample, 0) for resample in range(2000)])
    assert (times.sum(axis=1) == 10).all()
    np.testing.assert_allclose(times.mean(axis=0), 1, atol=0.1)
    np.testing.assert_allclose(times.var(axis=0), 0.9, atol=0.15)  # binomial: 10 draws of 1/10


def test_the_same_seed_gives_the_same_error_and_another_seed_another() -> None:
    blocks = [functools.partial(MeanOf, value) for value in range(10)]
    assert bootstrap_error(blocks, MeanOf, seed=1) == bootstrap_error(blocks, MeanOf, seed=1)
    assert bootstrap_error(blocks, MeanOf, seed=1) != bootstrap_error(blocks, MeanOf, seed=2)


def draw(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.5, 1, (400, 3))


def test_the_bootstrap_of_a_frechet_distance_is_its_spread_over_repeated_samples() -> None:
    reference = FeatureStatistics(np.zeros(3), np.eye(3))
    repeated = [frechet_distance(FeatureStatistics.from_features(draw(seed)), reference) for seed in range(1, 200)]

    def distance(part: np.ndarray) -> FrechetDistance:
        found = FrechetDistance(reference)
        found.update(part)
        return found

    blocks = [functools.partial(distance, part) for part in np.split(draw(0), 40)]
    error = bootstrap_error(blocks, lambda: FrechetDistance(reference), 200)
    assert error == pytest.approx(np.std(repeated), rel=0.35)


def test_an_inception_score_can_be_resampled() -> None:
    logits = np.random.default_rng(0).normal(size=(200, 5))

    def score(first: int) -> InceptionScore:
        found = InceptionScore(200, splits=2, first=first)
        found.update(logits[first : first + 10])
        return found

    blocks = [functools.partial(score, first) for first in range(0, 200, 10)]
    assert 0.001 < bootstrap_error(blocks, lambda: InceptionScore(200, splits=2)) < 0.1


def test_a_single_block_has_no_spread() -> None:
    with pytest.raises(ValueError, match="1 blocks"):
        bootstrap_error([MeanOf], MeanOf)
