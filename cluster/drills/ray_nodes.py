"""A Ray cluster of several nodes on this machine, any of which can be lost: a raylet each, and its workers.

It may have an autoscaler, which adds nodes and takes them away as one of a cloud does (Ray's provider of fake nodes).

Ray's ports are open to all, so they ask for a token. Ray finds a lost node after some 3 s here, by its own settings for
health checks; as it is shipped it takes 14.

Ray limits how long a start may take, and a busy machine takes longer. Four of these limits are settings, the fifth is
got round (raylet_ports.py). What does not start all the same is started again, and that is said.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

import psutil

from cluster.drills.fake_autoscaler import ENVIRONMENT, OBJECT_STORE_BYTES, autoscaling, is_added
from cluster.drills.node_networks import LINE, NodeNetworks
from cluster.drills.raylet_ports import LISTEN_PORT, agent_ports, free_ports, leave_word, options_of
from cluster.drills.victims import Family, kill, program_of, title_of
from cluster.session.ray_folder import make_folder
from cluster.session.ray_session import SPARING
from cluster.terminal.output import say
from data_pipeline.errors import FoldtrainError

_UP_SECONDS = 300.0
_SETTLES_SECONDS = 1.0
"""After which a raylet whose agents found their ports taken has ended: `ray start` does not wait for that."""
_GONE_SECONDS = 10.0
"""After which what was killed and is still there is killed again."""
_STARTS = 3
"""Times that a node is started before it counts as broken."""
_SETTINGS = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",  # each fails at once where nobody listens
    "RAY_raylet_start_wait_time_s": "240",
    "RAY_worker_register_timeout_seconds": "240",
    "RAY_agent_register_timeout_ms": "240000",
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "240",
    "RAY_worker_niceness": "0",  # Ray's 15 leaves next to nothing for workers on a machine that does other work, too
}


class RayNode:
    """One node: `ray start --block`, and all that it starts.

    Args:
        process: the command.
        log: what it prints.
        listen_port: that its dashboard's agent was given.
        network: number of its own network; 0 for that of this machine.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path, listen_port: int, network: int = 0) -> None:
        self._process, self._log, self._listen_port, self.network = process, log, listen_port, network
        self._family = Family(process.pid)

    @property
    def is_up(self) -> bool:
        """Whether its command runs, which ends when one of Ray's own processes has."""
        return self._process.poll() is None

    def family(self) -> list[psutil.Process]:
        """Its processes, those of jobs, too."""
        return self._family.members()

    def workers(self, title: str) -> list[psutil.Process]:
        """Those of its processes that have this in their title."""
        return [process for process in self.family() if title in title_of(process)]

    def programs(self, name: str) -> list[psutil.Process]:
        """Those of its processes that run the program of a name: raylet, gcs_server."""
        return [process for process in self.family() if program_of(process) == name]

    def wait_until_up(self) -> None:
        """Return when its raylet is there.

        Raises:
            FoldtrainError: if it ends, or is not there in time.
        """
        deadline, was_there = time.monotonic() + _UP_SECONDS, False
        while "Ray runtime started" not in (said := self._log.read_text(errors="replace")):
            is_there = self._tell_port()
            if was_there and not is_there:
                raise FoldtrainError(f"a Ray node did not start:\n{said[-2000:]}\nits raylet has ended")
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise FoldtrainError(f"a Ray node did not start:\n{said[-2000:]}")
            was_there = is_there
            time.sleep(0.2)
        time.sleep(_SETTLES_SECONDS)
        if not self._raylet_options():
            raise FoldtrainError(f"a Ray node did not start:\n{said[-2000:]}\nits raylet has ended")

    def _tell_port(self) -> bool:
        """Leave word for a raylet where its agent will listen, as the agent does once it is up. Is there one?"""
        raylets = self._raylet_options()
        for options in raylets:
            leave_word(Path(options["session_dir"]), options["node_id"], self._listen_port)
        return bool(raylets)

    def lose(self) -> None:
        """End its raylet by kill -9, and then all else of it: a machine that is gone. Returns when it is."""
        for process in self.programs("raylet"):
            kill(process)
        while found := self.family():  # others may be started meanwhile
            for process in found:
                kill(process)
            self._process.wait()
            psutil.wait_procs(found, timeout=_GONE_SECONDS)

    @property
    def id(self) -> str:
        """As Ray names it."""
        return self.nodes()[0]

    def nodes(self) -> list[str]:
        """Ray's ids of its raylets: its own, and those that its autoscaler has started."""
        return [options["node_id"] for options in self._raylet_options()]

    def _raylet_options(self) -> list[dict[str, str]]:
        found = []
        for raylet in self.programs("raylet"):
            with suppress(psutil.Error):
                words = (word.removeprefix("--").partition("=") for word in raylet.cmdline()[1:])
                found.append({name: value for name, _, value in words})
        return [options for options in found if "node_id" in options]


