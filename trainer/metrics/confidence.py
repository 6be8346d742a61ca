"""How far a number of a sample of images may be from that of all such images: one standard error, shown behind ±.

1. of a mean of rows of images (PSNR, accuracy, …): from the rows, in closed form
2. of any `Metric` (Fréchet distance, Inception score): the bootstrap (Efron 1979), over disjoint blocks of images

A resample has images twice, so its Fréchet distance is larger than that of as many different images: the spread of
resamples is the standard error, their mean is not the number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from data_pipeline.order.permutations import keyed_uniform
from trainer.metrics.metric import Metric

_M = TypeVar("_M", bound=Metric)

RESAMPLES = 20
"""Of which the standard error is itself known to 16 %: 1/√(2 (resamples - 1))."""
_PART = 2**20


def standard_error(values_N: npt.NDArray[np.number]) -> float:
    """Of the mean of independent values: their deviation (of N - 1) by √N.

    Args:
        values_N: a value for each image; it may be a memory map.

    Raises:
        ValueError: if there are fewer than 2, or they are not finite.
    """
    count = len(values_N)
    if values_N.ndim != 1 or count < 2:
        raise ValueError(f"values of shape {list(values_N.shape)} have no deviation: give [images], at least 2")
    mean = np.mean(values_N, dtype=np.float64)
    if not np.isfinite(mean):
        raise ValueError("values are not finite, so their mean has no error")
    parts = (values_N[first : first + _PART] - mean for first in range(0, count, _PART))
    squares = sum(float(part @ part) for part in parts)
    return float(np.sqrt(squares / (count - 1) / count))


def bootstrap_error(
    blocks: Sequence[Callable[[], _M]], empty: Callable[[], _M], resamples: int = RESAMPLES, seed: int = 0
) -> float:
    """The standard error of a metric: its deviation over resamples of blocks, drawn with replacement.

    Which blocks a resample has is keyed by seed, resample and draw. One resample is in memory at a time, and one block;
    every resample makes its blocks anew.

    Args:
        blocks: each makes the metric of a block of images. Blocks are of equal size, and have no image in common.
        empty: makes the metric of no images.
        resamples: how many.
        seed: of what is drawn.

    Raises:
        ValueError: if there are fewer than 2 blocks or resamples.
    """
    if len(blocks) < 2 or resamples < 2:
        raise ValueError(f"{resamples} resamples of {len(blocks)} blocks have no deviation: take at least 2 of each")
    values = [_resampled(blocks, empty(), times_of_blocks(len(blocks), each, seed)) for each in range(resamples)]
    return float(np.std(values, ddof=1))


def times_of_blocks(blocks: int, resample: int, seed: int) -> npt.NDArray[np.int64]:
    """How often each block is in a resample, int64 [blocks]; as often as there are blocks, together."""
    draws = np.arange(blocks, dtype=np.int64)
    drawn = keyed_uniform(seed, f"bootstrap/{resample}", draws) * blocks
    return np.bincount(drawn.astype(np.int64), minlength=blocks)


def _resampled(blocks: Sequence[Callable[[], _M]], total: _M, times: npt.NDArray[np.int64]) -> float:
    for make, count in zip(blocks, times, strict=True):
        if count:
            block = make()
            for _ in range(count):
                total.merge(block)
    return total.compute()
