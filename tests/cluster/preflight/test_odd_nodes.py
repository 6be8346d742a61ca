"""Three nodes with a network of their own each, one of which has a slow line, closed ports, or a clock that is ahead.

Real sockets and real gloo; the clock is that of Python on the node.
"""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.preflight.checks import clocks, links, ports
from cluster.preflight.checks.check import Check
from cluster.preflight.findings import Finding
from cluster.preflight.running import run_checks
from cluster.preflight.verdict import decide
from cluster.preflight.wanted import Wanted

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]
LINE = "net0"
MEGABIT = 80
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@dataclass(frozen=True)
class Network:
    """Namespaces on one bridge: one for each node."""

    tag: str

    def namespace(self, number: int) -> str:
        return f"{self.tag}n{number}"

    def outer(self, number: int) -> str:
        return f"{self.tag}v{number}"

    def address(self, number: int) -> str:
        return f"10.77.9.{number}"

    def make(self, nodes: int) -> None:
        ip("link", "add", f"{self.tag}b", "type", "bridge")
        ip("link", "set", f"{self.tag}b", "up")
        for number in range(1, nodes + 1):
            own = self.namespace(number)
            ip("netns", "add", own)
            ip("link", "add", self.outer(number), "type", "veth", "peer", "name", LINE, "netns", own)
            ip("link", "set", self.outer(number), "master", f"{self.tag}b", "up")
            ip("-n", own, "addr", "add", f"{self.address(number)}/24", "dev", LINE)
            ip("-n", own, "link", "set", "lo", "up")
            ip("-n", own, "link", "set", LINE, "up")

    def slow_down(self, number: int) -> None:
        """Both ways of a node's line."""
        rate = ("root", "tbf", "rate", f"{MEGABIT}mbit", "burst", "64kb", "latency", "50ms")
        subprocess.run(["tc", "qdisc", "add", "dev", self.outer(number), *rate], check=True, capture_output=True)
        inside = ["tc", "-n", self.namespace(number), "qdisc", "add", "dev", LINE, *rate]
        subprocess.run(inside, check=True, capture_output=True)

    def close_ports(self, number: int) -> None:
        """As a firewall does: whoever opens a connection to the node gets no answer."""
        command, variables = (
            ["ip", "netns", "exec", self.namespace(number), "nft", "-f", "-"],
            os.environ | {"PATH": PATH},
        )
        subprocess.run(command, env=variables, input=FIREWALL, text=True, check=True, capture_output=True)

    def remove(self, nodes: int) -> None:
        for number in range(1, nodes + 1):
            subprocess.run(["ip", "link", "del", self.outer(number)], capture_output=True)
            subprocess.run(["ip", "netns", "del", self.namespace(number)], capture_output=True)
        subprocess.run(["ip", "link", "del", f"{self.tag}b"], capture_output=True)


@contextmanager
def network(nodes: int, shape: Callable[[Network], None] = lambda _: None) -> Iterator[Network]:
    if os.geteuid() != 0 or any(shutil.which(name, path=PATH) is None for name in ("ip", "tc", "nft")):
        pytest.skip("network namespaces: needs root, ip, tc and nft (make ci-system)")
    made = Network(f"ft{os.getpid() % 100000}")
    try:
        try:
            made.make(nodes)
            shape(made)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces: this kernel or container has none that can be shaped: {error.stderr}")
        yield made
    finally:
        made.remove(nodes)


FIREWALL = """\
table inet closed {
    chain input {
        type filter hook input priority 0;
        iifname "net0" tcp flags & (syn | ack) == syn drop
    }
}
"""
LOOP = """
import os, pickle, sys, time
clock, ahead = time.time, float(os.environ["AHEAD"])
time.time = lambda: clock() + ahead
answers = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
while True:
    function, arguments = pickle.load(sys.stdin.buffer)
    try:
        answer = function(*arguments)
    except Exception as error:
        answer = failed(error)
    pickle.dump(answer, answers)
    answers.flush()
"""


class Namespaces:
    """Nodes that are a process in a network of its own each (`cluster.preflight.nodes.Nodes`)."""

    def __init__(self, lines: Network, *names: str, ahead: Mapping[str, float] | None = None) -> None:
        self.addresses = {name: lines.address(number) for number, name in enumerate(names, 1)}
        variables = os.environ | {"GLOO_SOCKET_IFNAME": LINE}  # the host's own name is of another network
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom cluster.preflight.nodes import failed\n{LOOP}"
        self._processes = {
            name: subprocess.Popen(
                ["ip", "netns", "exec", lines.namespace(number), sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=variables | {"AHEAD": str((ahead or {}).get(name, 0.0))},
            )
            for number, name in enumerate(names, 1)
        }

    def each(
        self, function: Callable[..., Any], arguments: Mapping[str, tuple[Any, ...]], seconds: float
    ) -> dict[str, Any]:
        for name, given in arguments.items():
            pipe = self._processes[name].stdin
            assert pipe is not None
            pickle.dump((function, given), pipe)
            pipe.flush()
        return {name: pickle.load(self._processes[name].stdout) for name in arguments}  # type: ignore[arg-type]

    def end(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()


def found_by(checks: Sequence[Check], nodes: Namespaces) -> list[Finding]:
    """What checks find on the nodes, which are ended then."""
    try:
        began = time.monotonic()
        findings = run_checks(nodes, Wanted(workers=3), checks=checks)
        print(f"found in {time.monotonic() - began:.1f} s")
        return findings
    finally:
        nodes.end()


def test_a_node_behind_a_firewall_is_named_with_the_ports_to_open() -> None:
    with network(3, lambda made: made.close_ports(2)) as lines:
        findings = found_by([ports.CHECK], Namespaces(lines, "a", "b", "c"))
    [found] = findings
    assert (found.node, found.check, found.level) == ("b", "ports", "error"), findings
    assert found.found.startswith(f"is reached by no other node (a: {lines.address(2)}:"), found
    assert "open its ports" in found.remedy
    assert "firewall" in found.remedy


@pytest.mark.parametrize(("ahead", "level", "way"), [(90.0, "error", "ahead of"), (-5.0, "warning", "behind")])
def test_a_node_whose_clock_is_off_is_named_with_how_to_set_it(ahead: float, level: str, way: str) -> None:
    with network(3) as lines:
        findings = found_by([clocks.CHECK], Namespaces(lines, "a", "b", "c", ahead={"c": ahead}))
    [found] = findings
    assert (found.node, found.check, found.level) == ("c", "clock", level), findings
    assert found.found.split(" s ")[1].startswith(f"{way} the others"), found
    assert float(found.found.split(" s ")[0]) == pytest.approx(abs(ahead), abs=1.0)
    assert "timedatectl set-ntp true" in found.remedy


def test_a_node_on_a_slow_line_is_named_with_what_to_look_at_and_left_out_where_there_is_a_spare_one() -> None:
    with network(3, lambda made: made.slow_down(3)) as lines:
        findings = found_by([ports.CHECK, links.CHECK], Namespaces(lines, "a", "b", "c"))
    assert len(findings) == 2, findings
    reached, found = findings
    assert (reached.check, reached.level) == ("ports", "ok"), reached
    assert (found.node, found.check, found.level) == ("c", "bandwidth", "warning"), findings
    assert int(found.found.split(" MB/s")[0]) <= MEGABIT / 8 * 1.5, "burst and all"
    assert "with the best of the others, which reach" in found.found
    assert "ethtool" in found.remedy
    assert decide(findings, ("a", "b", "c"), lambda without: 3 - len(without), needed=2).left_out == ("c",)
