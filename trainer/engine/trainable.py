"""What a stage trains: one network, or several that share steps and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

from torch import nn

from trainer.config import TrainerConfig


@dataclass(frozen=True)
class Trainable:
    """A network that is trained, and what is special about its optimizer. Its name is its key in `Trainables`."""

    module: nn.Module
    """Parameters that need no gradients stay as they are; they are saved and exported with the others."""
    no_decay: Set[str] = frozenset()
    """Parameters of the module (by name) that weight decay leaves alone, besides all vectors."""
    trainer: TrainerConfig | None = None
    """How it is optimized; None as the stage's trainer says. Batch, precision and ZeRO stage are the same."""
    ema: bool = True
    """Whether to keep a moving average of the weights where the trainer asks for one."""

    @property
    def elements(self) -> int:
        """Of all parameters that are trained."""
        return sum(parameter.numel() for parameter in self.module.parameters() if parameter.requires_grad)


Trainables = Mapping[str, Trainable]
"""By the names that checkpoints have: `<trainable>.<parameter>`."""
