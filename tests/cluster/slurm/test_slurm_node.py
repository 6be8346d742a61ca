"""The process of a node: what the job's end, Ray's end and Slurm's notices come to, and which address it has."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest

from cluster.session.ray_folder import ray_folder
from cluster.targets import slurm_node, slurm_ray
from cluster.targets.slurm_config import Allocation, SlurmConfig
from cluster.targets.slurm_node import (
    CLUSTER_LOST,
    HEAD_FILE,
    HEAD_VARIABLE,
    LEAVES_VARIABLE,
    NOTICED,
    PID_VARIABLE,
    Signals,
    run_beside,
    run_head,
    run_worker,
    where,
    write_job,
)
from cluster.targets.slurm_ray import (
    RayNode,
    address_of_interface,
    address_towards,
    free_ports,
    join_host,
    ray_environment,
)
from data_pipeline.errors import FoldtrainError


class Node:
    """Stands for a node's part of Ray, which is up or has ended."""

    def __init__(self, ended: bool = False) -> None:
        self.ended = ended

    def last_words(self) -> str:
        return "out of memory"


@pytest.fixture
def signals() -> Any:
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)}
    yield Signals()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def proctrack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f"#!/bin/sh\necho 'ProctrackType           = proctrack/{request.param}'\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def beside(node: Node, signals: Signals, code: str) -> int:
    return run_beside(cast("Any", node), [sys.executable, "-c", code], dict(os.environ), signals)


@pytest.mark.parametrize("proctrack", ["linuxproc"], indirect=True)
@pytest.mark.usefixtures("proctrack")
@pytest.mark.parametrize(
    ("ray_ended", "code", "expected"),
    [
        (False, "pass", 0),
        (False, "raise SystemExit(3)", 3),
        (False, "raise SystemExit(143)", NOTICED),
        (False, "import os; os.kill(os.getpid(), 15)", NOTICED),
        (False, "import os; os.kill(os.getpid(), 9)", 137),
        (True, "raise SystemExit(1)", CLUSTER_LOST),
        (True, "pass", 0),  # it was done
        (True, "raise SystemExit(143)", NOTICED),
    ],
)
def test_what_a_job_comes_to(signals: Signals, ray_ended: bool, code: str, expected: int) -> None:
    assert beside(Node(ray_ended), signals, code) == expected


@pytest.mark.parametrize(
    ("proctrack", "number"),
    [("cgroup", signal.SIGTERM), ("cgroup", signal.SIGUSR1), ("linuxproc", signal.SIGUSR1)],  # SIGUSR1: from the batch
    indirect=["proctrack"],
)
@pytest.mark.usefixtures("proctrack")
def test_a_notice_to_the_first_process_alone_is_passed_on(signals: Signals, number: int) -> None:
    os.kill(os.getpid(), number)
    assert beside(Node(), signals, "import time; time.sleep(60)") == NOTICED


@pytest.mark.parametrize("proctrack", ["linuxproc"], indirect=True)
@pytest.mark.usefixtures("proctrack")
def test_a_notice_that_slurm_sends_to_all_is_not_sent_twice(signals: Signals) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    assert beside(Node(), signals, "import time; time.sleep(1); raise SystemExit(5)") == 5


def test_a_node_says_which_process_the_batch_process_has_to_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv(PID_VARIABLE, str(tmp_path / "node.pid"))
    request.getfixturevalue("signals")
    assert (tmp_path / "node.pid").read_text() == str(os.getpid())
    assert PID_VARIABLE not in os.environ  # it is none of what the job starts


def test_a_node_that_is_told_to_end_is_not_wanted_any_longer(signals: Signals) -> None:
    assert signals.wanted()
    os.kill(os.getpid(), signal.SIGUSR2)
    assert signals.told_to_end
    assert signals.noticed is None
    assert not signals.wanted()


@pytest.fixture
def starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signals: Signals, request: pytest.FixtureRequest) -> Any:
    """Ray's part of a node, which is told to end, by a signal, while it comes up."""
    log = tmp_path / "ray.log"
    log.touch()
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    node = RayNode(process, log, 0)

    def start(*_: object) -> RayNode:
        signal.raise_signal(request.param)
        return node

    monkeypatch.setattr(slurm_ray, "_start", start)
    monkeypatch.setattr(slurm_node, "_neighbour", lambda: "127.0.0.1")
    yield node
    node.end()


