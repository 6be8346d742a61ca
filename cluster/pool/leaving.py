"""Which workers leave a pool that shrinks. A pure function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.pool.shard_ledger import Arrival


@dataclass(frozen=True)
class Member:
    """A worker of a pool."""

    worker: str
    """Its name."""
    arrival: Arrival | None
    """Where it is; None while it waits for room."""

    @property
    def node(self) -> str | None:
        """Ray's id of its node."""
        return self.arrival.node if self.arrival else None

    @property
    def at_work(self) -> bool:
        """Whether it may have a shard in hand."""
        return self.arrival is not None and self.arrival.at_work


def leaving(members: Sequence[Member], count: int, here: str) -> list[str]:
    """The workers that leave, so that least is lost and whole nodes become free.

    First those that wait for room, then those that are not at work yet. Of the others first those on the
    node that has fewest: an autoscaler can take away a node on which nothing is left. The driver's own node stays, so
    its workers leave last. Among equals the newest leave.

    Args:
        members: of the pool, in the order in which they were asked for.
        count: how many leave.
        here: Ray's id of the driver's node.
    """
    on_node = Counter(member.node for member in members)
    newest = {member.node: number for number, member in enumerate(members)}

    def rank(numbered: tuple[int, Member]) -> tuple[bool, bool, bool, int, int, int]:
        number, member = numbered
        node = member.node
        return (node is not None, member.at_work, node == here, on_node[node], -newest[node], -number)

    return [member.worker for _, member in sorted(enumerate(members), key=rank)[: max(0, count)]]
