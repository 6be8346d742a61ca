"""Whether the best checkpoint can be known by a number of looks at held-out data."""

from __future__ import annotations

from typing import Protocol

from trainer.config.distances import is_distance
from trainer.config.training import TrainerConfig


class _Looks(Protocol):
    """A section `validation`."""

    def every_of(self, metric: str) -> int | None:
        """Steps between the looks that find a number of metrics.jsonl; None if none does."""
        ...


def check_best(trainer: TrainerConfig, validation: _Looks | None) -> None:
    """See that checkpoints have the number by which the best is kept, where it is of a look at held-out data.

    Raises:
        ValueError: if nothing is looked at, or not where checkpoints are written.
    """
    best = trainer.keep_best
    if best is None or not best.metric.startswith("validation_"):
        return
    every = None if validation is None else validation.every_of(best.metric)
    if every is None:
        missing = "validation.distance with that many images" if is_distance(best.metric) else "the section validation"
        raise ValueError(
            f"trainer.keep_best.metric {best.metric} is of looks at held-out data, and none are asked for: add "
            f"{missing}, or take another metric"
        )
    if trainer.checkpoint_every % every:
        key = "validation.distance.every" if is_distance(best.metric) else "validation.every"
        raise ValueError(
            f"trainer.keep_best.metric {best.metric} is known every {every} steps ({key}), and a checkpoint of every "
            f"{trainer.checkpoint_every} (trainer.checkpoint_every) would mostly have none: make the second a multiple "
            "of the first"
        )
