"""What all ranks decide together between two steps: a few numbers on host memory, one small collective.

The group is gloo whatever the training uses, so that nothing waits for a GPU. Only the main thread calls it.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist


class Agreement:
    """The ranks' side channel."""

    def __init__(self) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._group: dist.ProcessGroup | None = None  # all ranks, over the training's own backend
        if dist.get_backend() != "gloo" and self.world > 1:
            self._group = cast("dist.ProcessGroup", dist.new_group(backend="gloo"))

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is set on any rank (a collective)."""
        if self.world == 1:
            return flags
        numbers = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(numbers, op=dist.ReduceOp.MAX, group=self._group)
        return tuple(bool(number) for number in numbers)

    def gather(self, thing: Any) -> list[Any]:
        """Each rank's thing, on every rank (a collective)."""
        if self.world == 1:
            return [thing]
        things: list[Any] = [None] * self.world
        dist.all_gather_object(things, thing, group=self._group)
        return things

    def from_first(self, thing: Any) -> Any:
        """Rank 0's thing, on every rank (a collective)."""
        if self.world == 1:
            return thing
        things = [thing]
        dist.broadcast_object_list(things, src=0, group=self._group)
        return things[0]
