"""A Ray cluster of several nodes on this machine, any of which can be lost: a raylet each, and its workers.

It may have an autoscaler, which adds nodes and takes them away as one of a cloud does (Ray's provider of fake nodes).

Ray's ports are open to all, so they ask for a token. Ray finds a lost node after some 3 s here, by its own settings for
health checks; as it is shipped it takes 14.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import psutil

from cluster.drills.victims import kill, title_of
from cluster.session.ray_folder import make_folder
from data_pipeline.errors import FoldtrainError

_UP_SECONDS = 300.0
_STARTS = 3
"""Times that a node is started before it counts as broken."""
_OBJECT_STORE_BYTES = 80 * 2**20
_SETTINGS = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",  # each fails at once where nobody listens
    "RAY_raylet_start_wait_time_s": "240",  # of a busy machine
}


_FAKE = "f" * 32
"""Begins the ids of nodes of Ray's fake provider."""
_FAKE_PROVIDER = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
_IDLE_MINUTES = 0.05


def _autoscaling(address: str, most: int) -> dict[str, Any]:
    """The config of an autoscaler, with all the keys that Ray looks for."""
    lists = ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands")
    more = ("head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
    worker = {"CPU": 1, "object_store_memory": _OBJECT_STORE_BYTES}
    return {
        "cluster_name": "drill",
        "max_workers": most,
        "upscaling_speed": 100.0,
        "idle_timeout_minutes": _IDLE_MINUTES,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": address,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": worker, "node_config": {}, "min_workers": 0, "max_workers": most},
        },
        "auth": {"ssh_user": "nobody"},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in (*lists, *more)},
    }


class RayNode:
    """One node: `ray start --block`, and all that it starts.

    Args:
        process: the command.
        log: what it prints.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process, self._log = process, log

    def family(self) -> list[psutil.Process]:
        """Its processes."""
        try:
            own = psutil.Process(self._process.pid)
            return [own, *own.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def workers(self, title: str) -> list[psutil.Process]:
        """Those of its processes that have this in their title."""
        return [process for process in self.family() if title in title_of(process)]

    def wait_until_up(self) -> None:
        """Return when its raylet is there.

        Raises:
            FoldtrainError: if it ends, or is not there in time.
        """
        deadline = time.monotonic() + _UP_SECONDS
        while "Ray runtime started" not in self._log.read_text(errors="replace"):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise FoldtrainError(f"a Ray node did not start:\n{self._log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)

    def lose(self) -> None:
        """End its raylet by kill -9, and then all else of it: a machine that is gone."""
        family = self.family()
        for process in [*self._raylets(), *family]:
            kill(process)
        self._process.wait()

    @property
    def id(self) -> str:
        """As Ray names it."""
        return self.nodes()[0]

    def nodes(self) -> list[str]:
        """Ray's ids of its raylets: its own, and those that its autoscaler has started."""
        found = []
        for raylet in self._raylets():
            with suppress(psutil.NoSuchProcess):
                names = (one.partition("=") for one in raylet.cmdline())
                found += [value for name, _, value in names if name == "--node_id"]
        return found

    def _raylets(self) -> list[psutil.Process]:
        return [process for process in self.family() if Path(title_of(process).split(" ")[0]).name == "raylet"]


class RayNodes:
    """A head and further nodes. To be used in a `with` statement; in the end all processes are killed by their ids.

    Args:
        cpus: of each node.
        most: nodes of one CPU that an autoscaler may add, and takes away once they have been idle for some seconds; 0
            for no autoscaler.
        variables: that all nodes have, and so their workers.
    """

    def __init__(self, cpus: int = 1, most: int = 0, variables: Mapping[str, str] | None = None) -> None:
        self._cpus, self._most, self._variables = cpus, most, dict(variables or {})
        self._nodes: list[RayNode] = []
        self._port = _free_port()
        self._folder, self._generation = Path(), 0
        self._token: dict[str, str] = {}

    @property
    def address(self) -> str:
        """Where drivers connect."""
        return f"127.0.0.1:{self._port}"

    @property
    def head(self) -> RayNode:
        """The node that drivers connect to, and that must not be lost."""
        return self._nodes[0]

    @property
    def environment(self) -> dict[str, str]:
        """Variables that a driver needs."""
        return self._token | _SETTINGS

    @property
    def added(self) -> set[str]:
        """Ray's ids of the nodes that the autoscaler has added, and not taken away yet."""
        return {node for node in self.head.nodes() if node.startswith(_FAKE)}

    def __enter__(self) -> Self:
        self._folder = make_folder()
        self._token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        with ExitStack() as held:
            held.push(self.__exit__)
            self._start_head()
            held.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for node in reversed(self._nodes):
            node.lose()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start_again(self, further: int) -> None:
        """The whole cluster anew, at the same address, once its head is lost, with so many further nodes."""
        for node in reversed(self._nodes):
            node.lose()
        self._nodes.clear()
        self._generation += 1
        self._start_head()
        for _ in range(further):
            self.add()

    def _start_head(self) -> None:
        options = [f"--autoscaling-config={self._autoscaling()}"] if self._most else []
        self._start(f"--port={self._port}", "--head", "--include-dashboard=false", *options).wait_until_up()

    def add(self) -> RayNode:
        """A further node, up.

        Raises:
            FoldtrainError: if it does not start, several times.
        """
        for _ in range(_STARTS - 1):  # Ray looks for free ports, and others may take them before it does
            node = self._start(f"--address={self.address}")
            try:
                node.wait_until_up()
            except FoldtrainError:
                node.lose()
            else:
                return node
        node = self._start(f"--address={self.address}")
        node.wait_until_up()
        return node

    def drain(self, node: RayNode) -> None:
        """Announce that a node will go: in ten minutes, as a provider of spot instances does.

        Raises:
            FoldtrainError: if Ray does not take it.
        """
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "drain-node", f"--address={self.address}"),
            *(f"--node-id={node.id}", "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=a drill"),
            "--deadline-remaining-seconds=600",
        ]
        done = subprocess.run(command, env=os.environ | self.environment, capture_output=True, text=True)
        if done.returncode:
            raise FoldtrainError(f"ray drain-node failed:\n{done.stdout}{done.stderr}")

    def _autoscaling(self) -> Path:
        """The file for an autoscaler."""
        path = self._folder / "autoscaling.json"
        path.write_text(json.dumps(_autoscaling(f"{self.address}", self._most)))
        return path

    def _start(self, *arguments: str) -> RayNode:
        log = self._folder / f"node-{self._generation}-{len(self._nodes)}.log"
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *arguments),
            *(
                "--node-ip-address=127.0.0.1",
                f"--temp-dir={self._folder / f'r{self._generation}'}",
                f"--num-cpus={self._cpus}",
            ),
            *(f"--object-store-memory={_OBJECT_STORE_BYTES}", "--min-worker-port=0", "--max-worker-port=0"),
        ]
        variables = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        fake = _FAKE_PROVIDER if self._most else {}
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env=variables | self._variables | self.environment | fake,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        node = RayNode(process, log)
        self._nodes.append(node)
        return node


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])
