"""How fast each pair of nodes can add up tensors: an all-reduce of two, joined as the workers of a training join.

All nodes are paired off at the same time, in rounds, so that each node talks to one other at once and a cluster of any
size takes a few seconds. A node whose best pair is far below the others' is slow itself; a pair that is far below
what both of its nodes reach with others has a slow way between them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from cluster.preflight.checks.check import Check, or_all_well
from cluster.preflight.findings import Finding
from cluster.preflight.nodes import Failure, Nodes, Some, ask_all
from cluster.preflight.wanted import Wanted
from data_pipeline.text.counted import counted

NAME = "bandwidth"
SLOW = 0.5
"""Of the median."""
FLOOR = 60e6
"""Bytes a second below which a link is slow whatever the others are: about half of gigabit Ethernet."""
_MOST_ROUNDS = 7
_IMPORT_SECONDS = 60.0
_MEET_SECONDS = 20.0
"""For two nodes to meet, of which each asks a few times for a name that takes a second at most (names.py)."""
_SECONDS = 30.0
_FIRST_BYTES, _MOST_BYTES = 2**16, 2**24
_LONG_SECONDS = 0.06
"""A tensor that takes so long is large enough."""
_REPEATS = 2

Pair = tuple[str, str]


def rounds(names: Sequence[str]) -> list[list[Pair]]:
    """All pairs in rounds in which each name is once (the circle method), as many rounds as are run."""
    ring: list[str | None] = [*names, *([None] if len(names) % 2 else [])]
    found = []
    for _ in range(min(_MOST_ROUNDS, len(ring) - 1)):
        facing = zip(ring[: len(ring) // 2], reversed(ring[len(ring) // 2 :]), strict=True)
        found.append([(a, b) for a, b in facing if a is not None and b is not None])
        ring = [ring[0], ring[-1], *ring[1:-1]]
    return found


def prepare() -> None:
    """Import what `exchange` needs: that takes one node longer than another, which would wait for it in vain."""
    import torch.distributed  # noqa: F401


def port() -> int:
    """A free port here."""
    from cluster.training.rendezvous import free_port

    return free_port()


def exchange(rank: int, address: str, at: int, nccl: bool) -> float:
    """Join with the other node of a pair, and add up tensors. Returns bytes a second.

    Args:
        rank: 0 or 1.
        address: of the node of rank 0.
        at: port there.
        nccl: whether it is done between their first GPUs, by NCCL.
    """
    import torch
    import torch.distributed as dist

    from cluster.training.rendezvous import Meeting, join_group

    nccl = nccl and torch.cuda.is_available()
    meeting = Meeting("nccl" if nccl else "gloo", rank, 2, 0, 1, rank, address=address, port=at)
    try:
        join_group(meeting, seconds=_MEET_SECONDS)
        return _rate(torch.device("cuda", 0) if nccl else torch.device("cpu"))
    finally:
        if not dist.is_initialized():  # torch counts its tries, and who counts otherwise does not meet the next node
            alone = dist.HashStore()  # type: ignore[attr-defined] # it is there, and torch does not say so
            dist.init_process_group("gloo", store=alone, rank=0, world_size=1)
        dist.destroy_process_group()


def _rate(device: Any) -> float:
    """The better rate of tensors that take long enough. Smaller ones may fit into what a line lets pass at once."""
    size = _FIRST_BYTES
    while True:
        seconds = min(_all_reduce(device, size) for _ in range(_REPEATS))
        if seconds >= _LONG_SECONDS or size >= _MOST_BYTES:
            return size / seconds
        size *= 4


def _all_reduce(device: Any, size: int) -> float:
    """Seconds that both need, the slower one's: so both decide alike how to go on."""
    import torch
    import torch.distributed as dist

    tensor = torch.zeros(size // 4, device=device)
    dist.barrier()
    began = time.perf_counter()
    dist.all_reduce(tensor)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    took = torch.tensor([time.perf_counter() - began], dtype=torch.float64, device=device)
    dist.all_reduce(took, op=dist.ReduceOp.MAX)
    return float(took.item())


def _measure(nodes: Nodes, wanted: Wanted) -> Mapping[Any, float | Failure]:
    ready = ask_all(nodes, prepare, seconds=_IMPORT_SECONDS)
    failures = {name: answer for name, answer in ready.items() if isinstance(answer, Failure)}
    return failures | _rates(Some(nodes, tuple(name for name in ready if name not in failures)), wanted)


def _rates(nodes: Nodes, wanted: Wanted) -> dict[Any, float | Failure]:
    addresses = nodes.addresses
    found: dict[Any, float | Failure] = {}
    for pairs in rounds(list(addresses)):
        ports = nodes.each(port, {first: () for first, _ in pairs}, _SECONDS)
        asked: dict[str, tuple[Any, ...]] = {}
        for pair in pairs:
            if not isinstance(ports[pair[0]], Failure):
                first, second = (addresses[name] for name in pair)
                on_gpus = wanted.gpus_per_worker > 0 and first != second  # one GPU is no two ranks of NCCL
                for rank, name in enumerate(pair):
                    asked[name] = (rank, first, ports[pair[0]], on_gpus)
        rates = nodes.each(exchange, asked, _SECONDS)
        for pair in pairs:
            both = [rates.get(name, ports[pair[0]]) for name in pair]
            failures = [each for each in both if isinstance(each, Failure)]
            found[pair] = failures[0] if failures else min(both)
    return found


def judge(facts: Mapping[Pair, float | Failure], _: Wanted) -> list[Finding]:
    """Nodes that cannot join, or are slow with, any other; and such pairs of nodes that are well with others."""
    rates = {pair: rate for pair, rate in facts.items() if not isinstance(rate, Failure)}
    findings = [
        *_apart({pair: found for pair, found in facts.items() if isinstance(found, Failure)}, rates),
        *_slow(rates),
    ]
    least = _size(min(rates.values(), default=0.0))
    return or_all_well(findings, NAME, f"{least} or more between {counted(len(rates), 'pair')}")


def _apart(failures: Mapping[Pair, Failure], rates: Mapping[Pair, float]) -> list[Finding]:
    """Who did not join. A node that joined nobody is named, if others joined each other."""
    joined = {name for pair in rates for name in pair}
    findings, told = [], set[str]()
    for pair, failure in failures.items():
        alone = [name for name in pair if joined and name not in joined]
        if alone and not told.isdisjoint(alone):
            continue
        told.update(alone)
        node = " and ".join(alone or pair)
        findings.append(Finding(node, NAME, "error", f"{' and '.join(pair)} do not join: {failure.reason}", _JOIN))
    return findings


def _slow(facts: Mapping[Pair, float]) -> list[Finding]:
    names = list(dict.fromkeys(name for pair in facts for name in pair))
    best = {name: max(rate for pair, rate in facts.items() if name in pair) for name in names}
    usual = median(best.values()) if best else 0.0
    slow = {name for name in names if len(names) > 2 and best[name] < SLOW * usual}
    findings = [
        Finding(
            name, NAME, "warning", f"{_size(best[name])} with the best of the others, which reach {_size(usual)}", _NODE
        )
        for name in names
        if name in slow
    ]
    for (a, b), rate in facts.items():
        reachable = min(best[a], best[b])
        if slow.isdisjoint((a, b)) and (rate < SLOW * reachable or rate < FLOOR):
            with_others = f", each {_size(reachable)} or more with others" if rate < SLOW * reachable else ""
            findings.append(Finding(f"{a} and {b}", NAME, "warning", f"{_size(rate)} between them{with_others}", _PAIR))
    return findings


def _size(rate: float) -> str:
    return f"{rate / 1e9:.2f} GB/s" if rate >= 1e9 else f"{rate / 1e6:.0f} MB/s"


_NODE = (
    "look at its network card, cable and switch port (ethtool, ip -s link), at what else sends there, and at the "
    "interface that is used (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME); or take the node out"
)
_PAIR = (
    "look at the way between them (switches, a firewall, a traffic limit), and at the interface that is used "
    "(GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME)"
)
_JOIN = (
    "see that workers can join there: torch is the same, and the host's name resolves to an address that others reach, "
    "or GLOO_SOCKET_IFNAME (NCCL_SOCKET_IFNAME) names the interface that they do reach"
)
CHECK = Check(
    NAME,
    _measure,
    judge,
    remedy=_JOIN,
    fewest=2,
    after=("ports",),
    unless=("names",),
    again=True,
)
