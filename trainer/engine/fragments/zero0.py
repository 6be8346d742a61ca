"""ZeRO 0: every rank holds all weights and moments. Only writing them, and the moving average, is shared out."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.engine.fragments import MOMENTS, Fragment, trained, whole_frozen
from trainer.engine.fragments.moments import create_moments, set_step, steps_taken

Stretch = tuple[str, nn.Parameter, int, int]


def even_cut(sizes: list[int], rank: int, world: int) -> list[tuple[int, int]]:
    """Which elements [start, stop) of each tensor fall to a rank, if all of them in a row are cut evenly."""
    share = -(-sum(sizes) // world)
    first, last, before, found = rank * share, (rank + 1) * share, 0, []
    for size in sizes:
        start, stop = (min(max(edge - before, 0), size) for edge in (first, last))
        found.append((start, stop))
        before += size
    return found


class ReplicatedState:
    """All parameters in place, cut evenly over the ranks for writing; a moving average of this rank's cut alone."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, ema: bool) -> None:
        self._optimizer, self._module = optimizer, module
        self._named = trained(module)
        self._weights: list[Tensor] = list(self._named.values())
        create_moments(optimizer, self._weights)
        cut = even_cut([p.numel() for p in self._named.values()], dist.get_rank(), dist.get_world_size())
        pairs = zip(self._named.items(), cut, strict=True)
        self._cut: list[Stretch] = [(name, p, start, stop) for (name, p), (start, stop) in pairs if start < stop]
        self.keeps_ema = ema
        self._ema = [p.detach().flatten()[start:stop].clone() for _, p, start, stop in self._cut] if ema else []

    def _fragment(self, name: str, start: int, stop: int) -> Fragment:
        parameter = self._named[name]
        state = self._optimizer.state[parameter]
        roles = {"master": parameter.detach()} | {moment: state[moment] for moment in MOMENTS}
        views = {role: tensor.view(-1)[start:stop] for role, tensor in roles.items()}
        return Fragment(name, tuple(parameter.shape), start, stop, views)

    def _averages(self) -> Iterator[Fragment]:
        for (name, parameter, start, stop), average in zip(self._cut, self._ema, strict=self.keeps_ema):
            yield Fragment(name, tuple(parameter.shape), start, stop, {"ema": average})

    def owned(self) -> Iterator[Fragment]:
        """This rank's cut."""
        for name, _, start, stop in self._cut:
            yield self._fragment(name, start, stop)
        yield from self._averages()

    def held(self) -> Iterator[Fragment]:
        """All weights and moments, and this rank's cut of the average."""
        for name, parameter in self._named.items():
            yield self._fragment(name, 0, parameter.numel())
        yield from self._averages()

    @torch.no_grad()
    def update_ema(self, share: Tensor) -> None:
        """Move the average of this rank's cut towards the weights."""
        for (_, parameter, start, stop), average in zip(self._cut, self._ema, strict=True):
            average.lerp_(parameter.view(-1)[start:stop], share)

    def steps_taken(self) -> Tensor:
        """Steps that AdamW has taken, on the device."""
        return steps_taken(self._optimizer, self._weights)

    @property
    def optimizer_step(self) -> int:
        """Steps that AdamW has taken."""
        return int(self.steps_taken().item())

    @optimizer_step.setter
    def optimizer_step(self, step: int) -> None:
        set_step(self._optimizer, self._weights, step)

    def publish(self) -> None:
        """Nothing: the parameters are the masters."""

    def frozen(self) -> Iterator[Fragment]:
        """All of them."""
        return whole_frozen(self._module)

    def whole(self, name: str) -> Tensor:
        """A copy of a parameter's weights."""
        return self._module.get_parameter(name).detach().clone()
