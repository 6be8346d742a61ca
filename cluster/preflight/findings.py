"""What a check found on a node, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]
"""How bad it is: nothing to do, work is slow or at risk, work cannot be done."""

EVERY = "all nodes"
"""In place of a node's name: what holds for all of them, or for what they share."""

LEVELS: tuple[Level, ...] = ("error", "warning", "ok")
"""The worst first."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor."""

    node: str
    """Name of the node, or `EVERY`."""
    check: str
    """Name of the check (`cluster.preflight.checks.CHECKS`)."""
    level: Level
    found: str
    """What there is, with its figures."""
    remedy: str = ""
    """What to do; empty where nothing is wrong."""

    def __str__(self) -> str:
        """In a sentence."""
        return f"{self.node}: {self.check}: {self.found}" + (f". {self.remedy}" if self.remedy else "")


def errors(findings: Iterable[Finding]) -> list[Finding]:
    """Those that work cannot be done with."""
    return [finding for finding in findings if finding.level == "error"]


def by_level(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first; those of one level stay in their order."""
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))
