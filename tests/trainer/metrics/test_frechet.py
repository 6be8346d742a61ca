"""Fréchet distance of Gaussians, against closed forms, scipy's matrix square root and torch-fidelity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from trainer.metrics.frechet import BLOCK, FeatureStatistics, FeatureSums, FrechetDistance, frechet_distance


def gaussian(mean: list[float], covariance: list[list[float]]) -> FeatureStatistics:
    return FeatureStatistics(np.array(mean), np.array(covariance))


def sums_of(features: np.ndarray, cuts: list[int] | None = None) -> FeatureSums:
    sums = FeatureSums()
    for batch in np.split(features, sorted(cuts or [])):
        if len(batch):
            sums.update(batch)
    return sums


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
    shift = first.mean_D - second.mean_D
    root = sqrtm(first.covariance_DD @ second.covariance_DD)
    expected = shift @ shift + np.trace(first.covariance_DD + second.covariance_DD - 2 * np.real(root))
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)


def test_features_that_never_vary_differ_by_their_means_alone() -> None:
    first, second = (FeatureStatistics.from_features(np.full((5, 3), value)) for value in (1.0, 3.0))
    assert frechet_distance(first, second) == pytest.approx(3 * 4)


def test_it_is_symmetric() -> None:
    first, second = (FeatureStatistics.from_features(random_features(seed, 50, 6)) for seed in (3, 4))
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first), rel=1e-9)


def test_singular_covariances_are_no_problem() -> None:
    few = random_features(5, 4, 32)  # 4 samples span 3 of 32 dimensions
    first, second = FeatureStatistics.from_features(few), FeatureStatistics.from_features(few + 0.5)
    assert frechet_distance(first, second) == pytest.approx(32 * 0.25, rel=1e-6)


def test_it_agrees_with_torch_fidelity_where_there_are_more_images_than_channels() -> None:
    first, second = (random_features(seed, 400, 48) for seed in (7, 8))
    peers = [fid_features_to_statistics(torch.from_numpy(features)) for features in (first, second)]
    expected = fid_statistics_to_metric(*peers, False)["frechet_inception_distance"]
    distance = FrechetDistance(FeatureStatistics.from_features(second))
    distance.update(first)
    assert distance.compute() == pytest.approx(expected, rel=1e-6)


def test_directions_in_which_features_hardly_vary_cost_no_digits() -> None:
    rotation, _ = np.linalg.qr(np.random.default_rng(9).normal(size=(40, 40)))
    variance = np.logspace(2, -8, 40)
    first = FeatureStatistics(np.zeros(40), (rotation * variance) @ rotation.T)
    second = FeatureStatistics(np.zeros(40), (rotation * variance * 1.1**2) @ rotation.T)
    assert frechet_distance(first, second) == pytest.approx(0.1**2 * variance.sum(), rel=1e-9)  # Σ (√a - √b)²


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_mean_and_covariance_are_those_of_numpy(offset: float) -> None:
    features = random_features(6, BLOCK + 40, 5) + offset
    statistics = sums_of(features, [3, 700]).statistics()
    assert statistics.count == BLOCK + 40
    np.testing.assert_allclose(statistics.mean_D, features.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(statistics.covariance_DD, np.cov(features, rowvar=False), rtol=1e-6, atol=1e-8)


@settings(max_examples=20)
@given(cuts=st.lists(st.integers(1, 2 * BLOCK + 99), max_size=5))
def test_the_digits_do_not_depend_on_how_images_are_cut_into_batches(cuts: list[int]) -> None:
    features = random_features(6, 2 * BLOCK + 100, 3)
    whole, cut = sums_of(features).statistics(), sums_of(features, cuts).statistics()
    assert (cut.mean_D == whole.mean_D).all()
    assert (cut.covariance_DD == whole.covariance_DD).all()


@settings(max_examples=20)
@given(cut=st.integers(1, BLOCK + 99))
def test_sums_of_parts_merge_to_those_of_the_whole(cut: int) -> None:
    features = random_features(6, BLOCK + 100, 3) + 1e3
    first, second = sums_of(features[:cut]), sums_of(features[cut:])
    first.merge(second)
    assert first.count == len(features)
    np.testing.assert_allclose(first.statistics().mean_D, features.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(first.statistics().covariance_DD, np.cov(features, rowvar=False), rtol=1e-9)


def test_what_is_added_after_a_merge_counts() -> None:
    features = random_features(6, 90, 3)
    sums = sums_of(features[:30])
    sums.merge(sums_of(features[30:50]))
    sums.update(features[50:])
    np.testing.assert_allclose(sums.statistics().covariance_DD, np.cov(features, rowvar=False), rtol=1e-9)


def test_merging_leaves_the_other_as_it_was() -> None:
    features = random_features(6, 90, 3)
    first, second = sums_of(features[:30]), sums_of(features[30:])
    first.merge(second)
    np.testing.assert_allclose(second.statistics().covariance_DD, np.cov(features[30:], rowvar=False), rtol=1e-9)


def test_sums_of_nothing_change_nothing() -> None:
    sums = FeatureSums()
    sums.merge(FeatureSums())
    sums.merge(sums_of(random_features(0, 9, 3)))
    sums.merge(FeatureSums())
    assert sums.count == 9


def test_one_image_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="at least 2 images, there is 1"):
        FeatureStatistics.from_features(np.ones((1, 3)))


def test_features_of_different_widths_cannot_be_compared() -> None:
    first, second = (random_features(0, 9, width) for width in (3, 4))
    with pytest.raises(ValueError, match="3 and of 4 channels"):
        frechet_distance(FeatureStatistics.from_features(first), FeatureStatistics.from_features(second))
    sums = sums_of(first)
    with pytest.raises(ValueError, match="3 and of 4 channels"):
        sums.merge(sums_of(second))
    with pytest.raises(ValueError, match="3 and of 4 channels"):
        sums.update(second)


@pytest.mark.parametrize("features", [np.ones(3), np.ones((0, 3)), np.array([[1.0, np.nan]]), np.array([[np.inf]])])
def test_what_is_no_batch_of_finite_features_is_refused(features: np.ndarray) -> None:
    with pytest.raises(ValueError, match="features"):
        FeatureSums().update(features)


def test_a_mean_and_a_covariance_of_different_widths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[2\] and \[3, 3\]"):
        FeatureStatistics(np.zeros(2), np.eye(3))
