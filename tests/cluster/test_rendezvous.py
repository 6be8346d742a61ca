"""Workers of one machine meet through a file of this user's alone, and nothing listens beyond the loopback device."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.training.rendezvous import Meeting, arrange, use_loopback

SIOCGIFADDR = 0x8915
"""Linux's question for the address of an interface."""


def test_workers_of_one_machine_meet_in_a_file_that_only_this_user_reaches(tmp_path: Path) -> None:
    first, second = arrange("gloo", ["here", "here"], "here", tmp_path / "r")
    assert first.file == second.file
    assert first.file.startswith((tmp_path / "r").as_uri())
    assert (tmp_path / "r").stat().st_mode & 0o777 == 0o700
    assert [(each.rank, each.size, each.local_rank) for each in (first, second)] == [(0, 2, 0), (1, 2, 1)]


def test_each_start_has_a_file_of_its_own(tmp_path: Path) -> None:
    (first,), (second,) = (arrange("gloo", ["here"], "here", tmp_path) for _ in range(2))
    assert first.file != second.file


@pytest.mark.parametrize("nodes", [["here", "there"], ["there", "there"]])
def test_workers_of_other_machines_meet_where_they_can_reach_each_other(tmp_path: Path, nodes: list[str]) -> None:
    assert [each.file for each in arrange("gloo", nodes, "here", tmp_path / "r")] == ["", ""]
    assert not (tmp_path / "r").exists()


def test_each_worker_has_the_numbers_that_torchrun_would_give_to_it(tmp_path: Path) -> None:
    meetings = arrange("nccl", ["b", "b", "a", "a", "a"], "a", tmp_path)
    assert [each.variables for each in meetings] == [
        {
            "RANK": str(rank),
            "WORLD_SIZE": "5",
            "LOCAL_RANK": str(local),
            "LOCAL_WORLD_SIZE": str(size),
            "NODE_RANK": str(node),
            "MASTER_ADDR": "",
            "MASTER_PORT": "0",
        }
        for rank, (local, size, node) in enumerate([(0, 2, 0), (1, 2, 0), (0, 3, 1), (1, 3, 1), (2, 3, 1)])
    ]


def test_workers_that_meet_in_a_file_are_told_of_no_port() -> None:
    variables = Meeting("gloo", 0, 1, 0, 1, 0, file="file:///r/meet", address="10.0.0.1", port=29500).variables
    assert not variables.keys() & {"MASTER_ADDR", "MASTER_PORT"}


_RANK = """
import json, psutil, sys
import torch, torch.distributed as dist
from cluster.training.rendezvous import Meeting, free_port, join_group

rank, port, file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
join_group(Meeting("gloo", rank, 2, rank, 2, 0, file=file, address="127.0.0.1", port=port))
number = torch.ones(1)
dist.all_reduce(number)
dist.barrier()
print(json.dumps([number.item(), [c.laddr.ip for c in psutil.Process().net_connections() if c.status == "LISTEN"]]))
dist.barrier()
"""


def join(file: str, port: int) -> list[tuple[float, list[str]]]:
    """What the ranks sum up to, and at which addresses each listens."""
    ranks = [
        subprocess.Popen([sys.executable, "-c", _RANK, str(rank), str(port), file], stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    return [json.loads(rank.communicate(timeout=120)[0]) for rank in ranks]


@pytest.mark.slow
def test_gloo_listens_on_the_loopback_device_alone(tmp_path: Path) -> None:
    for total, addresses in join((tmp_path / "meet").as_uri(), 0):
        assert total == 2
        assert set(addresses) <= {"127.0.0.1"}
        assert addresses


@pytest.mark.slow
def test_workers_of_several_machines_meet_at_a_port_of_the_first() -> None:
    from cluster.training.rendezvous import free_port

    assert [total for total, _ in join("", free_port())] == [2, 2]


def test_the_loopback_device_is_named_unless_the_user_named_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    use_loopback()
    loopback = fcntl.ioctl(socket.socket(), SIOCGIFADDR, os.environ["GLOO_SOCKET_IFNAME"].encode().ljust(256, b"\0"))
    assert socket.inet_ntoa(loopback[20:24]) == "127.0.0.1"
    assert os.environ["NCCL_SOCKET_IFNAME"] == "ib0"
