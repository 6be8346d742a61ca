"""How an allocation ends: the job goes on in the next one, or fails and says why."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.targets import slurm_batch, slurm_commands
from cluster.targets.slurm_batch import Step, check_secrets, finish, run_join
from cluster.targets.slurm_config import Allocation, SlurmConfig
from cluster.targets.slurm_node import CLUSTER_LOST, NOTICED, PID_VARIABLE
from cluster.targets.target import TargetState
from data_pipeline.errors import FoldtrainError


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What scontrol is asked for, a line each; no Slurm ends this process when it requeues the job."""
    path = tmp_path / "asked"
    path.touch()
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {shlex.quote(str(path))}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    monkeypatch.setattr(slurm_batch, "_REQUEUED_SECONDS", 0.0)
    return path


def allocation(**fields: object) -> Allocation:
    return Allocation.of(SlurmConfig.model_validate(fields))


def test_a_job_that_succeeds_needs_nothing_more(asked: Path) -> None:
    assert finish(allocation(), 0, "done") == 0
    assert asked.read_text() == ""


def test_a_job_that_was_told_to_end_goes_on_in_the_next_allocation(asked: Path) -> None:
    finish(allocation(), NOTICED, "saved")
    assert asked.read_text().splitlines()[-1] == "requeue Incomplete 17"


def test_only_a_job_that_has_not_ended_is_requeued(asked: Path) -> None:
    """Without `Incomplete` a job that was cancelled meanwhile would begin anew."""
    finish(allocation(), NOTICED, "saved")
    assert "Incomplete" in asked.read_text()


def test_a_target_without_requeue_leaves_a_job_that_was_told_to_end(asked: Path) -> None:
    assert finish(allocation(requeue=False), NOTICED, "saved") == NOTICED
    assert "requeue" not in asked.read_text()


@pytest.mark.parametrize(("before", "goes_on"), [("", True), ("2", True), ("3", False)])
def test_a_cluster_that_breaks_down_is_tried_again_so_many_times(
    asked: Path, monkeypatch: pytest.MonkeyPatch, before: str, goes_on: bool
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", before)
    assert finish(allocation(restarts=3), CLUSTER_LOST, "Ray has ended") == CLUSTER_LOST
    assert ("requeue" in asked.read_text()) is goes_on
    assert "Ray has ended" in asked.read_text()


@pytest.mark.parametrize("code", [1, 2, 137])
def test_a_job_that_fails_leaves_its_last_words_and_is_not_tried_again(asked: Path, code: int) -> None:
    assert finish(allocation(), code, 'config.yaml: "lr" is\x1b[2J unknown') == code
    assert asked.read_text() == "update JobId=17 Comment=config.yaml: 'lr' is\\u001b[2J unknown\n"


def test_the_secrets_that_a_node_lacks_are_named() -> None:
    check_secrets(("A_KEY",), {"A_KEY": "x"})
    with pytest.raises(FoldtrainError, match="B_KEY, C_KEY: not set on"):
        check_secrets(("A_KEY", "B_KEY", "C_KEY"), {"A_KEY": "x", "C_KEY": ""})


_SRUN = f"""#!{sys.executable}
import os, pathlib, signal, sys, time
here = pathlib.Path(__file__).parent
(here / "up").touch()
while not (here / "listen").exists():
    time.sleep(0.01)
for number in (signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda number, _: sys.exit(100 + number))
file = pathlib.Path(os.environ["{PID_VARIABLE}"])
file.with_suffix(".new").write_text(str(os.getpid()))
file.with_suffix(".new").replace(file)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_notice_reaches_a_process_that_did_not_listen_when_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    srun = tmp_path / "srun"
    srun.write_text(_SRUN)
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    step = Step([], allocation(), nodes=1, first=0, log=tmp_path / "node.log")
    until(lambda: (tmp_path / "up").exists())
    step.send(number)
    (tmp_path / "listen").touch()
    until(lambda: step.code() is not None)
    assert step.code() == 100 + number


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline, "nothing has come of it"
        time.sleep(0.01)


@pytest.fixture
def handlers() -> Iterator[None]:
    numbers = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(("number", "joins_again"), [(signal.SIGUSR1, True), (signal.SIGUSR2, False)])
def test_a_node_that_is_told_to_end_before_it_has_joined_joins_again_unless_the_job_does_not_want_it(
    asked: Path, monkeypatch: pytest.MonkeyPatch, number: int, joins_again: bool
) -> None:
    running = TargetState("running", "running")
    monkeypatch.setattr(slurm_commands, "state_of", lambda _job: running)
    monkeypatch.setattr(slurm_batch, "_LOOK_AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(slurm_batch, "_head_of", lambda _job: signal.raise_signal(number))
    assert run_join(allocation(), "5") == (NOTICED if joins_again else 0)
    assert ("requeue Incomplete 17" in asked.read_text()) is joins_again


def test_a_node_that_was_told_to_leave_and_is_requeued_joins_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_NAME", "foldtrain-left-5")
    monkeypatch.setattr(slurm_commands, "state_of", lambda _job: pytest.fail("it asks for the job"))
    assert run_join(allocation(), "5") == 0


class Beside:
    """In place of the step of a node that has joined."""

    def __init__(self) -> None:
        self.ended = False

    def code(self) -> int | None:
        return 0 if self.ended else None

    def end(self) -> None:
        self.ended = True


@pytest.mark.parametrize(
    "later",
    [
        TargetState("pending", "pending (BeginTime)"),
        TargetState("succeeded", "completed", 100.0, 200.0),
        TargetState("running", "running started 2 times", started=180.0),
    ],
)
def test_a_node_leaves_a_job_that_ends_or_has_started_again(
    monkeypatch: pytest.MonkeyPatch, later: TargetState
) -> None:
    found = [TargetState("running", "running", started=100.0)] * 2 + [later]
    monkeypatch.setattr(slurm_commands, "state_of", lambda _job: found.pop(0))
    monkeypatch.setattr(slurm_batch, "_WATCH_SECONDS", -1.0)
    monkeypatch.setattr(slurm_batch, "_PAUSE_SECONDS", 0.0)
    step = Beside()
    assert slurm_batch._wait_beside(step, "5", since=100.0) == 0
    assert step.ended
    assert found == []
