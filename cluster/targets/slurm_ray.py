"""Ray's processes on one node of an allocation: `ray start --block`, found by its process id, and ended by it.

Several jobs share a node: every port is one that is free (Ray's own defaults are not), and all files are in a folder of
mode 0700 on the node's own disk. A raylet that has to find out the ports of its agents dies after 15 s (ray#65983), and
these take longer where Python's modules come from a busy file server: it is told them.

Slurm sends its signals to every process of a step, or to the first ones alone, as it is set up (ProctrackType): Ray's
processes block them, as in a cluster that a command starts itself (cluster/session/ray_processes.py), so that a
training saves a checkpoint while Ray is still there.

`python -P -m cluster.targets.slurm_ray` is `ray start` without the helpers that a cluster of one job can do without.
"""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cluster.session.ray_processes import NOTICES, end_tree, without_helpers
from cluster.session.ray_session import SPARING
from data_pipeline.errors import FoldtrainError

BLOCKED = (*NOTICES, signal.SIGUSR2)
"""What Ray's processes do not listen to."""
_UP_SECONDS = 300.0
"""Within which a node has to be up: Python's modules may come from a busy file server."""
_RAYLET_SECONDS = 120.0
_PATIENT = {"RAY_raylet_start_wait_time_s": "120"}
"""Ray's own limit for a part of it; as it is shipped a node that is busy gives itself up after some seconds."""
_STARTS = 3
"""A port that was free may be another's when Ray comes to use it."""
_OBJECT_STORE_BYTES = 256 * 2**20  # only control messages pass through it: images and tokens go to storage
_PAUSE_SECONDS = 0.2
_UP = "Ray runtime started"
_LISTEN_PORT = "dashboard-agent-listen-port"
_AGENT_PORTS = (_LISTEN_PORT, "dashboard-agent-grpc-port", "metrics-export-port", "runtime-env-agent-port")
_LAST_WORDS = 400


