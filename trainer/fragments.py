"""The part of each parameter whose fp32 master weights and moments this rank owns under ZeRO 1 and 2.

DeepSpeed flattens the parameters of an optimizer group, cuts the flat tensor evenly over the ranks, and remembers on
each parameter (`_hp_mapping`) which stretch of it lies in this rank's cut. Fragments are views: writing to one writes
to DeepSpeed's own tensors. Checked with deepspeed 0.19.8.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Fragment:
    """Elements [start, stop) of the flattened parameter `name`; the tensors of `roles` are flat and fp32."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    roles: dict[str, Tensor]


class OwnedState:
    """Master weights, moments and moving average of the elements that this rank owns."""

    def __init__(self, module: nn.Module, zero_optimizer: Any, ema: bool) -> None:
        self._module = module
        self._zero = zero_optimizer
        self._flat: list[Tensor] = list(zero_optimizer.single_partition_of_fp32_groups)
        self._create_moments()
        self._ema: list[Tensor] = [flat.detach().clone() for flat in self._flat] if ema else []

    def _create_moments(self) -> None:
        """Make AdamW's state before the first step, so that a fresh run and a resumed one look the same."""
        for flat in self._flat:
            state = self._zero.optimizer.state[flat]
            state["step"] = torch.zeros((), dtype=torch.float32, device=flat.device)  # where fused AdamW wants it
            for moment in MOMENTS:
                state[moment] = torch.zeros_like(flat)
        self._zero._lazy_init_hp_params_optimizer_state()

    def __iter__(self) -> Iterator[Fragment]:
        groups = {id(parameter): i for i, group in enumerate(self._zero.bit16_groups) for parameter in group}
        for name, parameter in self._module.named_parameters():
            mapping = getattr(parameter, "_hp_mapping", None)
            if mapping is None:  # this rank owns nothing of it
                continue
            start, numel = mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel
            roles = {"master": mapping.get_hp_fragment().detach()}
            roles |= {moment: mapping.get_hp_fragment(moment).detach() for moment in MOMENTS}
            if self._ema:
                flat = self._ema[groups[id(parameter)]]
                roles["ema"] = flat.narrow(0, mapping.get_hp_fragment_address().start, numel)
            yield Fragment(name, tuple(parameter.shape), start, start + numel, roles)

    def update_ema(self, decay: float) -> None:
        """Move the average of the owned elements towards the master weights."""
        for average, flat in zip(self._ema, self._flat, strict=True):
            average.lerp_(flat.detach(), 1 - decay)

    @property
    def keeps_ema(self) -> bool:
        """Whether there is a moving average."""
        return bool(self._ema)

    @property
    def optimizer_step(self) -> int:
        """Steps that AdamW has taken (its bias correction depends on it)."""
        return int(self._zero.optimizer.state[self._flat[0]]["step"].item())

    @optimizer_step.setter
    def optimizer_step(self, step: int) -> None:
        for flat in self._flat:
            self._zero.optimizer.state[flat]["step"].fill_(step)

    def publish(self) -> None:
        """Copy the master weights into the module's parameters, on all ranks (a collective)."""
        self._zero.update_lp_params()
