"""Under `--allowed-skips FILE` a skipped test that is not on the list fails the run, on one process and with xdist.

A line of the list has three columns, divided by |: how the test's id begins, what the reason that it gives holds, and
why that may be. Empty lines and those that begin with # are left out. Whole modules that are skipped count, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

NAME = "allowed-skips"


class Allowed(NamedTuple):
    """A line of the list."""

    test: str
    reason: str
    why: str

    def covers(self, test: str, reason: str) -> bool:
        """Whether a test may be skipped for a reason."""
        return test.startswith(self.test) and self.reason in reason


def read_list(path: Path) -> list[Allowed]:
    """The lines of a list.

    Raises:
        pytest.UsageError: if there is none, or a line has not three columns that say something.
    """
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        raise pytest.UsageError(f"--{NAME}: there is no {path}") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        columns = [column.strip() for column in line.split(" | ")]
        if len(columns) != 3 or not all(columns):
            raise pytest.UsageError(f"{path}:{number}: give the test, its reason and why that may be: a | b | c")
        found.append(Allowed(*columns))
    return found


class SkipCheck:
    """Collects what is skipped, and fails the run for what may not be; xdist tells its own process of all of it."""

    def __init__(self, allowed: list[Allowed]) -> None:
        self._allowed = allowed
        self._skipped: list[tuple[str, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test, on whatever process it ran."""
        if report.skipped and not hasattr(report, "wasxfail"):
            self._skipped.append((report.nodeid, _reason(report)))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A module, wherever it was collected."""
        if report.skipped:
            self._skipped.append((report.nodeid, _reason(report)))

    @property
    def _refused(self) -> list[str]:
        found = {f"{test}: {reason}" for test, reason in self._skipped if not self._may_be(test, reason)}
        return sorted(found)

    def _may_be(self, test: str, reason: str) -> bool:
        return any(line.covers(test, reason) for line in self._allowed)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Judge what was skipped."""
        if self._refused and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Name what may not be skipped."""
        if self._refused:
            terminalreporter.section("skipped, and not on the list of what may be", sep="=", red=True, bold=True)
            for line in self._refused:
                terminalreporter.write_line(line)


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Of a skip: its report holds file, line and reason."""
    return str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option."""
    parser.addoption(f"--{NAME}", type=Path, metavar="FILE", help="fail if a test is skipped that this list has not")


def pytest_configure(config: pytest.Config) -> None:
    """Check, if that is asked for."""
    path: Path | None = config.getoption(f"--{NAME}")
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(SkipCheck(read_list(config.rootpath / path)), "skip-check")
