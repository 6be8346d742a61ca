"""The learning rate as a pure function of the optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable

from trainer.config import TrainerConfig

_LIN0_START = 0.005
_LIN0_FLAT = 0.05


def learning_rate(config: TrainerConfig, step: int) -> float:
    """Learning rate of optimizer step `step` (from 0): linear warm-up, then the schedule's way to the final rate.

    `lin0` is VAR's (specs of ImageFolder, 3.2): its warm-up begins at 0.5 % of the highest rate.
    """
    start = _LIN0_START if config.schedule == "lin0" else 1 / (config.warmup_steps + 1)
    if step < config.warmup_steps:
        return config.learning_rate * (start + (1 - start) * step / config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / max(1, config.steps - 1 - config.warmup_steps))
    share = _SHAPES[config.schedule](progress)
    return config.learning_rate * (config.final_learning_rate + (1 - config.final_learning_rate) * share)


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _lin0(progress: float) -> float:
    return min(1.0, (1 - progress) / (1 - _LIN0_FLAT))


_SHAPES: dict[str, Callable[[float], float]] = {"cosine": _cosine, "lin0": _lin0}
"""From the share of the steps after warm-up to the share of the way between final and highest rate."""
