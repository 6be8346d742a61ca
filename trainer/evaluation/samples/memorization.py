"""Whether samples are copies of training images: how near the nearest training image of each is, by features.

What is near is said by held-out images, on which nothing was trained: of these, 1 % are at most as far from their
nearest training image as `threshold`. Of samples of a generator that copies nothing about 1 % are, too; more, where
samples are more typical than real images, as guidance makes them. So a large share asks for a look at the pictures.

Shapes: N samples, M held-out images, T training images, D channels of a feature.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.metrics.manifold import Features, nearest
from trainer.metrics.metric import Array

QUANTILE = 0.01
"""Share of the held-out images that are as near as the threshold, or nearer."""
LEVELS = 40
"""Steps of the quantiles on record, from the least distance to the largest."""


@dataclass(frozen=True)
class NearestTraining:
    """Distances from the nearest training image, and which it is."""

    training_N: npt.NDArray[np.int64]
    """Of each sample, the number of its nearest training image."""
    distance_N: Array
    held_out_M: Array
    """Of each held-out image, the distance from its own nearest one."""

    @classmethod
    def find(cls, samples_ND: Features, held_out_MD: Features, training_TD: Features) -> NearestTraining:
        """Of features, which may be memory maps.

        Raises:
            ValueError: as `nearest`.
        """
        training_N1, distance_N1 = nearest(samples_ND, training_TD)
        _, held_out_M1 = nearest(held_out_MD, training_TD)
        return cls(training_N1[:, 0], distance_N1[:, 0], held_out_M1[:, 0])

    @property
    def threshold(self) -> float:
        """The least distance of a held-out image that at least 1 % of them do not exceed."""
        return float(np.quantile(self.held_out_M, QUANTILE, method="inverted_cdf"))

    @property
    def share(self) -> float:
        """Share of the samples within the threshold."""
        return float((self.distance_N <= self.threshold).mean())

    @property
    def standard_error(self) -> float:
        """Of the share, as that of a share of independent samples."""
        return math.sqrt(self.share * (1 - self.share) / len(self.distance_N))

    def closest(self, count: int) -> npt.NDArray[np.int64]:
        """Numbers of the samples that are nearest to a training image, the nearest first; of equal ones the first."""
        found: npt.NDArray[np.int64] = np.argsort(self.distance_N, kind="stable")[:count]
        return found

    def to_json(self, shown: int) -> dict[str, Any]:
        """For evaluation.json: quantiles of both distances, and the closest samples."""
        levels = np.linspace(0, 1, LEVELS + 1)
        return {
            "samples": len(self.distance_N),
            "held_out": len(self.held_out_M),
            "threshold": self.threshold,
            "share": self.share,
            "quantiles_of_samples": np.quantile(self.distance_N, levels).tolist(),
            "quantiles_of_held_out": np.quantile(self.held_out_M, levels).tolist(),
            "closest": [
                {"sample": int(at), "training_image": int(self.training_N[at]), "distance": float(self.distance_N[at])}
                for at in self.closest(shown)
            ],
        }
