"""A process on each node of the Ray cluster that is connected, through which the node is asked."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cluster.preflight.nodes import Failure, failed, silent

START_SECONDS = 15.0
"""A node on which no process comes up within so long does not answer."""
_AT_ONCE = 8
"""Calls that a probe has under way: one that hangs does not hold up the next."""


class Probe:
    """The process on a node. It reserves nothing, and sees all GPUs of the node."""

    def __init__(self) -> None:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides GPUs from who reserves none; CUDA reads it later
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a pair that does not meet is a finding

    def hello(self) -> tuple[str, str]:
        """Host name and address of the node."""
        import ray

        return socket.gethostname(), str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """What a function returns here, or how it failed."""
        try:
            return function(*arguments)
        except BaseException as error:
            return failed(error)


@dataclass
class RayProbes:
    """Nodes that have a probe (`Nodes`)."""

    ids: dict[str, str]
    """Ray's id of each node, by its name; also of those that did not answer."""
    addresses: dict[str, str]
    """See Nodes."""
    unanswered: dict[str, Failure]
    """Nodes on which no probe came up, by name."""
    probes: dict[str, Any] = field(repr=False)
    """Ray's actors, by the name of the node."""

    def each(
        self, function: Callable[..., Any], arguments: Mapping[str, tuple[Any, ...]], seconds: float
    ) -> dict[str, Any]:
        """See Nodes."""
        asked = {name: self.probes[name].call.remote(function, given) for name, given in arguments.items()}
        return _answers(asked, seconds)


@contextmanager
def probes(ids: Sequence[str] = ()) -> Iterator[RayProbes]:
    """A probe on each node, for as long as it is entered.

    Args:
        ids: Ray's ids of the nodes; those of all that are alive if there are none.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    actor: Any = ray.remote(Probe)
    options = {"num_cpus": 0, "max_restarts": 0, "max_concurrency": _AT_ONCE}
    hosts = _hosts(ids)
    started = {
        node: actor.options(**options, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote()
        for node in hosts
    }
    try:
        answers = _answers({node: probe.hello.remote() for node, probe in started.items()}, START_SECONDS)
        yield _named(hosts, started, answers)
    finally:
        for probe in started.values():
            with contextlib.suppress(RayError):
                ray.kill(probe)


def _hosts(ids: Sequence[str]) -> dict[str, str]:
    """Host names, by Ray's id of the node; this process's own node comes first."""
    import ray

    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    alive = {node["NodeID"]: str(node["NodeManagerHostname"]) for node in nodes if node["Alive"]}
    here = ray.get_runtime_context().get_node_id()
    return {
        node: alive[node] for node in sorted(alive, key=lambda node: (node != here, node)) if not ids or node in ids
    }


def machines(ids: Collection[str]) -> int:
    """On how many machines some nodes are: several of one machine have one address."""
    import ray

    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return len({node["NodeManagerAddress"] for node in nodes if node["NodeID"] in ids})


def _named(hosts: Mapping[str, str], started: Mapping[str, Any], answers: Mapping[str, Any]) -> RayProbes:
    """With the names by which people know the nodes: host names, and a part of Ray's id where one has several."""
    shared = Counter(hosts.values())
    names = {node: host if shared[host] == 1 else f"{host} ({node[:8]})" for node, host in hosts.items()}
    up = {node: answer for node, answer in answers.items() if not isinstance(answer, Failure)}
    return RayProbes(
        ids={names[node]: node for node in hosts},
        addresses={names[node]: up[node][1] for node in hosts if node in up},
        unanswered={names[node]: answer for node, answer in answers.items() if isinstance(answer, Failure)},
        probes={names[node]: started[node] for node in up},
    )


def _answers(asked: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """What Ray's references come to within so many seconds."""
    import ray

    until, left = time.monotonic() + seconds, list(asked.values())
    while left and (rest := until - time.monotonic()) > 0:
        _, left = ray.wait(left, num_returns=len(left), timeout=rest)
    late = set(left)
    return {name: silent(seconds) if answer in late else _answer(answer) for name, answer in asked.items()}


def _answer(reference: Any) -> Any:
    import ray

    try:
        return ray.get(reference)
    except Exception as error:  # of Ray, or of a node that cannot import what it is asked for
        return failed(error)