class RayNode:
    """One node of a Ray cluster: `ray start --block`, and all that it starts.

    Args:
        process: the command.
        log: what it prints.
        listen_port: that its dashboard's agent was given.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path, listen_port: int) -> None:
        self._process, self._log, self._listen_port = process, log, listen_port

    @property
    def ended(self) -> bool:
        """Whether it, or any part of it, has ended: the rest then ends by itself."""
        return self._process.poll() is not None

    def is_up(self) -> bool:
        """Whether it has joined its cluster."""
        return _UP in self._log.read_text(errors="replace")

    def last_words(self) -> str:
        """The end of what it printed, in one line."""
        return " ".join(self._log.read_text(errors="replace")[-_LAST_WORDS:].split())

    def end(self) -> None:
        """End it and all that descends from it."""
        end_tree(self._process.pid)
        self._process.wait()

    def is_busy(self) -> bool:
        """Whether one of its workers has something to do."""
        titles = (title for process in self._family() if (title := _title(process)).startswith("ray::"))
        return any(not title.startswith("ray::IDLE") for title in titles)

    def node_id(self) -> str:
        """As Ray names it.

        Raises:
            FoldtrainError: if it is gone.
        """
        for options in self._raylet_options():
            return options["node_id"]
        raise FoldtrainError("this node's part of Ray is gone")

    def tell_port(self) -> bool:
        """Leave word for the raylet where its agent will listen, as that does once it is up: there is no option for it.

        Returns:
            Whether there is a raylet.
        """
        raylets = self._raylet_options()
        for options in raylets:
            file = Path(options["session_dir"]) / f"{_LISTEN_PORT.replace('-', '_')}_{options['node_id']}"
            if not file.exists():
                new = file.with_suffix(".new")
                new.write_text(str(self._listen_port))
                new.replace(file)
        return bool(raylets)

    def _raylet_options(self) -> list[dict[str, str]]:
        found = []
        for process in self._family():
            name, *words = _words(process) or [""]
            if Path(name).name == "raylet":
                options = (word.removeprefix("--").partition("=") for word in words)
                found.append({option: value for option, _, value in options})
        return [options for options in found if {"node_id", "session_dir"} <= options.keys()]

    def _family(self) -> list[Any]:
        import psutil

        try:
            return list(psutil.Process(self._process.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return []


def _words(process: Any) -> list[str]:
    import psutil

    try:
        return list(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []


def _title(process: Any) -> str:
    return " ".join(_words(process))


def start_head(
    folder: Path, host: str, resources: list[str], token: Mapping[str, str], wanted: Callable[[], bool]
) -> tuple[RayNode, str]:
    """A head on this node and its address: up, or as far as it has come when it is no longer wanted.

    Args:
        folder: for its files, of this user alone.
        host: this node's address, by which the others reach it.
        resources: what it is told that it has, as options of `ray start`.
        token: variables with the token that the cluster asks for.
        wanted: whether it is still wanted, while it starts.

    Raises:
        FoldtrainError: if it does not start.
    """

    def once() -> tuple[RayNode, str]:
        [port] = free_ports(host, 1)
        head = [f"--port={port}", "--head", "--include-dashboard=false"]
        return _start(folder, host, [*head, *resources], token), join_host(host, port)

    return _until_up(once, wanted)


def start_worker(
    folder: Path, host: str, address: str, resources: list[str], token: Mapping[str, str], wanted: Callable[[], bool]
) -> RayNode:
    """A node of the cluster whose head is at `address`; see `start_head`.

    One that is no longer wanted may be known to the head already, which sends work to it: it is to be drained.

    Raises:
        FoldtrainError: if it does not start.
    """

    def once() -> tuple[RayNode, str]:
        return _start(folder, host, [f"--address={address}", *resources], token), address

    return _until_up(once, wanted)[0]


def _until_up(once: Callable[[], tuple[RayNode, str]], wanted: Callable[[], bool]) -> tuple[RayNode, str]:
    for _ in range(_STARTS):
        node, address = once()
        deadline, was_there = time.monotonic() + _UP_SECONDS, False
        while wanted() and not node.ended and time.monotonic() < deadline:
            if node.is_up():
                return node, address
            is_there = node.tell_port()
            if was_there and not is_there:  # it has died, and `ray start` would wait for it
                break
            was_there = is_there
            time.sleep(_PAUSE_SECONDS)
        if not wanted():
            return node, address
        node.end()
    raise FoldtrainError(f"Ray does not start on {socket.gethostname()}: {node.last_words()}")


def _start(folder: Path, host: str, options: list[str], token: Mapping[str, str]) -> RayNode:
    ports = dict(zip(_AGENT_PORTS, free_ports(host, len(_AGENT_PORTS)), strict=True))
    command = [
        *(
            sys.executable,
            "-P",
            "-m",
            "cluster.targets.slurm_ray",
            "start",
            "--block",
            "--disable-usage-stats",
            "--log-color=false",
        ),
        *(f"--node-ip-address={host}", f"--temp-dir={folder / 'r'}", *options),
        *(f"--{name}={port}" for name, port in ports.items()),
        *(f"--object-store-memory={_OBJECT_STORE_BYTES}", "--min-worker-port=0", "--max-worker-port=0"),
    ]
    log = folder / f"ray-{len(list(folder.glob('ray-*.log'))) + 1}.log"
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)  # a process is born with the mask of its parent
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env=ray_environment(os.environ) | dict(token),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=folder,
            )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return RayNode(process, log, ports[_LISTEN_PORT])


def ray_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without another cluster's address or token."""
    other = {"RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
    ours = {name: value for name, value in environment.items() if name not in other}
    return {**SPARING, **_PATIENT, **ours, "RAY_USAGE_STATS_ENABLED": "0"}


def drain(node: RayNode, address: str, token: Mapping[str, str], seconds: float) -> None:
    """Announce to the head that a node leaves: nothing new comes to it, and what runs there makes ready to go.

    Raises:
        FoldtrainError: if the head does not take it.
    """
    command = [
        *(sys.executable, "-P", "-m", "ray.scripts.scripts", "drain-node", f"--address={address}"),
        *(f"--node-id={node.node_id()}", "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=its time is up"),
        f"--deadline-remaining-seconds={max(1, int(seconds))}",
    ]
    environment = ray_environment(os.environ) | dict(token)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", cwd="/")
    if done.returncode:
        raise FoldtrainError(f"Ray does not let this node leave: {(done.stderr or done.stdout)[-_LAST_WORDS:].strip()}")


def free_ports(host: str, count: int) -> list[int]:
    """So many ports of this node's that nobody listens on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sockets = [socket.socket(family) for _ in range(count)]
    try:
        for opened in sockets:
            opened.bind((host, 0))
        return [int(opened.getsockname()[1]) for opened in sockets]
    finally:
        for opened in sockets:
            opened.close()


def join_host(host: str, port: int) -> str:
    """HOST:PORT."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def address_of_interface(interface: str) -> str:
    """The address of this node on one of its networks.

    Raises:
        FoldtrainError: if it has no such interface.
    """
    import psutil

    found = psutil.net_if_addrs()
    addresses = [each.address for each in found.get(interface, ()) if each.family == socket.AF_INET]
    if addresses:
        return str(addresses[0])
    raise FoldtrainError(
        f"{socket.gethostname()} has no interface {interface} with an IPv4 address (interface of the target); it has "
        f"{', '.join(found)}"
    )


def address_towards(host: str) -> str:
    """The address of this node on the network through which it reaches another one.

    Raises:
        FoldtrainError: if there is no way there.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as opened:
            opened.connect(where)  # sends nothing
            return str(ipaddress.ip_address(opened.getsockname()[0].partition("%")[0]))
    except OSError as error:
        raise FoldtrainError(f"{socket.gethostname()} finds no way to {host}: {error}") from error


def main() -> None:
    """Ray's own command line, with a head that has no helpers, and more time for a node that is busy."""
    from ray._private import node, services
    from ray.scripts.scripts import main as ray

    theirs: Any = node.Node  # Ray has no settings for these
    theirs.start_ray_client_server = lambda *_, **__: None
    theirs_too: Any = services
    theirs_too.get_node = patient(services.get_node)
    with without_helpers():
        ray()  # type: ignore[no-untyped-call] # Ray's


def patient(ask: Callable[..., Any]) -> Callable[..., Any]:
    """Ray's question for a node, which gives a raylet half a minute to come up, for as long as a node may take here."""

    def ask_again(*arguments: Any, **options: Any) -> Any:
        deadline = time.monotonic() + _RAYLET_SECONDS
        while True:
            try:
                return ask(*arguments, **options)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE_SECONDS)

    return ask_again


if __name__ == "__main__":
    main()
