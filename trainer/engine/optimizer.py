"""AdamW with its parameter groups; and the one of ZeRO 0, where DeepSpeed does not check gradients in fp32."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config import TrainerConfig
from trainer.engine.finite import mark_overflow
from trainer.engine.trainable import Trainable


def parameter_groups(module: nn.Module, weight_decay: float, no_decay: Set[str]) -> list[dict[str, Any]]:
    """Matrices, which decay; and vectors and the parameters named in `no_decay`, which do not.

    Whether a group does is its key "decays": a decay that changes may be 0 at times.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim < 2 or name in no_decay else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay, "decays": True},
        {"params": plain, "weight_decay": 0.0, "decays": False},
    ]
    return [group for group in groups if group["params"]]


class CheckedAdamW(torch.optim.AdamW):
    """AdamW that clips by the global norm and leaves out a step whose norm is not finite, as ZeRO's wrappers do.

    All of it is decided on the device (trainer.engine.finite). DeepSpeed's engine asks an optimizer for
    `_global_grad_norm` after each step, if it has it.
    """

    def __init__(self, groups: list[dict[str, Any]], max_norm: float, **settings: Any) -> None:
        super().__init__(groups, **settings)
        self.loss_scale = 1.0
        """What the loss was multiplied by before backward."""
        self._max_norm = max_norm
        self._global_grad_norm: Tensor | float = 0.0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update, or none if a gradient is not finite. Gradients are the same on all ranks, so all agree."""
        assert closure is None
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = self._global_grad_norm = torch.nn.utils.get_total_norm(gradients) / self.loss_scale
        mark_overflow(self, norm, norm.device)
        if self._max_norm > 0:
            clipped = self._max_norm / (norm + 1e-6)  # the formula of ZeRO 1 to 3
            torch._foreach_mul_(gradients, torch.where(norm > self._max_norm, clipped, 1.0) / self.loss_scale)
        elif self.loss_scale != 1:
            torch._foreach_mul_(gradients, 1 / self.loss_scale)
        super().step()


def build_optimizer(trainable: Trainable, config: TrainerConfig, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer for a ZeRO stage, on a device. `fused` is one kernel per step, on CPUs too."""
    optimizer = _adamw(trainable, config)
    if device.type == "cpu":
        # At each step it asks the machine's GPU, if it sees one, whether a graph is being captured there.
        optimizer._accelerator_graph_capture_health_check = lambda: None  # type: ignore[method-assign]
    return optimizer


def _adamw(trainable: Trainable, config: TrainerConfig) -> torch.optim.Optimizer:
    groups = parameter_groups(trainable.module, config.weight_decay, trainable.no_decay)
    settings: dict[str, Any] = {"lr": config.learning_rate, "betas": config.betas, "fused": True}
    if config.zero_stage == 0:
        return CheckedAdamW(groups, config.gradient_clipping, **settings)
    return torch.optim.AdamW(groups, **settings)
