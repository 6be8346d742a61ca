"""`foldtrain monitor --web` as a command."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.monitor.web.serving import draw_token, serve
from data_pipeline.errors import UsageError
from tests.cluster.web.runs_to_watch import write_training

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("host", "control", "needed"),
    [
        ("127.0.0.1", False, False),
        ("localhost", False, False),
        ("127.0.0.1", True, True),
        ("0.0.0.0", False, True),
        ("head.cluster", False, True),
    ],
)
def test_a_token_is_needed_elsewhere_than_on_loopback_and_where_runs_can_be_changed(
    host: str, *, control: bool, needed: bool
) -> None:
    tokens = {draw_token(host, control=control) for _ in range(3)}
    assert tokens == {None} if not needed else len(tokens) == 3 and all(len(token or "") > 30 for token in tokens)


@pytest.mark.slow
def test_the_command_prints_an_address_with_its_token_and_ends_when_told(tmp_path: Path) -> None:
    write_training(str(tmp_path / "run"), "generator", count=2, steps=2)
    command = [sys.executable, "-P", "-m", "cluster.cli", "monitor", str(tmp_path / "run"), "--web", "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True, "cwd": tmp_path, "env": environment}
    with subprocess.Popen([*command, "--control"], **pipes) as process:
        assert process.stdout is not None
        try:
            said = process.stdout.readline() + process.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:(\d+)(/\?token=\S+)", said)
            assert found, said
            assert [status(int(found[1]), path) for path in ("/", found[2])] == [403, 303]
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def status(port: int, path: str) -> int:
    asked = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        asked.request("GET", path)
        return asked.getresponse().status
    finally:
        asked.close()


def test_a_port_that_is_taken_and_a_run_that_is_not_there_are_said(tmp_path: Path) -> None:
    write_training(str(tmp_path / "run"), "generator", count=2, steps=2)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match="give another --port"):
        serve([str(tmp_path / "run")], host="127.0.0.1", port=taken.getsockname()[1])
    with pytest.raises(UsageError, match="there is no run"):
        serve([str(tmp_path / "nothing")], host="127.0.0.1", port=0)
