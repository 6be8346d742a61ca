"""Workers of one machine meet through a file of this user's alone, and nothing listens beyond the loopback device."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

SIOCGIFADDR = 0x8915
"""Linux's question for the address of an interface."""


class Workers:
    """A worker group of Ray Train, as far as it is asked; it runs nothing."""

    def __init__(self, *nodes: str) -> None:
        self.nodes = nodes
        self.told: list[str] = []
        self.joined: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self.nodes)

    def get_workers(self) -> list[Any]:
        return [SimpleNamespace(metadata=SimpleNamespace(node_id=node)) for node in self.nodes]

    def execute(self, function: Any, **_: Any) -> None:
        self.told.append(function.__name__)

    def execute_single_async(self, rank: int, function: Any, **arguments: Any) -> None:
        assert rank == arguments["world_rank"]
        self.joined.append(arguments)


@pytest.fixture
def on_ray(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ray's own way, recorded."""
    import ray

    from cluster.training import rendezvous

    asked: list[str] = []
    monkeypatch.setattr(ray, "get", lambda _: None)
    monkeypatch.setattr(rendezvous._TorchBackend, "on_start", lambda *_: asked.append("listens on all interfaces"))
    return asked


def start(workers: Workers, folder: Path) -> None:
    from cluster.training.rendezvous import Rendezvous

    config = Rendezvous(backend="gloo", folder=str(folder), node="here")
    config.backend_cls().on_start(workers, config)


def test_workers_of_one_machine_meet_in_a_file_that_only_this_user_reaches(tmp_path: Path, on_ray: list[str]) -> None:
    workers = Workers("here", "here")
    start(workers, tmp_path / "r")
    methods = {each["init_method"] for each in workers.joined}
    assert len(methods) == 1
    assert methods.pop().startswith((tmp_path / "r").as_uri())
    assert (tmp_path / "r").stat().st_mode & 0o777 == 0o700
    assert [each["world_size"] for each in workers.joined] == [2, 2]
    assert "use_loopback" in workers.told
    assert on_ray == []


def test_each_start_has_a_file_of_its_own(tmp_path: Path, on_ray: list[str]) -> None:
    first, second = Workers("here"), Workers("here")
    start(first, tmp_path)
    start(second, tmp_path)
    assert first.joined[0]["init_method"] != second.joined[0]["init_method"]


@pytest.mark.parametrize("nodes", [("here", "there"), ("there", "there")])
def test_workers_of_other_machines_meet_where_they_can_reach_each_other(
    tmp_path: Path, on_ray: list[str], nodes: tuple[str, str]
) -> None:
    workers = Workers(*nodes)
    start(workers, tmp_path)
    assert on_ray == ["listens on all interfaces"]
    assert workers.told == []


def test_a_worker_is_not_made_to_ask_for_gpus() -> None:
    from cluster.training.rendezvous import Rendezvous

    with Rendezvous().train_func_context() as nothing:
        assert nothing is None


_RANK = """
import json, os, psutil, sys
import torch, torch.distributed as dist
from cluster.training.rendezvous import use_loopback
from ray.train.torch.config import _setup_torch_process_group
use_loopback()
_setup_torch_process_group("gloo", int(sys.argv[1]), 2, sys.argv[2], 60)
number = torch.ones(1)
dist.all_reduce(number)
dist.barrier()
print(json.dumps([number.item(), [c.laddr.ip for c in psutil.Process().net_connections() if c.status == "LISTEN"]]))
dist.barrier()
"""


def test_gloo_listens_on_the_loopback_device_alone(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen([sys.executable, "-c", _RANK, str(rank), (tmp_path / "meet").as_uri()], stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    for rank in ranks:
        total, addresses = json.loads(rank.communicate(timeout=120)[0])
        assert total == 2
        assert set(addresses) <= {"127.0.0.1"}
        assert addresses


def test_the_loopback_device_is_named_unless_the_user_named_another(monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster.training.rendezvous import use_loopback

    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    use_loopback()
    loopback = fcntl.ioctl(socket.socket(), SIOCGIFADDR, os.environ["GLOO_SOCKET_IFNAME"].encode().ljust(256, b"\0"))
    assert socket.inet_ntoa(loopback[20:24]) == "127.0.0.1"
    assert os.environ["NCCL_SOCKET_IFNAME"] == "ib0"
