"""Clocks: leases and records need no common time, but logs, S3's signatures and certificates do."""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import median

from cluster.preflight.checks.check import Check, or_all_well
from cluster.preflight.findings import Finding, Level
from cluster.preflight.nodes import Failure, Nodes
from cluster.preflight.wanted import Wanted

NAME = "clock"
WARNING_SECONDS, ERROR_SECONDS = 1.0, 60.0
"""Of difference: records of several nodes can no longer be put in order; tokens and signatures are refused soon."""
_SECONDS = 3.0
_ASKED_AGAIN = 32
"""Clusters of so many nodes at most are asked twice, and the shorter way counts."""

Offset = tuple[float, float]
"""Seconds by which a clock is ahead of this process's, and how far off that may be."""


def look() -> float:
    """The time here, unix seconds."""
    return time.time()


def _measure(nodes: Nodes, _: Wanted) -> Mapping[str, Offset | Failure]:
    """Each is asked by itself: half of the way there and back is how far off the answer may be."""
    rounds = 2 if len(nodes.addresses) <= _ASKED_AGAIN else 1
    return {name: _offset(nodes, name, rounds) for name in nodes.addresses}


def _offset(nodes: Nodes, name: str, rounds: int) -> Offset | Failure:
    best: Offset | None = None
    for _ in range(rounds):
        asked = time.time()
        answer = nodes.each(look, {name: ()}, _SECONDS)[name]
        if isinstance(answer, Failure):
            return answer
        answered = time.time()
        found = (answer - (asked + answered) / 2, (answered - asked) / 2)
        best = found if best is None or found[1] < best[1] else best
    assert best is not None
    return best


def judge(facts: Mapping[str, Offset], _: Wanted) -> list[Finding]:
    """Clocks that differ from the median; of two nodes, from the first."""
    offsets = [ahead for ahead, _ in facts.values()]
    right = median(offsets) if len(offsets) > 2 else (offsets or [0.0])[0]
    findings, widest = [], 0.0
    for node, (ahead, unsure) in facts.items():
        off = abs(ahead - right) - unsure
        widest = max(widest, off)
        if off > WARNING_SECONDS:
            level: Level = "error" if off > ERROR_SECONDS else "warning"
            way = "ahead of" if ahead > right else "behind"
            found = f"{abs(ahead - right):.1f} s {way} the others (± {unsure:.2f} s)"
            findings.append(Finding(node, NAME, level, found, "set it: timedatectl set-ntp true, or chronyc makestep"))
    return or_all_well(findings, NAME, f"within {max(widest, 0.01):.2f} s on {len(facts)}")


CHECK = Check(NAME, _measure, judge, remedy="look at the load of the node and at its network")
