"""What `make test-fast` leaves out, and what the tests that it has cost. The one place that says so.

The fast set is to take 3 minutes on two cores: at most 300 seconds of CPU in all, since some tests wait, of which each
process needs some 10 to collect the tests. A test is left out, with the mark `slow`, if it

1. starts Ray, a server or a cluster, or kills processes: SLOW_GROUPS and the fixture `s3` give these their mark;
2. costs more than 1 second of CPU, with the processes that it starts: the mark stands at the test. Of a family of
   tests that each show the same on another network, stage or config, one stays in the fast set, the others are slow.

Properties are tried on 15 examples instead of 50 (tests/conftest.py).

`make test` has them all. `make test-fast` ends with the tests that cost more than `--dear` says, and what all cost:
they are to become cheaper, or slow. It fails for none of them, since CPU seconds, too, depend on the machine.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Generator
from multiprocessing import forkserver
from typing import Any

import psutil
import pytest

SLOW_GROUPS = {"s3", "ray", "slurm", "drill", "data_drill", "train_drill", "elastic", "notices"}
"""Groups of tests (`xdist_group`) that share the S3 server or a Ray, or kill what one has started."""
COST, TOTAL = "cpu", "cpu_seconds"
"""Names of a test's cost in its report, and of a process' in what it leaves to that of xdist."""


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need the S3 server, start Ray or kill processes."""
    for item in items:
        groups = {mark.args[0] for mark in item.iter_markers("xdist_group") if mark.args}
        if item.get_closest_marker("drill") or groups & SLOW_GROUPS or "s3" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")


def cpu_seconds() -> float:
    """CPU that this process has used, and those of its children that have ended; of gloo processes, too."""
    own, ended = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime + _forked_seconds()


def _forked_seconds() -> float:
    """Of what multiprocessing's server has forked, without its own imports, which come once."""
    server: int | None = getattr(forkserver._forkserver, "_forkserver_pid", None)  # type: ignore[attr-defined]
    if server is None or not psutil.pid_exists(server):
        return 0.0
    times = psutil.Process(server).cpu_times()
    return float(getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0))


class Costs:
    """On each process: measures its tests. On that which reports: lists them at the end."""

    def __init__(self, dear: float) -> None:
        self._dear = dear
        self._began = 0.0, 0
        self._dear_tests: list[tuple[float, int, str]] = []
        self._tests = 0.0
        self._processes = 0.0

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self) -> Generator[None, object, object]:
        """Begin to measure a test."""
        self._began = cpu_seconds(), len(sys.modules)
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Put its cost into the report of its end."""
        if call.when == "teardown":
            cost, modules = cpu_seconds() - self._began[0], len(sys.modules) - self._began[1]
            item.user_properties.append((COST, (round(cost, 2), modules)))
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test has ended, on whatever process."""
        if report.when != "teardown":
            return
        cost, modules = next((value for name, value in report.user_properties if name == COST), (0.0, 0))
        self._tests += cost
        if cost > self._dear:
            self._dear_tests.append((cost, modules, report.nodeid))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Tell the process that reports what this one has used."""
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput[TOTAL] = cpu_seconds()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A process of xdist has ended."""
        self._processes += getattr(node, "workeroutput", {}).get(TOTAL, 0.0)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """List what is dear, and sum up."""
        terminalreporter.section(
            f"tests of more than {self._dear:g} s of CPU: make them cheaper, or slow (tests/fast_set.py)"
        )
        for cost, modules, name in sorted(self._dear_tests, reverse=True):
            imports = f" (it imported {modules} modules)" if modules > 50 else ""
            terminalreporter.write_line(f"{cost:6.1f} s  {name}{imports}")
        # What ran on processes of xdist is among the ended children of this one, too.
        whole = self._processes + time.process_time() if self._processes else cpu_seconds()
        terminalreporter.write_line(f"{self._tests:.0f} s of CPU in tests, {whole:.0f} s in all processes")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option."""
    parser.addoption("--dear", type=float, metavar="SECONDS", help="list the tests that cost more CPU than this")


def pytest_configure(config: pytest.Config) -> None:
    """Measure, if that is asked for; xdist hands options on to its processes."""
    dear: float | None = config.getoption("--dear")
    if dear is not None:
        config.pluginmanager.register(Costs(dear), "test-costs")
