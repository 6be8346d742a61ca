"""The part of each parameter whose fp32 master weights, moments and moving average this rank owns under ZeRO 0 to 3.

DeepSpeed lays them out in three ways, one class each, behind one Protocol. Fragments are views: writing to one writes
to DeepSpeed's own tensors. Checked with deepspeed 0.19.8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")
FROZEN = "frozen"
"""Role of the weights of parameters that are not trained. They have no moments and no average."""


@dataclass(frozen=True)
class Fragment:
    """Elements [start, stop) of the flattened parameter `name`; the tensors of `roles` are flat and fp32."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    roles: dict[str, Tensor]


class OwnedState(Protocol):
    """Master weights, moments and moving average, as far as this rank has them."""

    keeps_ema: bool
    """Whether there is a moving average."""

    def owned(self) -> Iterator[Fragment]:
        """What this rank writes: over all ranks, each element of each role exactly once."""
        ...

    def held(self) -> Iterator[Fragment]:
        """What this rank needs: more than `owned` where ranks hold copies (stage 0)."""
        ...

    def update_ema(self, share: Tensor) -> None:
        """Move the average of the owned elements towards the master weights, by a share of the way (a scalar)."""
        ...

    def steps_taken(self) -> Tensor:
        """The same as `optimizer_step`, a scalar on the device: nobody waits for it."""
        ...

    @property
    def optimizer_step(self) -> int:
        """Steps that AdamW has taken (its bias correction depends on it)."""
        ...

    @optimizer_step.setter
    def optimizer_step(self, step: int) -> None: ...

    def publish(self) -> None:
        """Make the weights that forward uses equal the master weights, on all ranks (a collective)."""
        ...

    def frozen(self) -> Iterator[Fragment]:
        """Of parameters that are not trained what this rank has of them, with the one role `FROZEN`.

        Over all ranks each element is there at least once: whole on every rank, or, at stage 3, a part on each.
        """
        ...

    def whole(self, name: str) -> Tensor:
        """A copy of a parameter's weights, in its shape, on every rank (a collective)."""
        ...


def whole_frozen(module: nn.Module) -> Iterator[Fragment]:
    """The parameters of a module that are not trained, where every rank has all of them."""
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            data = parameter.detach().view(-1)
            yield Fragment(name, tuple(parameter.shape), 0, data.numel(), {FROZEN: data})


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """The other ones, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def open_state(module: nn.Module, optimizer: Any, stage: int, ema: bool) -> OwnedState:
    """The state of a module under DeepSpeed.

    Args:
        module: the one that `deepspeed.initialize` was given, or a part of it that holds all parameters: names of
            fragments are its own.
        optimizer: the one that it returned.
        stage: of ZeRO.
        ema: whether to keep a moving average.
    """
    from trainer.engine.fragments.zero0 import ReplicatedState
    from trainer.engine.fragments.zero3 import PartitionedState
    from trainer.engine.fragments.zero12 import ShardedState

    kinds: dict[int, Callable[[nn.Module, Any, bool], OwnedState]]
    kinds = {0: ReplicatedState, 1: ShardedState, 2: ShardedState, 3: PartitionedState}
    return kinds[stage](module, optimizer, ema)
