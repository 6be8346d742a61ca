"""The learning rate as a pure function of the optimizer step."""

from __future__ import annotations

import math

from trainer.config import TrainerConfig


def learning_rate(config: TrainerConfig, step: int) -> float:
    """Learning rate of optimizer step `step` (from 0): linear warm-up, then a cosine to the final rate."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / (config.warmup_steps + 1)
    progress = (step - config.warmup_steps) / max(1, config.steps - 1 - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * (config.final_learning_rate + (1 - config.final_learning_rate) * cosine)
