"""A Ray cluster of several nodes on this machine, any of which can be lost: a raylet each, and its workers.

Ray's ports are open to all, so they ask for a token. Ray finds a lost node after some 3 s here, by its own settings for
health checks; as it is shipped it takes 14.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import psutil

from cluster.drills.victims import kill, title_of
from cluster.session.ray_folder import make_folder
from data_pipeline.errors import FoldtrainError

_UP_SECONDS = 90.0
_STARTS = 3
"""Times that a node is started before it counts as broken."""
_OBJECT_STORE_BYTES = 80 * 2**20
_SETTINGS = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",  # each fails at once where nobody listens
    "RAY_raylet_start_wait_time_s": "60",  # of a busy machine
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
        names = (one.partition("=") for one in self._raylets()[0].cmdline())
        return str(next(value for name, _, value in names if name == "--node_id"))

    def _raylets(self) -> list[psutil.Process]:
        return [process for process in self.family() if Path(title_of(process).split(" ")[0]).name == "raylet"]


class RayNodes:
    """A head and further nodes. To be used in a `with` statement; in the end all processes are killed by their ids.

    Args:
        cpus: of each node.
    """

    def __init__(self, cpus: int = 1) -> None:
        self._cpus = cpus
        self._nodes: list[RayNode] = []
        self._port = _free_port()
        self._folder = Path()
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

    def __enter__(self) -> Self:
        self._folder = make_folder()
        self._token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        with ExitStack() as held:
            held.push(self.__exit__)
            self._start(f"--port={self._port}", "--head", "--include-dashboard=false").wait_until_up()
            held.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for node in reversed(self._nodes):
            node.lose()
        shutil.rmtree(self._folder, ignore_errors=True)

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

    def _start(self, *arguments: str) -> RayNode:
        log = self._folder / f"node-{len(self._nodes)}.log"
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *arguments),
            *("--node-ip-address=127.0.0.1", f"--temp-dir={self._folder / 'r'}", f"--num-cpus={self._cpus}"),
            *(f"--object-store-memory={_OBJECT_STORE_BYTES}", "--min-worker-port=0", "--max-worker-port=0"),
        ]
        variables = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env=variables | self.environment,
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
