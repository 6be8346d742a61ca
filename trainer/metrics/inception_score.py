"""Inception score (Salimans et al. 2016, arXiv 1606.03498, section 4): exp of the mean KL(p(y|x), p(y)), in splits.

Of each split, the sums of p and of p log p are kept, in float64, image after image: the digits follow from the logits
and their order, not from the batches.

Shapes: B images of a batch, S splits, K classes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trainer.metrics.metric import Array

SPLITS = 10
SEED = 2020
"""By which torch-fidelity permutes images before it cuts them into splits."""


class InceptionScore:
    """The mean of the scores of splits of equal size, as a `Metric`.

    Samples mostly come class by class, and a split of few classes would have a low score. So images are dealt to splits
    by a permutation, as torch-fidelity's numpy.random.RandomState(seed).permutation(images); split s has the places
    from s N // S to (s + 1) N // S in it. ADM's evaluator takes images in the order of its npz, 5,000 to a split, which
    is `seed=None` with 10 splits of 50,000 images.

    Args:
        images: that there will be.
        splits: S; 1 for a score of all images at once, which is higher.
        seed: of the permutation; None for the given order.
        first: number of the first image of this part of them, where several parts are merged.

    Raises:
        ValueError: if there are fewer images than splits.
    """

    def __init__(self, images: int, splits: int = SPLITS, seed: int | None = SEED, first: int = 0) -> None:
        if not 0 < splits <= images:
            raise ValueError(f"{images} images cannot be cut into {splits} splits: have at least one image in each")
        self.count = 0
        self._first = first
        self._split_of = _splits(images, splits, seed)
        self._count_S = np.zeros(splits, np.int64)
        self._p_log_p_S: Array = np.zeros(splits)
        self._p_SK: Array = np.zeros((splits, 0))

    def update(self, values_BD: npt.NDArray[np.floating]) -> None:
        """Add a batch of logits [B, K].

        Raises:
            ValueError: if the shape is not that, K is not as before, a logit is not finite, or there are more images
                than were said.
        """
        logits_BK = np.asarray(values_BD, np.float64)
        if logits_BK.ndim != 2 or not logits_BK.size:
            raise ValueError(f"logits of shape {list(logits_BK.shape)}: give [images, classes], at least one of each")
        if not np.isfinite(logits_BK).all():
            raise ValueError("logits hold values that are not finite; the network that made them has diverged")
        start = self._first + self.count
        split_B = self._split_of[start : start + len(logits_BK)]
        if len(split_B) < len(logits_BK):
            raise ValueError(f"there are more than the {len(self._split_of)} images that were to be cut into splits")
        self._check_classes(logits_BK.shape[1])
        p_BK, log_p_BK = _softmax(logits_BK)
        np.add.at(self._p_SK, split_B, p_BK)
        np.add.at(self._p_log_p_S, split_B, (p_BK * log_p_BK).sum(axis=1))
        np.add.at(self._count_S, split_B, 1)
        self.count += len(logits_BK)

    def merge(self, other: InceptionScore) -> None:
        """Add all that another one has seen, in its own splits.

        Raises:
            ValueError: if it has other splits or classes.
        """
        if not np.array_equal(self._split_of, other._split_of) or len(self._count_S) != len(other._count_S):
            raise ValueError(
                "scores of differently cut images cannot be merged: give both the same images, splits, seed"
            )
        if not other.count:
            return
        self._check_classes(other._p_SK.shape[1])
        self._p_SK += other._p_SK
        self._p_log_p_S += other._p_log_p_S
        self._count_S += other._count_S
        self.count += other.count

    def compute(self) -> float:
        """The mean over splits.

        Raises:
            ValueError: if a split has no image.
        """
        return float(self.scores().mean())

    def deviation(self) -> float:
        """The standard deviation of the splits' scores, as papers give it behind ±: it is no error of the mean.

        Raises:
            ValueError: if a split has no image.
        """
        return float(self.scores().std())

    def scores(self) -> Array:
        """Of each split, [S].

        Raises:
            ValueError: if a split has no image.
        """
        from scipy.special import xlogy

        if not self._count_S.all():
            raise ValueError(f"{self.count} images leave a split of {len(self._count_S)} empty: add the others")
        p_SK = self._p_SK / self._count_S[:, None]
        divergence_S = self._p_log_p_S / self._count_S - xlogy(p_SK, p_SK).sum(axis=1)
        return np.asarray(np.exp(divergence_S))

    def _check_classes(self, classes: int) -> None:
        if not self.count:
            self._p_SK = np.zeros((len(self._count_S), classes))
        if self._p_SK.shape[1] != classes:
            raise ValueError(f"logits of {self._p_SK.shape[1]} and of {classes} classes cannot be added")


def _splits(images: int, splits: int, seed: int | None) -> npt.NDArray[np.int32]:
    """The split of each image."""
    cuts = np.arange(1, splits) * images // splits
    of_place = np.searchsorted(cuts, np.arange(images), side="right").astype(np.int32)
    if seed is None:
        return of_place
    of_image = np.empty_like(of_place)
    # The old generator, whose stream numpy has promised to keep, is the one that torch-fidelity uses.
    of_image[np.random.RandomState(seed).permutation(images)] = of_place
    return of_image


def _softmax(logits_BK: Array) -> tuple[Array, Array]:
    """Probabilities, and their logarithms."""
    shifted_BK = logits_BK - logits_BK.max(axis=1, keepdims=True)
    p_BK = np.exp(shifted_BK)
    sum_B1 = p_BK.sum(axis=1, keepdims=True)
    p_BK /= sum_B1
    return p_BK, shifted_BK - np.log(sum_B1)
