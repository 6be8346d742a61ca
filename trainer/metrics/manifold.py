"""Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991, section 2), and nearest neighbours.

The manifold of a set of images is the union of balls around their features, each as wide as the distance to the k-th
nearest other one. Precision is the share of generated images in the manifold of the real ones; recall is the reverse.

Features are read block by block, in float64, so they may be memory maps of any length. The shape of blocks follows from
the width of the features alone, so digits do, too. A call takes at most 256 MiB beside what it is given and returns.

Shapes: N, M images of a set, D channels of a feature, K neighbours; in blocks, R rows and S other rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.metrics.metric import Array

Features = npt.NDArray[np.floating[Any]]

NEIGHBOURS = 3
"""k of the paper, and of ADM's evaluator."""
_BLOCK_BYTES = 32 * 2**20
_MOST_ROWS = 2048


class PrecisionRecall(NamedTuple):
    """Shares of images, 0 to 1."""

    precision: float
    recall: float


def precision_recall(real_ND: Features, generated_MD: Features, neighbours: int = NEIGHBOURS) -> PrecisionRecall:
    """Both shares.

    Raises:
        ValueError: if a set has no more than `neighbours` images, or the features have different widths.
    """
    precise_M, recalled_N = covered(generated_MD, real_ND, neighbours)
    return PrecisionRecall(float(precise_M.mean()), float(recalled_N.mean()))


