"""What the head of a Ray cluster says of its nodes: what they have, what of it is free, and which are about to go.

Asked by calls that end after some seconds: Ray's own questions hold up the whole process while its head is away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cluster.session.ray_address import head_channel, head_protocol

_ANSWER_SECONDS = 5.0

Nodes = dict[str, dict[str, float]]
"""Amounts by resource, by Ray's id of the node."""


def own_node() -> str:
    """Ray's id of the node that this process is on."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


class HeadNodes:
    """The nodes of the cluster that this process is connected to. Without an answer there are none."""

    def __init__(self) -> None:
        import ray

        messages, services = head_protocol()
        channel = head_channel(ray.get_runtime_context().gcs_address)
        self._messages, self._head = messages, services.NodeResourceInfoGcsServiceStub(channel)

    def free(self) -> Nodes:
        """What nobody uses at this moment."""
        answer = self._ask(self._head.GetAllAvailableResources, self._messages.GetAllAvailableResourcesRequest())
        return {each.node_id.hex(): dict(each.resources_available) for each in answer.resources_list} if answer else {}

    def whole(self) -> Nodes:
        """What they have."""
        answer = self._ask(self._head.GetAllTotalResources, self._messages.GetAllTotalResourcesRequest())
        return {each.node_id.hex(): dict(each.resources_total) for each in answer.resources_list} if answer else {}

    def leaving(self) -> set[str]:
        """Those that Ray drains: they are about to go."""
        answer = self._ask(self._head.GetDrainingNodes, self._messages.GetDrainingNodesRequest())
        return {each.node_id.hex() for each in answer.draining_nodes} if answer else set()

    def _ask(self, question: Callable[..., Any], request: Any) -> Any:
        """The answer; None if there is none, for whatever reason: cluster/session/head_watch.py finds out."""
        import grpc

        try:
            return question(request, timeout=_ANSWER_SECONDS)
        except grpc.RpcError:
            return None
