"""What a stage trains: one network, or several that share steps, schedule and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Trainable:
    """A network that is trained, and what is special about its optimizer. Its name is its key in `Trainables`."""

    module: nn.Module
    """Parameters that need no gradients stay as they are; they are saved and exported with the others."""
    no_decay: Set[str] = frozenset()
    """Parameters of the module (by name) that weight decay leaves alone, besides all vectors."""
    learning_rate_factor: float = 1.0
    """Of the schedule's learning rate."""
    betas: tuple[float, float] | None = None
    """AdamW's decay rates of the two moments; None takes the trainer's."""
    ema: bool = True
    """Whether to keep a moving average of the weights where the trainer asks for one."""


Trainables = Mapping[str, Trainable]
"""By the names that checkpoints have: `<trainable>.<parameter>`."""