@pytest.mark.parametrize(
    ("starting", "expected"), [(signal.SIGUSR2, 0), (signal.SIGUSR1, NOTICED)], indirect=["starting"]
)
def test_a_node_that_has_to_leave_while_it_comes_up_is_drained_and_has_not_failed(
    starting: RayNode, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head may send work to it before its own `ray start` says that it is up."""
    drained = []
    monkeypatch.setattr(slurm_node, "drain", lambda node, *_: drained.append((node, node.ended)))
    monkeypatch.setenv(HEAD_VARIABLE, "127.0.0.1:1")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.setenv(LEAVES_VARIABLE, "1")
    assert run_worker(Allocation.of(SlurmConfig())) == expected
    assert drained == [(starting, False)]
    assert starting.ended


@pytest.mark.parametrize("starting", [signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR2], indirect=True)
def test_a_head_that_has_to_end_while_it_comes_up_starts_no_job(starting: RayNode, tmp_path: Path) -> None:
    job = [sys.executable, "-c", f"open({str(tmp_path / 'ran')!r}, 'w')"]
    assert run_head(Allocation.of(SlurmConfig()), tmp_path, job) == NOTICED
    assert starting.ended
    assert not (tmp_path / HEAD_FILE).exists()
    assert not (tmp_path / "ran").exists()


def test_the_head_of_a_job_is_found_in_its_users_own_folder() -> None:
    with ray_folder() as rays:
        write_job(rays.parent, "990017")
        with pytest.raises(FoldtrainError, match="no head of job 990017 is up"):
            where("990017")
        (rays.parent / HEAD_FILE).write_text('{"address": "h:1"}')
        assert where("990017") == '{"address": "h:1"}'
        with pytest.raises(FoldtrainError, match="no head of job 99001 "):
            where("99001")


def test_a_node_has_the_address_by_which_it_reaches_the_others() -> None:
    assert address_towards("127.0.0.1") == "127.0.0.1"
    assert address_of_interface("lo") == "127.0.0.1"
    with pytest.raises(FoldtrainError, match=r"has no interface ib7 with an IPv4 address .* it has .*lo"):
        address_of_interface("ib7")
    with pytest.raises(FoldtrainError, match="finds no way to no such host"):
        address_towards("no such host")


def test_an_address_is_written_as_ray_takes_it() -> None:
    assert join_host("10.0.0.1", 6379) == "10.0.0.1:6379"
    assert join_host("fd00::1", 6379) == "[fd00::1]:6379"


def test_a_raylet_has_longer_to_come_up_than_ray_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [RuntimeError("no such node"), RuntimeError("no such node"), {"node_id": "a"}]

    def get_node(*_: object) -> object:
        answer = answers.pop(0)
        if isinstance(answer, RuntimeError):
            raise answer
        return answer

    monkeypatch.setattr(slurm_ray, "_PAUSE_SECONDS", 0.0)
    assert slurm_ray.patient(get_node)("address", "a") == {"node_id": "a"}
    monkeypatch.setattr(slurm_ray, "_RAYLET_SECONDS", -1.0)
    answers[:] = [RuntimeError("no such node")]
    with pytest.raises(RuntimeError):
        slurm_ray.patient(get_node)("address", "a")


def test_ports_are_free_and_different() -> None:
    assert len(set(free_ports("127.0.0.1", 5))) == 5


def test_another_clusters_address_and_token_do_not_reach_rays_processes() -> None:
    found = ray_environment(
        {"RAY_ADDRESS": "other:1", "RAY_AUTH_TOKEN": "x", "RAY_AUTH_TOKEN_PATH": "/x", "HOME": "/h"}
    )
    assert found["HOME"] == "/h"
    assert not {"RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(found)


def test_nodes_of_another_version_say_so() -> None:
    text = Allocation.of(SlurmConfig()).to_text()
    with pytest.raises(FoldtrainError, match="same version of foldtrain"):
        Allocation.from_text(text.replace('"restarts"', '"retries"'))


def test_a_raylet_is_told_where_its_agent_will_listen(tmp_path: Path) -> None:
    options = f"--session_dir={tmp_path} --node_id=0a1b"
    command = f"exec -a /ray/raylet bash -c 'sleep 60; true' {options} & wait"
    with subprocess.Popen(["bash", "-c", command]) as process:
        node = RayNode(process, tmp_path / "log", 4711)
        try:
            deadline = time.monotonic() + 60
            while not node.tell_port():
                assert time.monotonic() < deadline
            assert node.node_id() == "0a1b"
        finally:
            node.end()
    assert (tmp_path / "dashboard_agent_listen_port_0a1b").read_text() == "4711"
    assert not node.tell_port()


def test_a_start_whose_raylet_has_died_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_ray, "_PAUSE_SECONDS", 0.0)
    ended: list[str] = []

    class Start:
        ended = False

        def __init__(self, name: str, raylets: list[bool]) -> None:
            self.name, self.raylets = name, raylets

        def is_up(self) -> bool:
            return not self.raylets

        def tell_port(self) -> bool:
            return self.raylets.pop(0)

        def end(self) -> None:
            ended.append(self.name)

    starts: Any = [Start("first", [False, True, True, False, True]), Start("second", [False, True])]
    node, address = slurm_ray._until_up(lambda: (starts.pop(0), "here:1"), lambda: True)
    assert (getattr(node, "name", ""), address, ended) == ("second", "here:1", ["first"])
