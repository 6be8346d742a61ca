"""What `foldtrain verify` reports: a line for each check, and below it what is wrong, as far as it is listed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

MOST_PROBLEMS = 1000
"""Of a check that are listed; of the others there is the number."""


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    passed: bool
    summary: str
    """What was found, if it passed; what was looked at, if not."""
    problems: tuple[str, ...] = ()
    """What is wrong, with shard and key."""


@dataclass(frozen=True)
class Report:
    """All that was found out about a data set."""

    uri: str
    kind: str
    fingerprint: str
    samples: int
    shards: int
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """As a record."""
        return asdict(self) | {"passed": self.passed}


class Problems:
    """What is wrong, by check: the first of each, and how many more there are."""

    def __init__(self) -> None:
        self._listed: dict[str, list[str]] = {}
        self._more: dict[str, int] = {}

    def add(self, check: str, problems: Iterable[str], more: int = 0) -> None:
        """Note some problems, and so many more of which nothing is known but their number."""
        listed = self._listed.setdefault(check, [])
        for problem in problems:
            if len(listed) < MOST_PROBLEMS:
                listed.append(problem)
            else:
                more += 1
        self._more[check] = self._more.get(check, 0) + more

    def check(self, name: str, summary: str) -> Check:
        """The line of a check."""
        listed, more = self._listed.get(name, []), self._more.get(name, 0)
        found = (*listed, *([f"and {more:,} more of this kind"] if more else []))
        return Check(name, not found, summary, found)
