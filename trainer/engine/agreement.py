"""What all ranks decide together between two steps: a few numbers on host memory, one small collective.

The group is gloo whatever the training uses, so that nothing waits for a GPU. Only the main thread calls it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor


class Vote:
    """Flags of all ranks, being put together.

    Args:
        flags: of this rank, which `work` turns into those of all; no tensor where there is only one.
        work: what is under way.
    """

    def __init__(self, flags: Sequence[bool] | Tensor, work: dist.Work | None = None) -> None:
        self._flags, self._work = flags, work

    def result(self) -> tuple[bool, ...]:
        """For each flag, whether it is set on any rank; waits until all ranks have begun the same."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        return tuple(bool(flag) for flag in self._flags)


class Agreement:
    """The ranks' side channel."""

    def __init__(self) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._group: dist.ProcessGroup | None = None  # all ranks, over the training's own backend
        if dist.get_backend() != "gloo" and self.world > 1:
            self._group = cast("dist.ProcessGroup", dist.new_group(backend="gloo"))

    def begin(self, *flags: bool) -> Vote:
        """Begin to find out for each flag whether it is set on any rank (a collective, which goes on beside others)."""
        if self.world == 1:
            return Vote(flags)
        numbers = torch.tensor(flags, dtype=torch.int32)
        return Vote(numbers, dist.all_reduce(numbers, op=dist.ReduceOp.MAX, group=self._group, async_op=True))

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is set on any rank (a collective)."""
        return self.begin(*flags).result()

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
