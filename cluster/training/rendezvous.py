"""How the workers of a stage find each other. Imports neither torch nor Ray.

On one machine they meet through a file in a folder that only this user can enter, and talk over the loopback device:
torch's usual store (TCPStore) answers whoever can reach the machine, without asking who it is. On several machines that
store is what there is: it listens on all interfaces of the first worker's node (docs/security.md).
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_STALLED_SECONDS = 1800
"""After which an operation that waits for a peer fails."""


@dataclass(frozen=True)
class Meeting:
    """Where a worker meets the others, and as which of them."""

    backend: str
    """Of torch.distributed."""
    rank: int
    size: int
    local_rank: int
    """Among the workers of its node."""
    local_size: int
    node_rank: int
    file: str = ""
    """URI of the file through which they meet; empty for the store at `address`."""
    address: str = ""
    """Of the first worker's node."""
    port: int = 0
    """There."""

    @property
    def variables(self) -> dict[str, str]:
        """As torchrun sets them for its workers."""
        variables: dict[str, object] = {
            "RANK": self.rank,
            "WORLD_SIZE": self.size,
            "LOCAL_RANK": self.local_rank,
            "LOCAL_WORLD_SIZE": self.local_size,
            "NODE_RANK": self.node_rank,
        }
        if not self.file:
            variables |= {"MASTER_ADDR": self.address, "MASTER_PORT": self.port}
        return {name: str(value) for name, value in variables.items()}


def arrange(backend: str, nodes: Sequence[str], here: str, folder: Path) -> list[Meeting]:
    """The meeting of a group, for each of its workers.

    Args:
        backend: of torch.distributed.
        nodes: the node of each worker, by rank; workers of a node follow each other.
        here: the driver's node.
        folder: on it, for this user alone; made if it is not there.

    Returns:
        What each worker is told. Without a file, address and port of the first of them are yet to be filled in.
    """
    file = ""
    if set(nodes) == {here}:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = (folder / f"rendezvous-{uuid.uuid4().hex}").as_uri()
    order = list(dict.fromkeys(nodes))
    meetings = []
    for rank, node in enumerate(nodes):
        local = nodes[:rank].count(node)
        meetings.append(Meeting(backend, rank, len(nodes), local, nodes.count(node), order.index(node), file))
    return meetings


def free_port() -> int:
    """A port that nobody uses on this machine."""
    with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as opened:
        opened.bind(("", 0))
        return int(opened.getsockname()[1])


def join_group(meeting: Meeting, seconds: float = _STALLED_SECONDS) -> None:
    """Connect this process with the other workers; returns when all are there. Imports torch.

    Args:
        meeting: where.
        seconds: after which an operation that waits for a peer fails.
    """
    import torch.distributed as dist

    os.environ.update(meeting.variables)
    if meeting.file:
        use_loopback()
    if meeting.backend == "nccl" and "TORCH_NCCL_BLOCKING_WAIT" not in os.environ:
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")  # a lost peer is an error, not a wait
    dist.init_process_group(
        meeting.backend,
        init_method=meeting.file or "env://",
        rank=meeting.rank,
        world_size=meeting.size,
        timeout=timedelta(seconds=seconds),
    )


def use_loopback() -> None:
    """Have gloo and NCCL of this process listen on the loopback device alone, unless the user named another."""
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    for variable in _INTERFACES:
        os.environ.setdefault(variable, loopback)
