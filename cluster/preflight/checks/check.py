"""What a check is: it measures something on the nodes, and judges what it measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from cluster.preflight.findings import EVERY, Finding
from cluster.preflight.nodes import Nodes
from cluster.preflight.wanted import Wanted

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True)
class Check:
    """One check."""

    name: str
    measure: Callable[[Nodes, Wanted], Mapping[Any, Any]]
    """Facts by node, or by pair of nodes; a `Failure` (nodes.py) where there are none. That of a node is a finding by
    itself; that of a pair is judged."""
    judge: Callable[[Mapping[Any, Any], Wanted], list[Finding]]
    """What these facts mean: a pure function."""
    remedy: str
    """What to do where nothing could be measured."""
    fewest: int = 1
    """Nodes that it needs."""
    after: tuple[str, ...] = ()
    """Checks that a node must have passed, or this one would only wait for it."""
    unless: tuple[str, ...] = ()
    """Checks of which a warning about a node, too, keeps it out of this one; they say so."""
    again: bool = False
    """Whether what it finds has to be found twice: what else runs for a moment disturbs it."""
    applies: Callable[[Wanted], bool] = lambda _: True
    """Whether there is anything to check."""


def usual(values: Sequence[T]) -> T:
    """What most of them are; the first of those that are equally frequent."""
    return Counter(values).most_common(1)[0][0]


def or_all_well(findings: list[Finding], check: str, text: str) -> list[Finding]:
    """The findings, or one that says that nothing is wrong."""
    return findings or [Finding(EVERY, check, "ok", text)]


def listed(names: Sequence[str], most: int = 4) -> str:
    """Some names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
