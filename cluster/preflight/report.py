"""Findings as a table, and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cluster.preflight.findings import Finding, by_level
from data_pipeline.text.counted import counted

if TYPE_CHECKING:
    from rich.table import Table

_STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


def table(findings: Iterable[Finding]) -> Table:
    """One line each, the worst first."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    made = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    made.add_column("node", overflow="fold", min_width=8)
    made.add_column("check", no_wrap=True)
    made.add_column("", no_wrap=True)
    made.add_column("found, and what to do", overflow="fold", min_width=24)
    for found in by_level(findings):
        level = Text(found.level, style=_STYLES[found.level])
        remedy = Text(f"\n{found.remedy}" if found.remedy else "", style="bold")
        made.add_row(Text(found.node), Text(found.check), level, Text(found.found) + remedy)
    return made


def summary(findings: Sequence[Finding], nodes: int, seconds: float) -> str:
    """In a line."""
    counts = Counter(found.level for found in findings)
    checks = len({found.check for found in findings})
    wrong = [counted(counts[level], level) for level in ("error", "warning") if counts[level]]
    where = f"{counted(checks, 'check')} on {counted(nodes, 'node')}"
    return f"{where} in {seconds:.1f} s: {' and '.join(wrong) or 'nothing wrong'}"


def record(findings: Sequence[Finding], nodes: Iterable[str], seconds: float) -> dict[str, Any]:
    """All of it as plain data."""
    return {
        "nodes": list(nodes),
        "seconds": round(seconds, 2),
        "findings": [asdict(found) for found in by_level(findings)],
    }
