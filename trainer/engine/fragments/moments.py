"""AdamW's state, made before the first step, so that a fresh run and a resumed one look the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.engine.fragments import MOMENTS


def create_moments(optimizer: torch.optim.Optimizer, weights: Sequence[Tensor]) -> None:
    """Zeros for each of the tensors that the optimizer updates; the step is where fused AdamW wants it."""
    for weight in weights:
        state = optimizer.state[weight]
        state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
        for moment in MOMENTS:
            state[moment] = torch.zeros_like(weight)


def steps_taken(optimizer: torch.optim.Optimizer, weights: Sequence[Tensor]) -> Tensor:
    """Steps taken, a scalar where the weights are; all tensors have taken as many."""
    taken: Tensor = optimizer.state[weights[0]]["step"]
    return taken


def set_step(optimizer: torch.optim.Optimizer, weights: Sequence[Tensor], step: int) -> None:
    """Pretend that `step` steps were taken."""
    for weight in weights:
        optimizer.state[weight]["step"].fill_(step)
