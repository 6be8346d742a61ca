"""The ports of a raylet's agents, which are chosen before it is started.

A raylet that has to find them out waits for files that its agents write once they are up, and dies after 15 s, which
is a short time on a busy machine (ray#65983). It is told three of them by its options. There is none for the fourth, so
that is written into its file beforehand, as its agent does later.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

LISTEN_PORT = "dashboard_agent_listen_port"
"""The one that there is a file for. Names as in Ray's own parameters."""
_OPTIONS = {
    LISTEN_PORT: "dashboard-agent-listen-port",
    "metrics_agent_port": "dashboard-agent-grpc-port",
    "metrics_export_port": "metrics-export-port",
    "runtime_env_agent_port": "runtime-env-agent-port",
}
"""Of `ray start`."""


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses on this machine."""
    with ExitStack() as held:
        opened = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in opened:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in opened]


def agent_ports() -> dict[str, int]:
    """Free ports for the agents of a raylet, by their names."""
    return dict(zip(_OPTIONS, free_ports(len(_OPTIONS)), strict=True))


def options_of(ports: Mapping[str, int]) -> list[str]:
    """The same as options of `ray start`."""
    return [f"--{_OPTIONS[name]}={port}" for name, port in ports.items()]


def leave_word(session: Path, node: str, port: int) -> None:
    """Write where the agent of a raylet will listen, unless the agent has done so.

    Args:
        session: the folder of Ray's session.
        node: Ray's id of the node.
        port: there.
    """
    file = session / f"{LISTEN_PORT}_{node}"
    if not file.exists():
        new = file.with_suffix(".new")
        new.write_text(str(port))
        new.rename(file)
