"""Two nodes whose DNS gives no answer in time: a real resolver, which asks a server of this test."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SERVER = f"127.77.{os.getpid() // 250 % 250}.{os.getpid() % 250 + 1}"
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system: needs root")

NODES = """
import ctypes, os, sys
from dataclasses import replace
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x00020000) == 0 or os._exit(3)
assert libc.mount(b"none", b"/", None, 0x44000, None) == 0 or os._exit(3)
assert libc.mount(sys.argv[1].encode(), b"/etc/resolv.conf", None, 0x1000, None) == 0 or os._exit(3)
from cluster.preflight.checks import links, names
from cluster.preflight.findings import Finding
from cluster.preflight.running import run_checks
from cluster.preflight.wanted import Wanted
from tests.cluster.preflight.several import Several

nodes = Several("a", "b")
nodes.addresses = {"a": "127.0.77.1", "b": "127.0.77.2"}
names._LOOKUP_SECONDS, names.SLOW_SECONDS = 0.5, 0.2
well = [Finding("a and b", "bandwidth", "ok", "measured")]
pairs = replace(links.CHECK, measure=lambda *_: {}, judge=lambda *_: well)
for found in run_checks(nodes, Wanted(), checks=[names.CHECK, pairs]):
    print(found.level, found)
"""


@contextmanager
def server(pause: float | None) -> Iterator[None]:
    """A DNS server that knows no name, and says so after a pause; never, if that is None."""
    over, timers = threading.Event(), list[threading.Timer]()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.bind((SERVER, 53))
        opened.settimeout(0.1)

        def answer() -> None:
            while not over.is_set():
                try:
                    asked, peer = opened.recvfrom(2000)
                except TimeoutError:
                    continue
                refused = asked[:2] + b"\x81\x83" + asked[4:6] + b"\0" * 6 + asked[12:]
                if pause is not None:
                    timers.append(threading.Timer(pause, opened.sendto, (refused, peer)))
                    timers[-1].start()

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            for timer in timers:
                timer.join()


@pytest.fixture
def said(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """What the doctor says of nodes that ask a server which answers after so many seconds."""
    (tmp_path / "resolv.conf").write_text(f"nameserver {SERVER}\n")
    command = [sys.executable, "-c", NODES, str(tmp_path / "resolv.conf")]
    with server(request.param):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip("this container may not mount a file system")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("said", [None], indirect=True)
def test_a_dns_that_is_silent_is_named_and_no_pair_is_kept_waiting_by_it(said: list[str]) -> None:
    (line,) = said
    question = "no answer within 0.5 s to the question for the name of 127.0.77.1, the name of 127.0.77.2"
    assert line.startswith(f"warning all nodes: names: {question}")
    assert "/etc/hosts" in line


@pytest.mark.parametrize("said", [0.3], indirect=True)
def test_a_dns_that_is_slow_is_named_with_its_seconds(said: list[str]) -> None:
    assert all(line.startswith("warning") and "names: 0.3 s to look up" in line for line in said), said


@pytest.mark.parametrize("said", [0.0], indirect=True)
def test_a_dns_that_answers_at_once_is_well_whatever_it_says(said: list[str]) -> None:
    names, pairs = said
    assert names.startswith("ok all nodes: names: looked up within")
    assert pairs == "ok a and b: bandwidth: measured"
