"""Losing a part of a cluster, as a plan says: a process, a node's network, the storage, the head."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil

from cluster.drills.cluster_blows import Kind, TrialPlan
from cluster.drills.node_networks import NodeNetworks
from cluster.drills.ray_nodes import RayNode, RayNodes
from cluster.drills.s3_server import S3Server
from cluster.drills.victims import kill, title_of
from data_pipeline.text.counted import counted

_WORKERS = ("TrainWorker", "ShardWorker")


class ClusterStriker:
    """Does the blow of a plan.

    Args:
        plan: which.
        nodes: of the cluster.
        server: of the bucket.
        networks: of the nodes, if they have some.
        away_seconds: for which the server is away.
    """

    def __init__(
        self, plan: TrialPlan, nodes: RayNodes, server: S3Server, networks: NodeNetworks | None, away_seconds: float
    ) -> None:
        self._plan, self._nodes, self._server = plan, nodes, server
        self._networks, self._away_seconds = networks, away_seconds

    def strike(self) -> str | None:
        """Do it; returns once what was away is back. Returns what was struck; None if it is not there."""
        strikes: dict[Kind, Callable[[], str | None]] = {
            "worker": self._worker,
            "raylet": self._raylet,
            "network": self._network,
            "storage": self._storage,
            "driver": self._driver,
            "head": self._head,
        }
        return strikes[self._plan.kind]()

    def _worker(self) -> str | None:
        found = [process for node in (self._nodes.head, *self._nodes.others) for process in _at_work(node)]
        if not found:
            return None
        process = found[int(self._plan.choice * len(found))]
        title = title_of(process).split(" ")[0]
        return f"worker {title}" if kill(process) else None

    def _raylet(self) -> str | None:
        node = self._some_node()
        at_work = len(_at_work(node))
        return (
            f"raylet of a node with {counted(at_work, 'worker')}" if all(map(kill, node.programs("raylet"))) else None
        )

    def _network(self) -> str | None:
        assert self._networks is not None
        node = self._some_node()
        at_work = len(_at_work(node))
        self._networks.cut(node.network)
        time.sleep(self._plan.cut)
        self._networks.heal(node.network)
        return f"network of a node with {counted(at_work, 'worker')}, for {self._plan.cut:.0f} s"

    def _storage(self) -> str:
        self._server.kill()
        time.sleep(self._away_seconds)
        self._server.start()
        return f"storage, for {self._away_seconds:.0f} s"

    def _driver(self) -> str | None:
        found = [process for process in self._nodes.head.family() if " --stages " in title_of(process)]
        return "driver" if found and all(map(kill, found)) else None

    def _head(self) -> str | None:
        self._nodes.head.family()  # so that what it leaves behind is known
        found = self._nodes.head.programs("gcs_server")
        return "head" if found and all(map(kill, found)) else None

    def _some_node(self) -> RayNode:
        """One that is not the head's; one with workers, if there is any."""
        nodes = self._nodes.others
        busy = [node for node in nodes if _at_work(node)] or nodes
        return busy[int(self._plan.choice * len(busy))]


def _at_work(node: RayNode) -> list[psutil.Process]:
    """The workers of a node, of a training or of a pool."""
    return [process for title in _WORKERS for process in node.workers(title)]
