"""ZeRO 3: the weights are partitioned, too.

Each parameter by itself is cut evenly over the ranks, the last cut padded. The cuts of the parameters of an optimizer
group lie in a row in a flat tensor (`fp32_partitioned_groups_flat`, `grad_position` says where).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from trainer.engine.fragments import FROZEN, MOMENTS, Fragment, trained
from trainer.engine.fragments.cuts import CutState


class PartitionedState(CutState):
    """This rank's cut of every parameter."""

    def __init__(self, module: nn.Module, zero_optimizer: Any, ema: bool) -> None:
        super().__init__(zero_optimizer, list(zero_optimizer.fp32_partitioned_groups_flat), ema)
        self._named: dict[str, Any] = dict(module.named_parameters())
        self._trained: dict[str, Any] = trained(module)

    def owned(self) -> Iterator[Fragment]:
        """This rank's cut of each parameter, without the padding."""
        rank = dist.get_rank()
        for name, parameter in self._trained.items():
            group, offset, padded = self._zero.grad_position[self._zero.get_param_id(parameter)]
            start, stop = rank * padded, min((rank + 1) * padded, parameter.ds_numel)
            if start >= stop:  # nothing but padding
                continue
            flat = self._flat[group]
            state = self._zero.optimizer.state[flat]
            tensors = {"master": flat.detach()} | {moment: state[moment] for moment in MOMENTS}
            tensors |= {"ema": self._ema[group]} if self._ema else {}
            roles = {role: tensor.narrow(0, offset, stop - start) for role, tensor in tensors.items()}
            yield Fragment(name, tuple(parameter.ds_shape), start, stop, roles)

    def publish(self) -> None:
        """Copy the masters into the partitions, and gather anew what is kept whole between steps (a collective).

        These are the steps by which DeepSpeed itself ends an optimizer step.
        """
        self._zero._partition_all_parameters()
        for group in range(len(self._flat)):
            self._zero._reassign_or_swap_out_partitioned_parameters(group)
        persistent = self._zero.persistent_parameters
        if persistent:
            persistent[0].all_gather(persistent)

    def frozen(self) -> Iterator[Fragment]:
        """This rank's cut of each, without the padding; DeepSpeed cuts them as it does the others."""
        rank = dist.get_rank()
        for name, parameter in self._named.items():
            if name in self._trained:
                continue
            padded = parameter.ds_tensor.numel()
            start, stop = rank * padded, min((rank + 1) * padded, parameter.ds_numel)
            if start < stop:
                data = parameter.ds_tensor.detach().narrow(0, 0, stop - start)
                yield Fragment(name, tuple(parameter.ds_shape), start, stop, {FROZEN: data})

    def whole(self, name: str) -> Tensor:
        """A copy of a parameter's weights, gathered from all ranks (a collective)."""
        import deepspeed

        parameter = self._named[name]
        with deepspeed.zero.GatheredParameters([parameter]):
            copy: Tensor = parameter.detach().clone()
        return copy
