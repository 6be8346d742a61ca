"""The doctor on three nodes with a network of their own each, one of which hangs on a slow line."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.drills.ray_nodes import RayNode
from cluster.session.ray_folder import make_folder
from tests.cluster.conftest import SMALL

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("doctor")]
LINE, BRIDGE = "net0", "10.77.9.254"
MEGABIT = 80
PORT = 6390
"""Of the head, in a network of its own."""


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
        ip("addr", "add", f"{BRIDGE}/24", "dev", f"{self.tag}b")
        ip("link", "set", f"{self.tag}b", "up")
        for number in range(1, nodes + 1):
            own = self.namespace(number)
            ip("netns", "add", own)
            ip("link", "add", self.outer(number), "type", "veth", "peer", "name", LINE, "netns", own)
            ip("link", "set", self.outer(number), "master", f"{self.tag}b", "up")
            ip("-n", own, "addr", "add", f"{self.address(number)}/24", "dev", LINE)
            ip("-n", own, "link", "set", "lo", "up")
            ip("-n", own, "link", "set", LINE, "up")
            ip("-n", own, "route", "add", "default", "via", BRIDGE)

    def slow_down(self, number: int) -> None:
        """Both ways of a node's line."""
        rate = ("root", "tbf", "rate", f"{MEGABIT}mbit", "burst", "64kb", "latency", "50ms")
        subprocess.run(["tc", "qdisc", "add", "dev", self.outer(number), *rate], check=True, capture_output=True)
        inside = ["tc", "-n", self.namespace(number), "qdisc", "add", "dev", LINE, *rate]
        subprocess.run(inside, check=True, capture_output=True)

    def remove(self, nodes: int) -> None:
        for number in range(1, nodes + 1):
            subprocess.run(["ip", "link", "del", self.outer(number)], capture_output=True)
            subprocess.run(["ip", "netns", "del", self.namespace(number)], capture_output=True)
        subprocess.run(["ip", "link", "del", f"{self.tag}b"], capture_output=True)


@contextmanager
def network(nodes: int) -> Iterator[Network]:
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("tc") is None:
        pytest.skip("network namespaces: needs root, ip and tc")
    made = Network(f"ft{os.getpid() % 100000}")
    try:
        try:
            made.make(nodes)
            made.slow_down(nodes)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces: this kernel or container has none that can be shaped: {error.stderr}")
        yield made
    finally:
        made.remove(nodes)


def test_a_node_on_a_slow_line_is_named_with_its_bandwidth_and_what_to_look_at(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    with network(3) as lines, ExitStack() as held:
        folder = make_folder()
        held.callback(shutil.rmtree, folder, ignore_errors=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_ADDRESS")} | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_raylet_start_wait_time_s": "60",  # of a busy machine
            "GLOO_SOCKET_IFNAME": LINE,  # the host's own name is of another network
        }

        def inside(number: int, *command: str) -> list[str]:
            return ["ip", "netns", "exec", lines.namespace(number), sys.executable, "-m", *command]

        for number in (1, 2, 3):
            place = ["--head", f"--port={PORT}"] if number == 1 else [f"--address={lines.address(1)}:{PORT}"]
            command = inside(
                number,
                *("ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *place, "--num-cpus=1"),
                *(f"--node-ip-address={lines.address(number)}", f"--temp-dir={folder}/{number}"),
                *("--object-store-memory=80000000", "--min-worker-port=0", "--max-worker-port=0"),
                *(["--include-dashboard=false"] if number == 1 else []),
            )
            log = tmp_path / f"node-{number}.log"
            with log.open("wb") as output:
                process = subprocess.Popen(
                    command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
                )
            node = RayNode(process, log)
            held.callback(node.lose)
            node.wait_until_up()
        done = subprocess.run(
            inside(1, "foldtrain", "doctor", "small.yaml", "--json", "found.json"),
            env=environment | {"RAY_ADDRESS": f"{lines.address(1)}:{PORT}"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert (tmp_path / "found.json").exists(), done.stdout + done.stderr
        record = json.loads((tmp_path / "found.json").read_text())
        slow = node.id
    (found,) = [each for each in record["findings"] if each["check"] == "bandwidth"]
    print(f"the doctor took {record['seconds']} s")
    assert found["level"] == "warning", done.stdout
    assert slow[:8] in found["node"]
    assert " and " not in found["node"], "it is the node, and not a pair"
    assert "with the best of the others, which reach" in found["found"]
    assert int(found["found"].split(" MB/s")[0]) <= MEGABIT / 8 * 1.3, "burst and all"
    assert "ethtool" in found["remedy"]