class RayNodes:
    """A head and further nodes. To be used in a `with` statement; in the end all processes are killed by their ids.

    Args:
        cpus: of each node.
        most: nodes of one CPU that an autoscaler may add, and takes away once they have been idle for some seconds; 0
            for no autoscaler.
        variables: that all nodes have, and so their workers.
        jobs: whether the head takes jobs, through its dashboard.
        networks: on which each node but the head, which is on this machine's own, has a network for itself.
    """

    def __init__(
        self,
        cpus: int = 1,
        most: int = 0,
        variables: Mapping[str, str] | None = None,
        *,
        jobs: bool = False,
        networks: NodeNetworks | None = None,
    ) -> None:
        self._cpus, self._most, self._variables = cpus, most, dict(variables or {})
        self._networks, self._takes_jobs = networks, jobs
        self._here = networks.here if networks else "127.0.0.1"
        self._nodes: list[RayNode] = []
        self._port, self._dashboard_port = free_ports(2)
        self._folder, self._started, self._generation = Path(), 0, 0
        self._token: dict[str, str] = {}

    @property
    def address(self) -> str:
        """Where drivers connect."""
        return f"{self._here}:{self._port}"

    @property
    def dashboard(self) -> str:
        """URL of the dashboard."""
        return f"http://{self._here}:{self._dashboard_port}"

    @property
    def head(self) -> RayNode:
        """The node that drivers connect to. With it the cluster is lost."""
        return self._nodes[0]

    @property
    def others(self) -> list[RayNode]:
        """The nodes but the head."""
        return self._nodes[1:]

    @property
    def environment(self) -> dict[str, str]:
        """Variables that a driver needs."""
        return self._token | _SETTINGS

    @property
    def added(self) -> set[str]:
        """Ray's ids of the nodes that the autoscaler has added, and not taken away yet."""
        return set(filter(is_added, self.head.nodes()))

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

    def add(self) -> RayNode:
        """A further node, up.

        Raises:
            FoldtrainError: if it does not start, several times.
        """
        return self._start_until_up(f"--address={self.address}", network=self._next_network())

    def replace(self, node: RayNode) -> RayNode:
        """What is left of a node is ended, and another one takes its place, and its network. Returns it.

        Raises:
            FoldtrainError: if it does not start, several times.
        """
        node.lose()
        self._nodes.remove(node)
        return self._start_until_up(f"--address={self.address}", network=node.network)

    def _start_head(self) -> None:
        options = [f"--autoscaling-config={self._autoscaling()}"] if self._most else ["--no-monitor"]
        options += [f"--ray-client-server-port={free_ports(1)[0]}"]  # else a fixed one, which another head may have
        options += [f"--include-dashboard={str(self._takes_jobs).lower()}"]
        if self._takes_jobs:
            options += [f"--dashboard-host={self._here}", f"--dashboard-port={self._dashboard_port}"]
        self._start_until_up(f"--port={self._port}", "--head", *options)

    def _start_until_up(self, *arguments: str, network: int = 0) -> RayNode:
        """A node; again if it does not start: its ports were free, and others may take them before Ray does."""
        for left in reversed(range(_STARTS)):
            node = self._start(*arguments, network=network)
            try:
                node.wait_until_up()
            except FoldtrainError as error:
                node.lose()
                self._nodes.remove(node)
                if not left:
                    raise
                say(f"a Ray node did not start, and is started again: {str(error).splitlines()[-1]}", err=True)
            else:
                return node
        raise AssertionError

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

    @property
    def _sessions(self) -> Path:
        """The folder of Ray's sessions."""
        return self._folder / f"r{self._generation}"

    def _autoscaling(self) -> Path:
        """The file for an autoscaler."""
        path = self._folder / "autoscaling.json"
        path.write_text(json.dumps(autoscaling(self.address, self._most, str(self._sessions))))
        return path

    def _next_network(self) -> int:
        """The first that no node has; made if it is not there yet. 0 without networks."""
        if self._networks is None:
            return 0
        number = min(set(range(1, len(self._nodes) + 2)) - {node.network for node in self._nodes})
        if number not in self._networks.nodes:
            self._networks.add(number)
        return number

    def _start(self, *arguments: str, network: int) -> RayNode:
        self._started += 1
        log = self._folder / f"node-{self._started}.log"
        variables = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        prefix, address = [], self._here
        if self._networks is not None:
            variables["GLOO_SOCKET_IFNAME"] = LINE if network else self._networks.bridge
        if self._networks is not None and network:
            prefix = ["ip", "netns", "exec", self._networks.namespace(network)]
            address = self._networks.address(network)
        ports = agent_ports()
        command = [
            *prefix,
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *arguments),
            *(
                f"--node-ip-address={address}",
                f"--temp-dir={self._sessions}",
                f"--num-cpus={self._cpus}",
            ),
            *(f"--object-store-memory={OBJECT_STORE_BYTES}", "--min-worker-port=0", "--max-worker-port=0"),
            *options_of(ports),
        ]
        fake = ENVIRONMENT if self._most else {}
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env=variables | SPARING | self._variables | self.environment | fake,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        node = RayNode(process, log, ports[LISTEN_PORT], network)
        self._nodes.append(node)
        return node
