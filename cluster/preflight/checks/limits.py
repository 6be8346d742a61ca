"""Limits of the processes on a node: open files, processes, locked memory."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from pathlib import Path

from cluster.preflight.checks.check import Check, or_all_well
from cluster.preflight.findings import Finding, Level
from cluster.preflight.nodes import Nodes, ask_all
from cluster.preflight.wanted import Wanted

NAME = "limits"
FEWEST_FILES, FEWEST_PROCESSES = 1024, 512
"""Ray, the readers of shards and the connections of a few workers need these."""
FILES_PER_WORKER = 8
"""Connections, of gloo or NCCL and of the store through which workers meet, that a node has for each other worker."""
AMPLE_FILES, AMPLE_PROCESSES = 4096, 4096
_SECONDS = 5.0
_INFINITE = resource.RLIM_INFINITY

Limits = Mapping[str, int]


def look() -> Limits:
    """The soft limits here; -1 is no limit."""
    kinds = {"files": resource.RLIMIT_NOFILE, "processes": resource.RLIMIT_NPROC, "locked": resource.RLIMIT_MEMLOCK}
    found = {name: resource.getrlimit(kind)[0] for name, kind in kinds.items()}
    adapters = Path("/sys/class/infiniband")
    return found | {"adapters": len(list(adapters.iterdir())) if adapters.is_dir() else 0}


def _measure(nodes: Nodes, _: Wanted) -> Mapping[str, Limits]:
    return ask_all(nodes, look, seconds=_SECONDS)


def judge(facts: Mapping[str, Limits], wanted: Wanted) -> list[Finding]:
    """Nodes whose limits are below what workers need."""
    needed = FEWEST_FILES + FILES_PER_WORKER * wanted.workers
    findings: list[Finding] = []
    for node, limits in facts.items():
        findings += _few(node, "open files (ulimit -n)", limits["files"], needed, max(AMPLE_FILES, needed), "nofile")
        findings += _few(node, "processes (ulimit -u)", limits["processes"], FEWEST_PROCESSES, AMPLE_PROCESSES, "nproc")
        if wanted.gpus_per_worker and limits["adapters"] and limits["locked"] != _INFINITE:
            found = f"{limits['locked']:,} bytes of locked memory (ulimit -l), and InfiniBand registers its buffers"
            findings.append(Finding(node, NAME, "warning", found, _remedy("memlock", "unlimited")))
    least = min((limits["files"] for limits in facts.values() if limits["files"] >= 0), default=-1)
    return or_all_well(findings, NAME, f"{least:,} open files or more on {len(facts)}")


def _few(node: str, what: str, has: int, needed: int, ample: int, item: str) -> list[Finding]:
    if has == _INFINITE or has >= ample:
        return []
    level: Level = "error" if has < needed else "warning"
    return [Finding(node, NAME, level, f"{has:,} {what}, {ample:,} are ample", _remedy(item, "65536"))]


def _remedy(item: str, value: str) -> str:
    return (
        f"raise it before Ray starts there: `* - {item} {value}` in /etc/security/limits.d/ray.conf, "
        f"Limit{item.upper()}={value.replace('unlimited', 'infinity')} of its systemd unit, or the container's --ulimit"
    )


CHECK = Check(NAME, _measure, judge, remedy="look at the node by hand: ulimit -a")
