"""Whether a step's gradients are finite, decided on the device: the host never waits for the answer.

DeepSpeed's ZeRO 1 to 3 ask the device for the norm in each step and wait, so that no kernel of the next step is
launched before the last one of this is done. Here the norm leaves a flag on the device, `found_inf`, which fused AdamW
reads there: with it set, weights, moments and counters of steps stay as they are. Checked with deepspeed 0.19.8.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def mark_overflow(optimizer: torch.optim.Optimizer, norm: Tensor, device: torch.device) -> None:
    """Have the next step of a fused optimizer change nothing if the norm of its gradients is not finite.

    Args:
        optimizer: it.
        norm: of all gradients.
        device: of the weights that it updates. If these are in the host's memory (`offload`), the host has to wait.
    """
    optimizer.found_inf = (~torch.isfinite(norm)).to(torch.float32).to(device)  # type: ignore[attr-defined]


def was_applied(optimizer: torch.optim.Optimizer) -> Tensor:
    """Whether the last step of a marked optimizer changed anything, a bool on the device."""
    marked: Tensor = optimizer.found_inf == 0  # type: ignore[attr-defined]
    return marked


def decide_on_device(zero_optimizer: Any, stage: int, device: torch.device) -> None:
    """Have DeepSpeed's optimizer of ZeRO 1, 2 or 3 mark overflows instead of waiting for them.

    Args:
        zero_optimizer: it.
        stage: of ZeRO.
        device: of the master weights.
    """
    from deepspeed.runtime.zero import stage3, stage_1_and_2

    for module in (stage_1_and_2, stage3):
        module.is_invalid_grad_norm = _never
    if stage == 3:
        groups = zero_optimizer._get_norm_groups

        def norm_groups() -> list[Tensor]:
            found: list[Tensor] = groups()
            mark_overflow(zero_optimizer.optimizer, stage3.combine_grad_norm_groups(found), device)
            return found

        zero_optimizer._get_norm_groups = norm_groups
        return
    whole = zero_optimizer.scaled_global_norm

    def scaled_global_norm() -> Tensor:
        found: Tensor = whole()  # infinite if any part is not finite
        mark_overflow(zero_optimizer.optimizer, found, device)
        return found

    zero_optimizer.scaled_global_norm = scaled_global_norm


def _never(norm: Any) -> bool:  # noqa: ARG001 - DeepSpeed gives it
    """In place of DeepSpeed's question whether a norm is not finite."""
    return False