def covered(
    first_ND: Features, second_MD: Features, neighbours: int = NEIGHBOURS
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which images of each set are in the manifold of the other, [N] and [M].

    Raises:
        ValueError: if a set has no more than `neighbours` images, the features have different widths, or one is not
            finite.
    """
    _check_shapes(first_ND, second_MD)
    first_radii_N, second_radii_M = radii(first_ND, neighbours), radii(second_MD, neighbours)
    first_N, second_M = np.zeros(len(first_ND), np.bool_), np.zeros(len(second_MD), np.bool_)
    for here in _blocks(first_ND):
        first_RD = _read(first_ND, here)
        for there in _blocks(second_MD):
            distance_RS = _squared_distances(first_RD, _read(second_MD, there))
            first_N[here] |= (distance_RS <= second_radii_M[there]).any(axis=1)
            second_M[there] |= (distance_RS <= first_radii_N[here, None]).any(axis=0)
    return first_N, second_M


def radii(features_ND: Features, neighbours: int = NEIGHBOURS) -> Array:
    """Squared distance of each image from its k-th nearest other one, [N].

    Raises:
        ValueError: if there are no more than `neighbours` images, or a feature is not finite.
    """
    _check_shapes(features_ND, features_ND)
    if not 0 < neighbours < len(features_ND):
        raise ValueError(f"{len(features_ND)} images have no {neighbours} neighbours each: give more images")
    least_NK = np.full((len(features_ND), neighbours + 1), np.inf)  # one of which is of the image from itself
    for here in _blocks(features_ND):
        first_RD = _read(features_ND, here)
        for there in _blocks(features_ND, here.start):
            distance_RS = _squared_distances(first_RD, _read(features_ND, there))
            least_NK[here] = _least(least_NK[here], distance_RS)
            if there != here:
                least_NK[there] = _least(least_NK[there], distance_RS.T)
    found_N: Array = least_NK.max(axis=1)
    return found_N


def _least(least_RK: Array, distance_RS: Array) -> Array:
    """The K smallest of both in each row, in no order."""
    count = least_RK.shape[1]
    all_RS = np.concatenate([least_RK, distance_RS], axis=1)
    all_RS.partition(count - 1, axis=1)
    return all_RS[:, :count]


def nearest(queries_ND: Features, references_MD: Features, count: int = 1) -> tuple[npt.NDArray[np.int64], Array]:
    """The nearest references of each query, nearest first.

    Returns:
        Their numbers [N, count], and their distances [N, count].

    Raises:
        ValueError: if there are fewer references than `count`, the features have different widths, or one is not
            finite.
    """
    _check_shapes(queries_ND, references_MD)
    if not 0 < count <= len(references_MD):
        raise ValueError(f"{len(references_MD)} references have no {count} nearest ones: ask for fewer")
    indices = np.empty((len(queries_ND), count), np.int64)
    distances = np.empty((len(queries_ND), count))
    for here, index_RK in _nearest(queries_ND, references_MD, count):
        exact_RK = _exact_distances(_read(queries_ND, here), references_MD, index_RK)
        order_RK = np.lexsort((index_RK, exact_RK))
        indices[here] = np.take_along_axis(index_RK, order_RK, axis=1)
        distances[here] = np.take_along_axis(exact_RK, order_RK, axis=1)
    return indices, distances


def _nearest(
    queries_ND: Features, references_MD: Features, count: int
) -> Iterator[tuple[slice, npt.NDArray[np.int64]]]:
    """For each block of queries: where it is, and the numbers of the nearest references, in no order."""
    for here in _blocks(queries_ND):
        query_RD = _read(queries_ND, here)
        best_RK: Array = np.empty((len(query_RD), 0))
        index_RK: npt.NDArray[np.int64] = np.empty((len(query_RD), 0), np.int64)
        for there in _blocks(references_MD):
            distance_RS = _squared_distances(query_RD, _read(references_MD, there))
            before = best_RK.shape[1]
            all_RS = np.concatenate([best_RK, distance_RS], axis=1)
            kept = min(count, all_RS.shape[1])
            chosen_RK = np.argpartition(all_RS, kept - 1, axis=1)[:, :kept]
            numbers_RK = chosen_RK - before + there.start
            if before:
                old_RK = np.take_along_axis(index_RK, np.minimum(chosen_RK, before - 1), axis=1)
                numbers_RK = np.where(chosen_RK < before, old_RK, numbers_RK)
            best_RK, index_RK = np.take_along_axis(all_RS, chosen_RK, axis=1), numbers_RK
        yield here, index_RK


def _squared_distances(first_RD: Array, second_SD: Array) -> Array:
    """|a|² + |b|² - 2 a·b, [R, S]: one product of matrices, exact to rounding of |a|² and |b|²."""
    distance_RS = first_RD @ second_SD.T
    distance_RS *= -2
    distance_RS += np.einsum("rd,rd->r", first_RD, first_RD)[:, None]
    distance_RS += np.einsum("sd,sd->s", second_SD, second_SD)
    return np.maximum(distance_RS, 0, out=distance_RS)


def _exact_distances(query_RD: Array, references_MD: Features, index_RK: npt.NDArray[np.int64]) -> Array:
    """|a - b| of few pairs, [R, K]: zero for equal features."""
    columns = []
    for index_R in index_RK.T:
        difference_RD = query_RD - references_MD[index_R]
        columns.append(np.sqrt(np.einsum("rd,rd->r", difference_RD, difference_RD)))
    return np.stack(columns, axis=1)


def _blocks(features_ND: Features, begin: int = 0) -> Iterator[slice]:
    rows = max(1, min(_MOST_ROWS, _BLOCK_BYTES // (8 * features_ND.shape[1])))
    for first in range(begin, len(features_ND), rows):
        yield slice(first, min(first + rows, len(features_ND)))


def _read(features_ND: Features, here: slice) -> Array:
    block_RD = np.asarray(features_ND[here], np.float64)
    if not np.isfinite(block_RD).all():
        raise ValueError("features hold values that are not finite; the network that made them has diverged")
    return block_RD


def _check_shapes(first_ND: Features, second_MD: Features) -> None:
    for features in (first_ND, second_MD):
        if features.ndim != 2 or not features.size:
            raise ValueError(f"features of shape {list(features.shape)}: give [images, channels], at least one of each")
    if first_ND.shape[1] != second_MD.shape[1]:
        raise ValueError(f"features of {first_ND.shape[1]} and of {second_MD.shape[1]} channels cannot be compared")
