"""What Slurm says of a job, in foldtrain's words; a Slurm that does not answer is no job that is lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.targets import slurm_commands as slurm
from cluster.targets.target import TargetState
from data_pipeline.errors import FoldtrainError, UsageError


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for commands that stand for Slurm's, whose answers no Slurm here can be brought to give."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def answer(folder: Path, name: str, printed: str = "", *, error: str = "", code: int = 0) -> None:
    (folder / f"{name}.out").write_text(printed)
    (folder / f"{name}.err").write_text(error)
    path = folder / name
    path.write_text(f'#!/bin/sh\ncat "{path}.out"; cat "{path}.err" >&2; env > "{path}.env"; exit {code}\n')
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("PENDING|0|0|0:0|0|Resources|(null)|", TargetState("pending", "pending (Resources)")),
        ("PENDING|1700|0|0:0|1|BeginTime|told to end|",
         TargetState("pending", "pending (BeginTime) started 2 times: told to end")),
        ("RUNNING|1700|9900|0:0|0|None|(null)|", TargetState("running", "running", 1700.0)),
        ("COMPLETING|1700|1800|0:0|0|None|(null)|", TargetState("running", "completing", 1700.0)),
        ("COMPLETED|1700|1800|0:0|0|None|(null)|", TargetState("succeeded", "completed", 1700.0, 1800.0)),
        ("CANCELLED|1700|1800|0:15|0|None|(null)|", TargetState("stopped", "cancelled", 1700.0, 1800.0)),
        ("FAILED|1700|1800|1:0|0|NonZeroExitCode|a \\x1b|b|",
         TargetState("failed", "failed (NonZeroExitCode) exit code 1: a \\x1b|b", 1700.0, 1800.0)),
        ("TIMEOUT|1700|1800|0:15|0|TimeLimit|(null)|",
         TargetState("failed", "timeout (TimeLimit) exit code 0", 1700.0, 1800.0)),
        ("NODE_FAIL|1700|1800|0:0|0|None|(null)|", TargetState("failed", "node_fail exit code 0", 1700.0, 1800.0)),
        ("REVOKED|1700|1800|0:0|0|None|(null)|", TargetState("lost", "revoked", 1700.0, 1800.0)),
    ],
)  # fmt: skip
def test_a_state_of_slurm_is_one_of_a_target(commands: Path, row: str, expected: TargetState) -> None:
    answer(commands, "squeue", row + "\n")
    assert slurm.state_of("17") == expected


def test_a_job_that_only_the_accounting_remembers_has_ended_as_it_says(commands: Path) -> None:
    answer(commands, "squeue", error="slurm_load_jobs error: Invalid job id specified", code=1)
    answer(commands, "sacct", "CANCELLED by 1000|1700|1800|0:15|None\n")
    assert slurm.state_of("17") == TargetState("stopped", "cancelled", 1700.0, 1800.0)


@pytest.mark.parametrize(("printed", "code"), [("", 0), ("", 1)])
def test_a_job_that_nobody_remembers_is_lost(commands: Path, printed: str, code: int) -> None:
    answer(commands, "squeue", error="slurm_load_jobs error: Invalid job id specified", code=1)
    answer(commands, "sacct", printed, error="Slurm accounting storage is disabled", code=code)
    assert slurm.state_of("17").status == "lost"


def test_a_controller_that_does_not_answer_is_an_error_and_no_lost_job(commands: Path) -> None:
    answer(commands, "squeue", error="slurm_load_jobs error: Unable to contact slurm controller", code=1)
    with pytest.raises(FoldtrainError, match=r"squeue refused: .*Unable to contact"):
        slurm.state_of("17")


def test_a_job_of_one_of_several_clusters_is_asked_for_there(commands: Path) -> None:
    assert slurm.of_job("squeue", "17_3;west", "--noheader") == ["squeue", "--clusters=west", "--noheader", "17_3"]


@pytest.mark.parametrize("handle", ["", "0", "17; rm", "17;a b", "--uid=0", "17\n18", "raysubmit_x"])
def test_what_is_no_number_of_a_job_never_reaches_a_command(handle: str) -> None:
    with pytest.raises(UsageError, match="is no job of Slurm"):
        slurm.state_of(handle)


def test_a_machine_without_slurm_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="there is no squeue here"):
        slurm.state_of("17")


def test_options_from_variables_and_an_allocation_around_us_do_not_reach_sbatch(
    commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "other")
    monkeypatch.setenv("SLURM_JOB_ID", "4")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    answer(commands, "sbatch", "18\n")
    slurm.run(["sbatch", "--parsable"], script="#!/bin/sh\n")
    seen = (commands / "sbatch.env").read_text().splitlines()
    assert not [line for line in seen if line.startswith(("SBATCH_PARTITION", "SLURM_JOB_ID"))]
    assert "SLURM_CONF=/etc/slurm.conf" in seen
    assert slurm.left_out(os.environ) == ["SBATCH_PARTITION"]
