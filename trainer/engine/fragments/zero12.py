"""ZeRO 1 and 2: masters and moments are sharded, weights are replicated.

DeepSpeed flattens the parameters of an optimizer group, cuts the flat tensor evenly over the ranks, and remembers on
each parameter (`_hp_mapping`) which stretch of it lies in this rank's cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from trainer.engine.fragments import MOMENTS, Fragment, whole_frozen
from trainer.engine.fragments.cuts import CutState


class ShardedState(CutState):
    """This rank's cut of every optimizer group."""

    def __init__(self, module: nn.Module, zero_optimizer: Any, ema: bool) -> None:
        super().__init__(zero_optimizer, list(zero_optimizer.single_partition_of_fp32_groups), ema)
        self._module = module
        zero_optimizer._lazy_init_hp_params_optimizer_state()

    def owned(self) -> Iterator[Fragment]:
        """The stretches of parameters that lie in this rank's cuts."""
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

    def publish(self) -> None:
        """Copy the master weights into the module's parameters, on all ranks (a collective)."""
        self._zero.update_lp_params()

    def frozen(self) -> Iterator[Fragment]:
        """All of them."""
        return whole_frozen(self._module)

    def whole(self, name: str) -> Tensor:
        """A copy of a parameter's weights."""
        return self._module.get_parameter(name).detach().clone()
