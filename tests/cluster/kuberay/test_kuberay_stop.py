"""What a head's pod does before it ends: real processes are told, and waited for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cluster.targets import kuberay_stop

POLITE = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("left", flush=True)))
print("up", flush=True)
signal.pause()
"""
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a module of an unlikely name stands for a job's own process: other tests run real ones beside this."""
    monkeypatch.setattr(kuberay_stop, "JOB_MODULE", f"job_{tmp_path.name}".replace("-", "_"))
    return tmp_path


def _start(package: Path, text: str) -> subprocess.Popen[str]:
    Path(package, f"{kuberay_stop.JOB_MODULE}.py").write_text(text)
    command = [sys.executable, "-m", kuberay_stop.JOB_MODULE, "s3://bucket/run", "job-1"]
    started = subprocess.Popen(command, cwd=package, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    assert started.stdout.readline() == "up\n"
    return started


def test_a_job_is_told_to_end_and_waited_for(package: Path) -> None:
    with _start(package, POLITE) as process:
        assert kuberay_stop.stop_jobs(30) == 0
        assert process.stdout is not None
        assert process.stdout.read() == "left\n"


CHILD = """
import signal, subprocess, sys
if len(sys.argv) > 3:
    signal.signal(signal.SIGTERM, lambda *_: print("child was told", flush=True))
    print("up", flush=True)
    sys.stdin.read()
else:
    child = subprocess.Popen([sys.executable, "-m", __spec__.name, *sys.argv[1:], "child"], stdin=subprocess.PIPE)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(child.communicate()[0]))
    signal.pause()
"""


def test_only_the_first_process_of_a_job_is_told(package: Path) -> None:
    with _start(package, CHILD) as process:
        assert kuberay_stop.stop_jobs(30) == 0
        assert process.stdout is not None
        assert process.stdout.read() == ""


def test_one_that_does_not_end_is_given_up_after_the_grace(package: Path) -> None:
    with _start(package, DEAF) as process:
        assert kuberay_stop.main(["0.2"]) == 1
        assert process.poll() is None
        process.kill()


def test_other_processes_are_left_alone(package: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", f"input(); # -m {kuberay_stop.JOB_MODULE}"], stdin=-1) as process:
        assert kuberay_stop.main(["1"]) == 0
        assert process.poll() is None
        process.kill()


def test_it_stops_what_targets_start() -> None:
    assert kuberay_stop.JOB_MODULE == "cluster.job_process"
