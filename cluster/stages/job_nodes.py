"""Nodes for the workers that `foldtrain scale` asks for, where the scheduler of a job gives and takes them one by one.

Ray's autoscaler does it by itself on clouds and Kubernetes. On Slurm each further node is an allocation of its own,
which joins the Ray cluster of the job (cluster/targets/slurm.py).
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from cluster.config.run import RunConfig
from cluster.stages.planning import workers_per_node
from cluster.targets.config import TargetSection


@runtime_checkable
class NodeTarget(Protocol):
    """A target whose jobs may get further nodes while they run."""

    def nodes(self, handle: str) -> int:
        """Nodes that a job has or has asked for."""

    def add_nodes(self, handle: str, count: int) -> str:
        """Ask for further ones."""

    def remove_nodes(self, handle: str, count: int) -> list[str]:
        """Have some that have joined leave again."""


def nodes_for(section: TargetSection, per_node: int, workers: int) -> int:
    """Nodes that so many workers need, within what the target's file allows a job."""
    return min(section.most_nodes, max(section.fewest_nodes, -(-workers // per_node)))


def adapt_nodes(target: object, section: TargetSection, config: RunConfig, handle: str, most: int) -> str:
    """Ask for nodes for `most` workers, or give back those that they do not need. Returns what there is to say.

    Raises:
        UsageError: if the job has ended.
        FoldtrainError: if the scheduler does not do it.
    """
    if not isinstance(target, NodeTarget):
        return ""
    per_node = workers_per_node(config, section)
    if per_node is None:
        key = "gpus_per_node" if config.cluster.gpus_per_worker else "cpus_per_node"
        return f"the job keeps its nodes: its target does not say how many workers one has room for ({key})"
    wanted, now = nodes_for(section, per_node, most), target.nodes(handle)
    short = most - wanted * per_node
    over = f" (room for {wanted * per_node}: its target allows a job {section.most_nodes})" if short > 0 else ""
    if wanted > now:
        target.add_nodes(handle, wanted - now)
        return f"{wanted - now} more nodes are asked for, {wanted} in all{over}"
    if wanted < now:
        target.remove_nodes(handle, now - wanted)
        return f"{now - wanted} nodes leave, {wanted} stay{over}"
    return f"the job has the {now} nodes that it needs{over}"
