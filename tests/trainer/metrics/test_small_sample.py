"""The Fréchet distance of few images from their features: the number of the covariances, without them."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.metrics.frechet import FeatureStatistics, frechet_distance
from trainer.metrics.small_sample import small_sample_distance


def features(count: int, width: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return 3 + random.standard_normal((count, width)) @ random.standard_normal((width, width)) / width


@pytest.mark.parametrize(("count", "other"), [(2, 2), (7, 30), (30, 30), (31, 12), (90, 90)])
def test_it_is_the_distance_of_means_and_covariances_whatever_there_is_more_of(count: int, other: int) -> None:
    first, second = features(count, 30, 0), features(other, 30, 1)
    wanted = frechet_distance(FeatureStatistics.from_features(first), FeatureStatistics.from_features(second))
    assert small_sample_distance(first, second) == pytest.approx(wanted, rel=1e-9)


def test_of_sets_that_vary_along_one_axis_each_it_is_known_on_paper() -> None:
    """Along the same axis deviations are subtracted; along others that are orthogonal to it variances are added."""
    first, same = np.zeros((3, 5)), np.zeros((3, 5))
    first[:, 0], same[:, 0] = [-2, 0, 2], [0, 1, 2]  # means 0 and 1, unbiased deviations 2 and 1
    assert small_sample_distance(first, same) == pytest.approx(1 + (2 - 1) ** 2)
    across = np.zeros((3, 5))
    across[:, 1] = [0, 1, 2]
    assert small_sample_distance(first, across) == pytest.approx(1 + 4 + 1)


def test_features_of_float32_that_lie_far_from_zero_lose_nothing() -> None:
    random = np.random.default_rng(3)
    first, second = (1000 + random.standard_normal((20, 64)).astype(np.float32) for _ in range(2))
    exact = small_sample_distance(first.astype(np.float64) - 1000, second.astype(np.float64) - 1000)
    assert small_sample_distance(first, second) == pytest.approx(exact, rel=1e-9)


def test_of_equal_sets_it_is_nothing() -> None:
    first = features(20, 64, 2)
    assert small_sample_distance(first, first.copy()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (np.zeros((1, 4)), "at least 2 images"),
        (np.full((3, 4), np.nan), "not finite"),
        (np.zeros((3, 5)), "5 and of 4 channels"),
    ],
)
def test_what_has_no_distance_is_refused(first: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small_sample_distance(first, np.zeros((3, 4)))
