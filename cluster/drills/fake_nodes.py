"""Ray's provider of fake nodes, on a machine that does other work, too. Imported by Ray's autoscaler alone.

Ray's own lets raylets find out the ports of their agents, so most of them die there (raylet_ports.py); and it puts them
on the address by which this machine reaches others. These are on loopback.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import ray._private.parameter
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider

from cluster.drills.fake_autoscaler import SESSIONS, node_id
from cluster.drills.raylet_ports import LISTEN_PORT, agent_ports, leave_word


class LoopbackNodes(FakeMultiNodeProvider):
    """A node is a raylet on this machine, and its agents."""

    def _create_node_with_resources_and_labels(self, *arguments: Any) -> None:
        session = Path(self.provider_config[SESSIONS]) / "session_latest"
        ports, parameters = agent_ports(), ray._private.parameter.RayParams
        leave_word(session, node_id(self._next_node_id + 1), ports[LISTEN_PORT])

        def with_ports(**options: Any) -> Any:
            return parameters(**options | ports | {"node_ip_address": "127.0.0.1"})

        with mock.patch.object(ray._private.parameter, "RayParams", with_ports):
            super()._create_node_with_resources_and_labels(*arguments)  # type: ignore[no-untyped-call]
