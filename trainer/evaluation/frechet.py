"""Fréchet distance between images, in the feature space of the run's own teacher.

It is computed like FID (Heusel et al. 2017, arXiv 1706.08500, section 3 and equation 6), but FID means Inception
features and fixed settings: a distance in another feature space is on another scale, so it never has that name here.

Shapes: B samples of a batch, C channels of a feature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FeatureStatistics:
    """A Gaussian fitted to features, in float64. Statistics of batches add up to those of the whole.

    Sums are kept around the mean (Chan et al. 1979), so that nothing cancels however far the mean is from zero.
    """

    count: int
    mean_C: Array
    scatter_CC: Array
    """Sum over samples of the outer product of (feature - mean) with itself."""

    @classmethod
    def from_features(cls, features_BC: npt.NDArray[np.floating] | Tensor) -> Self:
        """Statistics of one batch of any size from 1.

        Raises:
            ValueError: if the shape is not [B, C] with B at least 1, or a feature is not finite.
        """
        features = np.asarray(features_BC, dtype=np.float64)
        if features.ndim != 2 or not features.size:
            raise ValueError(
                f"features of shape {list(features.shape)}: give [samples, channels], at least one of each"
            )
        if not np.isfinite(features).all():
            raise ValueError("features hold values that are not finite; the network that made them has diverged")
        mean_C = features.mean(axis=0)
        centred_BC = features - mean_C
        return cls(len(features), mean_C, centred_BC.T @ centred_BC)

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """Statistics of the samples of both.

        Raises:
            ValueError: if the features have different widths.
        """
        if self.mean_C.shape != other.mean_C.shape:
            raise ValueError(f"features of {len(self.mean_C)} and of {len(other.mean_C)} channels have no common space")
        count = self.count + other.count
        shift_C = other.mean_C - self.mean_C
        mean_C = self.mean_C + shift_C * (other.count / count)
        between_CC = np.outer(shift_C, shift_C) * (self.count * other.count / count)
        return FeatureStatistics(count, mean_C, self.scatter_CC + other.scatter_CC + between_CC)

    @property
    def covariance(self) -> Array:
        """Unbiased covariance, [C, C].

        Raises:
            ValueError: if there are fewer than 2 samples.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, there is {self.count}")
        return self.scatter_CC / (self.count - 1)


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """Squared Fréchet distance of two Gaussians: |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½), never negative.

    tr (C1 C2)^½ = Σ √λ(C1^½ C2 C1^½): the right-hand matrix is symmetric, so `eigh` finds its eigenvalues, real and
    exact to rounding even where covariances are singular, with no square root of a product that is not symmetric.

    Raises:
        ValueError: if either has fewer than 2 samples, or the features have different widths.
    """
    from scipy.linalg import eigh

    if first.mean_C.shape != second.mean_C.shape:
        raise ValueError(f"features of {len(first.mean_C)} and of {len(second.mean_C)} channels cannot be compared")
    first_CC, second_CC = first.covariance, second.covariance
    values_C, vectors_CC = eigh(first_CC)
    root_CC = (vectors_CC * _roots(values_C)) @ vectors_CC.T
    product_CC = root_CC @ second_CC @ root_CC
    mixed_C = eigh((product_CC + product_CC.T) / 2, eigvals_only=True)
    shift_C = first.mean_C - second.mean_C
    overlap = float(_roots(mixed_C).sum())
    return max(0.0, float(shift_C @ shift_C + np.trace(first_CC) + np.trace(second_CC)) - 2 * overlap)


def _roots(eigenvalues_C: Array) -> Array:
    """Square roots of eigenvalues that cannot be negative, with those within rounding of zero as zero.

    A root would turn an error of 1e-16 into one of 1e-8, once for each dimension that the features do not span.
    """
    rounding = len(eigenvalues_C) * np.finfo(np.float64).eps * np.abs(eigenvalues_C).max()
    return np.sqrt(np.where(eigenvalues_C > rounding, eigenvalues_C, 0.0))
