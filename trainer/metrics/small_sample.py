"""Fréchet distance of two small sets of features, which are in memory.

A covariance of N images in D dimensions has D² numbers, and the distance of two takes three decompositions of such
matrices: 20 s of one core at 2,048. Of fewer images than dimensions the same number follows from N × M products of
features (frechet.py: any roots of the covariances will do, and centred features are one), in a small part of a second.

Shapes: N and M images, D channels of a feature.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from trainer.metrics.frechet import FeatureStatistics, frechet_distance
from trainer.metrics.metric import Array


def small_sample_distance(first_ND: npt.NDArray[np.floating], second_MD: npt.NDArray[np.floating]) -> float:
    """Squared Fréchet distance of Gaussians that are fitted to two sets of features, never negative.

    Raises:
        ValueError: if a set has fewer than 2 images, a feature is not finite, or the widths differ.
    """
    first, second = _checked(first_ND), _checked(second_MD)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"features of {first.shape[1]} and of {second.shape[1]} channels cannot be compared")
    if max(len(first), len(second)) > first.shape[1]:
        return frechet_distance(FeatureStatistics.from_features(first), FeatureStatistics.from_features(second))
    return _of_few(first, second)


def _of_few(first_ND: Array, second_MD: Array) -> float:
    from scipy.linalg import svdvals

    root_ND, other_MD = _root(first_ND), _root(second_MD)
    shift_D = first_ND.mean(axis=0) - second_MD.mean(axis=0)
    traces = float(np.square(root_ND).sum() + np.square(other_MD).sum())
    return max(0.0, float(shift_D @ shift_D) + traces - 2 * float(svdvals(root_ND @ other_MD.T).sum()))


def _root(features_ND: Array) -> Array:
    """R with RᵀR the unbiased covariance."""
    return np.asarray((features_ND - features_ND.mean(axis=0)) / math.sqrt(len(features_ND) - 1))


def _checked(features_ND: npt.NDArray[np.floating]) -> Array:
    features = np.asarray(features_ND, dtype=np.float64)
    if features.ndim != 2 or len(features) < 2 or not features.shape[1]:
        raise ValueError(f"features of shape {list(features.shape)}: give [images, channels], at least 2 images")
    if not np.isfinite(features).all():
        raise ValueError("features hold values that are not finite; the network that made them has diverged")
    return features
