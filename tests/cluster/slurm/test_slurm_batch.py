"""How an allocation ends: the job goes on in the next one, or fails and says why."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from cluster.targets import slurm_batch
from cluster.targets.slurm_batch import check_secrets, finish
from cluster.targets.slurm_config import Allocation, SlurmConfig
from cluster.targets.slurm_node import CLUSTER_LOST, NOTICED
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
