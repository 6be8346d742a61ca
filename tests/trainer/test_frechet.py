"""Fréchet distance of Gaussians, against closed forms and scipy's matrix square root."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from trainer.evaluation.frechet import FeatureStatistics, frechet_distance


def gaussian(mean: list[float], covariance: list[list[float]]) -> FeatureStatistics:
    return FeatureStatistics(101, np.array(mean), 100 * np.array(covariance))


def random_features(seed: int, count: int, channels: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, channels)) @ rng.normal(size=(channels, channels)) + rng.normal(size=channels)


def test_the_same_features_have_distance_zero() -> None:
    statistics = FeatureStatistics.from_features(random_features(0, 200, 8))
    assert frechet_distance(statistics, statistics) == pytest.approx(0, abs=1e-9)


def test_equal_covariances_leave_the_squared_distance_of_the_means() -> None:
    covariance = [[2.0, 0.5], [0.5, 1.0]]
    assert frechet_distance(gaussian([0, 0], covariance), gaussian([3, 4], covariance)) == pytest.approx(25)


def test_in_one_dimension_it_is_the_difference_of_means_and_of_deviations() -> None:
    # (1 - 3)² + (√4 - √9)²
    assert frechet_distance(gaussian([1], [[4.0]]), gaussian([3], [[9.0]])) == pytest.approx(5)


def test_it_agrees_with_the_matrix_square_root_of_the_product() -> None:
    first = FeatureStatistics.from_features(random_features(1, 300, 12))
    second = FeatureStatistics.from_features(random_features(2, 300, 12))
    shift = first.mean_C - second.mean_C
    root = sqrtm(first.covariance @ second.covariance)
    expected = shift @ shift + np.trace(first.covariance + second.covariance - 2 * np.real(root))
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)


def test_it_is_symmetric() -> None:
    first, second = (FeatureStatistics.from_features(random_features(seed, 50, 6)) for seed in (3, 4))
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first), rel=1e-9)


def test_singular_covariances_are_no_problem() -> None:
    few = random_features(5, 4, 32)  # 4 samples span 3 of 32 dimensions
    first, second = FeatureStatistics.from_features(few), FeatureStatistics.from_features(few + 0.5)
    assert frechet_distance(first, second) == pytest.approx(32 * 0.25, rel=1e-6)


@settings(max_examples=30)
@given(cuts=st.lists(st.integers(1, 39), max_size=5), offset=st.sampled_from([0.0, 1e6]))
def test_batches_merge_to_the_statistics_of_the_whole(cuts: list[int], offset: float) -> None:
    features = random_features(6, 40, 5) + offset
    batches = [batch for batch in np.split(features, sorted(cuts)) if len(batch)]
    merged = FeatureStatistics.from_features(batches[0])
    for batch in batches[1:]:
        merged = merged.merge(FeatureStatistics.from_features(batch))
    assert merged.count == 40
    np.testing.assert_allclose(merged.mean_C, features.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(merged.covariance, np.cov(features, rowvar=False), rtol=1e-6, atol=1e-8)


def test_one_sample_has_no_covariance() -> None:
    one = FeatureStatistics.from_features(np.ones((1, 3)))
    with pytest.raises(ValueError, match="at least 2 samples, there is 1"):
        frechet_distance(one, FeatureStatistics.from_features(np.ones((2, 3))))


def test_features_of_different_widths_cannot_be_compared() -> None:
    first, second = (FeatureStatistics.from_features(random_features(0, 9, width)) for width in (3, 4))
    with pytest.raises(ValueError, match="3 and of 4 channels"):
        frechet_distance(first, second)
    with pytest.raises(ValueError, match="3 and of 4 channels"):
        first.merge(second)


@pytest.mark.parametrize("features", [np.ones(3), np.ones((0, 3)), np.array([[1.0, np.nan]]), np.array([[np.inf]])])
def test_what_is_no_batch_of_finite_features_is_refused(features: np.ndarray) -> None:
    with pytest.raises(ValueError, match="features"):
        FeatureStatistics.from_features(features)
