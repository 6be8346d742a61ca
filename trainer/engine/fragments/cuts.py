"""What ZeRO 1, 2 and 3 have in common: masters and moments of this rank lie in one flat tensor per optimizer group."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from trainer.engine.fragments import Fragment
from trainer.engine.fragments.moments import create_moments, set_step, steps_taken


class CutState(ABC):
    """Flat tensors that nobody else holds.

    Args:
        zero_optimizer: DeepSpeed's.
        flat: its master weights of this rank, a tensor per optimizer group.
        ema: whether to keep a moving average.
    """

    def __init__(self, zero_optimizer: Any, flat: Sequence[Tensor], ema: bool) -> None:
        self._zero, self._flat = zero_optimizer, flat
        create_moments(zero_optimizer.optimizer, flat)
        self.keeps_ema = ema
        self._ema: list[Tensor] = [tensor.detach().clone() for tensor in flat] if ema else []

    @abstractmethod
    def owned(self) -> Iterator[Fragment]:
        """The stretches of parameters that lie in this rank's cuts."""

    def held(self) -> Iterator[Fragment]:
        """The same: nothing is held twice."""
        return self.owned()

    @torch.no_grad()
    def update_ema(self, share: Tensor) -> None:
        """Move the average of this rank's cuts towards the master weights."""
        for average, flat in zip(self._ema, self._flat, strict=True):
            average.lerp_(flat.detach(), share.to(flat.device))

    def steps_taken(self) -> Tensor:
        """Steps that AdamW has taken, on the device."""
        return steps_taken(self._zero.optimizer, self._flat)

    @property
    def optimizer_step(self) -> int:
        """Steps that AdamW has taken."""
        return int(self.steps_taken().item())

    @optimizer_step.setter
    def optimizer_step(self, step: int) -> None:
        set_step(self._zero.optimizer, self._flat, step)
