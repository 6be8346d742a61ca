"""Numbers of workers with which a stage can go on at the same global batch, and the micro batch that fits them all."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

from trainer.config import TrainerConfig


def usable_sizes(trainer: TrainerConfig, fewest: int, most: int) -> tuple[int, ...]:
    """Numbers of workers from `fewest` to `most` over which the global batch can be cut, ascending."""
    return tuple(size for size in range(fewest, most + 1) if _fits(trainer, size))


def _fits(trainer: TrainerConfig, workers: int) -> bool:
    try:
        trainer.split_over(workers)
    except ValueError:
        return False
    return True


def same_micro_batch(trainer: TrainerConfig, fewest: int, most: int) -> TrainerConfig:
    """The settings with a micro batch that stays as it is at every usable size, so that only the accumulation follows.

    One that is given stays. Without it each worker would take its share at once, and fewer workers would need more
    memory than there is. So it is the largest that divides the shares at all sizes. No result depends on it.
    """
    sizes = usable_sizes(trainer, fewest, most)
    if trainer.micro_batch is not None or not sizes:
        return trainer
    micro = math.gcd(*(trainer.global_batch // size for size in sizes))
    return trainer.model_copy(update={"micro_batch": micro})


def largest_usable(sizes: Sequence[int], possible: int) -> int:
    """The largest of the ascending `sizes` that does not exceed what is possible; 0 if none does."""
    at = bisect_right(sizes, possible)
    return sizes[at - 1] if at else 0
