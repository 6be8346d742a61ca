"""Whether a training may begin, and which nodes it does without because there are spare ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from cluster.preflight.checks import links, matmul
from cluster.preflight.findings import Finding, errors

_SLOWS_ALL_DOWN = (matmul.NAME, links.NAME)
"""Checks whose warning about a node is reason enough to do without it: the others would wait for it at every step."""


@dataclass(frozen=True)
class Verdict:
    """What follows from some findings."""

    left_out: tuple[str, ...]
    """Names of nodes that are not used."""
    refused: tuple[Finding, ...]
    """Errors that remain without these nodes: with any of them the training does not begin."""


def decide(
    findings: Sequence[Finding], names: Collection[str], room: Callable[[Collection[str]], int], needed: int
) -> Verdict:
    """Leave out what is broken, then what is slow, as long as the others have room for the workers.

    Args:
        findings: of all checks.
        names: of the nodes.
        room: workers that fit on the cluster without some nodes.
        needed: workers that there must be room for.
    """
    broken = [finding.node for finding in errors(findings)]
    slow = [found.node for found in findings if found.level == "warning" and found.check in _SLOWS_ALL_DOWN]
    left_out: list[str] = []
    for node in dict.fromkeys([*broken, *slow]):
        if node in names and room([*left_out, node]) >= needed:
            left_out.append(node)
    return Verdict(tuple(left_out), tuple(found for found in errors(findings) if found.node not in left_out))
