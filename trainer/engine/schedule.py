"""Learning rate and weight decay as pure functions of the optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable

from trainer.config import TrainerConfig

_LIN0_START = 0.005
_LIN0_FLAT = 0.05


def learning_rate(config: TrainerConfig, step: int) -> float:
    """Learning rate of optimizer step `step` (from 0): linear warm-up, then the schedule's way to the final rate.

    `lin0` is VAR's (specs of ImageFolder, 3.2): its warm-up begins at 0.5 % of the highest rate. `stairs` is timm's
    cosine as ImageFolder steps it, once an epoch: its cosine counts from the first step, warm-up included.
    """
    stairs = config.stair_steps or 1
    step -= step % stairs
    if step < config.warmup_steps:
        start = _warmup_start(config)
        return config.learning_rate * (start + (1 - start) * step / config.warmup_steps)
    before = 0 if config.stair_steps else config.warmup_steps
    length = config.steps if config.stair_steps else config.steps - 1
    progress = min(1.0, (step - before) / max(1, length - before))
    share = _SHAPES[config.schedule](progress)
    return config.learning_rate * (config.final_learning_rate + (1 - config.final_learning_rate) * share)


def weight_decay(config: TrainerConfig, step: int) -> float:
    """AdamW's decay at optimizer step `step` (from 0): constant, or on half a cosine to the last step's.

    VAR's (specs of the baselines, 3.4): it begins with the first step, warm-up included.
    """
    if config.final_weight_decay is None:
        return config.weight_decay
    share = _cosine(min(1.0, step / max(1, config.steps - 1)))
    return config.final_weight_decay + (config.weight_decay - config.final_weight_decay) * share


def _warmup_start(config: TrainerConfig) -> float:
    """The first step's rate, as a share of the highest."""
    if config.warmup_rate is not None:
        return config.warmup_rate
    return _LIN0_START if config.schedule == "lin0" else 1 / (config.warmup_steps + 1)


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _lin0(progress: float) -> float:
    return min(1.0, (1 - progress) / (1 - _LIN0_FLAT))


_SHAPES: dict[str, Callable[[float], float]] = {"cosine": _cosine, "lin0": _lin0, "stairs": _cosine}
"""From the share of the steps after warm-up (stairs: of all) to the share of the way between final and highest rate."""
