"""Fréchet distance of two sets of features, as FID has it (Heusel et al. 2017, arXiv 1706.08500, equation 6).

FID means Inception features and fixed settings: the distance of other features is on another scale, and is never called
so here.

Shapes: B images of a batch, N of a set, D channels of a feature, R of which vary independently.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from trainer.metrics.metric import Array

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 1024
"""Images whose covariance is computed at once: batches are put together to blocks of as many."""


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """A Gaussian fitted to features, in float64."""

    mean_D: Array
    covariance_DD: Array
    """Unbiased."""
    count: int | None = None
    """Images that they are of; None if that is not known."""

    def __post_init__(self) -> None:
        """Check the shapes.

        Raises:
            ValueError: if they are not of one Gaussian.
        """
        width = self.mean_D.size
        if not width or self.mean_D.shape != (width,) or self.covariance_DD.shape != (width, width):
            shapes = f"{list(self.mean_D.shape)} and {list(self.covariance_DD.shape)}"
            raise ValueError(f"a mean and a covariance of shapes {shapes}: give [D] and [D, D]")

    @functools.cached_property
    def root(self) -> Array:
        """R with R Rᵀ the covariance: a column for each eigenvalue that is not within rounding of zero."""
        from scipy.linalg import eigh

        values_D, vectors_DD = eigh((self.covariance_DD + self.covariance_DD.T) / 2)
        rounding = len(values_D) * np.finfo(np.float64).eps * np.abs(values_D).max()
        kept = values_D > rounding
        return np.asarray(vectors_DD[:, kept] * np.sqrt(values_D[kept]))

    @classmethod
    def from_features(cls, features_ND: npt.NDArray[np.floating] | Tensor) -> Self:
        """Of features that are in memory.

        Raises:
            ValueError: as `FeatureSums.update` and `FeatureSums.statistics`.
        """
        sums = FeatureSums()
        sums.update(features_ND)
        found = sums.statistics()
        return cls(found.mean_D, found.covariance_DD, found.count)


class FeatureSums:
    """Sums from which mean and covariance follow; they take the memory of a covariance or two.

    Sums are kept around the mean (Chan et al. 1979), so that nothing cancels however far the mean is from zero. They
    are taken in blocks of `BLOCK` images, so the digits follow from features and their order, not from the batches.
    """

    def __init__(self) -> None:
        self.count = 0
        self._summed = _Sums.empty(0)
        self._waiting_BD: Array = np.empty((0, 0))
        """Features of the block that is not yet full: the first `count - _summed.count` rows."""

    def update(self, values_BD: npt.NDArray[np.floating] | Tensor) -> None:
        """Add a batch of features.

        Raises:
            ValueError: if the shape is not [B, D] with both at least 1 and D as before, or a feature is not finite.
        """
        features = np.asarray(values_BD)
        if features.ndim != 2 or not features.size:
            raise ValueError(f"features of shape {list(features.shape)}: give [images, channels], at least one of each")
        if not np.isfinite(features).all():
            raise ValueError("features hold values that are not finite; the network that made them has diverged")
        self._check_width(features.shape[1])
        while len(features):
            waiting = self.count - self._summed.count
            part_BD, features = np.split(features, [min(BLOCK - waiting, len(features))])
            self._waiting_BD[waiting : waiting + len(part_BD)] = part_BD
            self.count += len(part_BD)
            if waiting + len(part_BD) == BLOCK:
                self._summed = self._all()

    def merge(self, other: FeatureSums) -> None:
        """Add all that another one has seen, after what this one has.

        Raises:
            ValueError: if the features have different widths.
        """
        if other.count:
            self._check_width(len(other._summed.mean_D))
            self._summed = self._all().plus(other._all())
            self.count = self._summed.count

    def statistics(self) -> FeatureStatistics:
        """The Gaussian.

        Raises:
            ValueError: if there are fewer than 2 images.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, there is {self.count}")
        found = self._all()
        return FeatureStatistics(found.mean_D, found.scatter_DD / (found.count - 1), found.count)

    def _check_width(self, width: int) -> None:
        """That features have as many channels as those before; the first ones say how many."""
        if not self.count:
            self._summed = _Sums.empty(width)
            self._waiting_BD = np.empty((BLOCK, width))
        if width != len(self._summed.mean_D):
            raise ValueError(f"features of {len(self._summed.mean_D)} and of {width} channels have no common space")

    def _all(self) -> _Sums:
        """Sums with those of the block that is not full."""
        waiting_BD = self._waiting_BD[: self.count - self._summed.count]
        return self._summed.plus(_Sums.of(waiting_BD)) if len(waiting_BD) else self._summed


@dataclass(frozen=True, eq=False)
class _Sums:
    count: int
    mean_D: Array
    scatter_DD: Array
    """Sum over images of the outer product of (feature - mean) with itself."""

    @classmethod
    def empty(cls, width: int) -> Self:
        return cls(0, np.zeros(width), np.zeros((width, width)))

    @classmethod
    def of(cls, features_BD: Array) -> Self:
        mean_D = features_BD.mean(axis=0)
        centred_BD = features_BD - mean_D
        return cls(len(features_BD), mean_D, centred_BD.T @ centred_BD)

    def plus(self, other: _Sums) -> _Sums:
        count = self.count + other.count
        shift_D = other.mean_D - self.mean_D
        scatter_DD = np.outer(shift_D, shift_D)
        scatter_DD *= self.count * other.count / count
        scatter_DD += self.scatter_DD
        scatter_DD += other.scatter_DD
        return _Sums(count, self.mean_D + shift_D * (other.count / count), scatter_DD)


class FrechetDistance(FeatureSums):
    """The distance of images from a reference, as a `Metric`."""

    def __init__(self, reference: FeatureStatistics) -> None:
        super().__init__()
        self.reference = reference

    def compute(self) -> float:
        """The distance.

        Raises:
            ValueError: if there are fewer than 2 images, or the reference is of features of another width.
        """
        return frechet_distance(self.statistics(), self.reference)


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """Squared Fréchet distance of two Gaussians: |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½), never negative.

    tr (C1 C2)^½ is the sum of the singular values of C1^½ C2^½. They are exact to rounding of the largest one. The
    eigenvalues of a product of covariances are so, too, but then their roots are summed, and the root of an error of
    1e-16 is one of 1e-8, once for each dimension that features hardly span.

    Raises:
        ValueError: if the features have different widths.
    """
    from scipy.linalg import svdvals

    if first.mean_D.shape != second.mean_D.shape:
        raise ValueError(f"features of {len(first.mean_D)} and of {len(second.mean_D)} channels cannot be compared")
    product = first.root.T @ second.root
    overlap = float(svdvals(product).sum()) if product.size else 0.0
    shift_D = first.mean_D - second.mean_D
    traces = np.trace(first.covariance_DD) + np.trace(second.covariance_DD)
    return max(0.0, float(shift_D @ shift_D + traces) - 2 * overlap)
