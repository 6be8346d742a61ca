"""How the workers of a stage find each other. Imports Ray and torch.

On one machine they meet through a file in a folder that only this user can enter, and talk over the loopback device:
torch's usual store (TCPStore) answers whoever can reach the machine, without asking who it is. On several machines that
store is what there is: it listens on all interfaces of the first worker's node (docs/security.md).
"""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.train.backend import BackendConfig
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group, _TorchBackend

_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@dataclass
class Rendezvous(TorchConfig):
    """Ray Train's settings of torch.distributed, for workers that may all be on the driver's machine."""

    folder: str = ""
    """On the driver's node, for this user alone."""
    node: str = ""
    """Ray's id of the driver's node."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What starts torch.distributed on the workers."""
        return _Backend

    @property
    def train_func_context(self) -> Any:
        """Nothing: Ray's asks torch for GPUs, which a worker decides by itself (trainer.engine.device)."""
        return contextlib.nullcontext


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Connect the workers, through a file if all are on the driver's node."""
        assert isinstance(backend_config, Rendezvous)
        nodes = {worker.metadata.node_id for worker in worker_group.get_workers()}
        if nodes != {backend_config.node}:
            super().on_start(worker_group, backend_config)
            return
        Path(backend_config.folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        file = Path(backend_config.folder, f"rendezvous-{uuid.uuid4().hex}")
        worker_group.execute(_set_torch_distributed_env_vars)
        worker_group.execute(use_loopback)
        workers = len(worker_group)
        joining = [
            worker_group.execute_single_async(
                rank,
                _setup_torch_process_group,
                backend=backend_config.backend,
                world_rank=rank,
                world_size=workers,
                init_method=file.as_uri(),
                timeout_s=backend_config.timeout_s,
            )
            for rank in range(workers)
        ]
        ray.get(joining)


def use_loopback() -> None:
    """Have gloo and NCCL of this process listen on the loopback device alone, unless the user named another."""
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    for variable in _INTERFACES:
        os.environ.setdefault(variable, loopback)
