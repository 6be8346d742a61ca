"""With how many workers a stage starts, when it takes more, and how often it is started again.

Only sizes are used that keep the global batch. A change that is planned loses no step: the workers are asked to end
with a checkpoint, and the next start has the new size. How much room there is, is asked of Ray's head, which knows what
others use, too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from cluster.training.elastic_sizes import largest_usable
from data_pipeline.errors import FoldtrainError
from data_pipeline.text.counted import counted
from trainer.checkpoints.catalog import latest_step

_BACK_SECONDS = 5.0
"""For which resources that were just released are waited for before a smaller size is taken."""


class Cluster(Protocol):
    """Nodes and their resources."""

    def free(self) -> Mapping[str, Mapping[str, float]]:
        """What nobody uses at this moment: amounts by resource, by node."""

    def whole(self) -> Mapping[str, Mapping[str, float]]:
        """What they have."""

    def leaving(self) -> set[str]:
        """Nodes that are about to go."""


class Without:
    """A cluster of which some nodes are not used, as if they were about to go.

    Args:
        cluster: all of it.
        nodes: Ray's ids of those that are not used.
    """

    def __init__(self, cluster: Cluster, nodes: frozenset[str]) -> None:
        self._cluster, self._nodes = cluster, nodes

    def free(self) -> Mapping[str, Mapping[str, float]]:
        """See Cluster."""
        return self._cluster.free()

    def whole(self) -> Mapping[str, Mapping[str, float]]:
        """See Cluster."""
        return self._cluster.whole()

    def leaving(self) -> set[str]:
        """See Cluster."""
        return self._cluster.leaving() | self._nodes


class Room:
    """How many workers fit on a cluster, without the nodes that are about to go.

    Args:
        resources: what one worker needs.
        cluster: as its head sees it.
    """

    def __init__(self, resources: Mapping[str, float], cluster: Cluster) -> None:
        self._needed, self._cluster = {name: amount for name, amount in resources.items() if amount}, cluster

    def free(self) -> int:
        """Workers that there is room for at this moment, whatever else runs on the cluster."""
        return self._count(self._cluster.free())

    def whole(self) -> int:
        """Workers that there would be room for if nothing else ran on the cluster."""
        return self._count(self._cluster.whole())

    def _count(self, nodes: Mapping[str, Mapping[str, float]]) -> int:
        leaving = self._cluster.leaving()
        return sum(self._fit(has) for node, has in nodes.items() if node not in leaving)

    def _fit(self, has: Mapping[str, float]) -> int:
        return min(math.floor(has.get(name, 0.0) / amount + 1e-9) for name, amount in self._needed.items())


class UsableSizes:
    """Which of some sizes an elastic stage takes.

    Args:
        sizes: that can be used, ascending.
        room: of the cluster.
        say: takes a line for the terminal.
    """

    def __init__(self, sizes: Sequence[int], room: Room, say: Callable[[str], None]) -> None:
        self._sizes, self._room, self._say = tuple(sizes), room, say
        self._tried = 0  # size of the start that has not come up; 0 for none
        self._since: float | None = None

    def to_start(self) -> int | None:
        """The size to start with now; None while more workers are about to be there.

        Without room for the fewest it is these: a start that waits for them is what an autoscaler adds nodes for.
        What looks free may be on a node that is about to be found dead. So after a start that did not come up the next
        smaller size is tried, and after the smallest the largest.
        """
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        free = self._room.free()
        size = largest_usable(self._sizes, free)
        if size < largest_usable(self._sizes, self._room.whole()) and now - self._since < _BACK_SECONDS:
            return None
        if not size:
            self._say(f"waits for room for {counted(self._sizes[0], 'worker')}; there is room for {free}")
            self._tried, self._since = 0, None
            return self._sizes[0]
        self._tried = largest_usable(self._sizes, min(size, self._tried - 1)) or size
        self._since = None
        return self._tried

    def came_up(self) -> None:
        """The start with the last size has come up."""
        self._tried = 0


class Restarts:
    """Counts the failures of workers since the last new checkpoint, not since the start: nodes get lost all the time.

    Args:
        most: failures in a row after which a stage is started again; -1 for no limit.
        checkpoints: folder of the stage's checkpoints.
    """

    def __init__(self, most: int, checkpoints: str) -> None:
        self._most, self._checkpoints = most, checkpoints
        self._newest, self._failures = -1, 0

    def may_restart(self) -> bool:
        """Count a failure. Returns whether the stage is started again after it."""
        newest = self._newest_checkpoint()
        if newest > self._newest:
            self._newest, self._failures = newest, 0
        self._failures += 1
        return self._most < 0 or self._failures <= self._most

    def _newest_checkpoint(self) -> int:
        try:
            return latest_step(self._checkpoints) or 0
        except (OSError, FoldtrainError):  # storage that is away may be the reason of the failure
            return self._newest
