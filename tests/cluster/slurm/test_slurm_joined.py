"""Which nodes count as a job's, by what Slurm's queue says."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from cluster.targets import slurm_commands
from cluster.targets.slurm import SlurmTarget
from cluster.targets.slurm_config import SlurmConfig
from cluster.targets.target import TargetState

Asked = list[Sequence[str]]


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Callable[[TargetState, str], Asked]:
    """Have Slurm say how a job stands, and what joins it. Returns what it is asked to do."""

    def say(state: TargetState, rows: str) -> Asked:
        asked: Asked = []

        def run(command: Sequence[str], **_: object) -> str:
            if command[0] == "squeue":
                return rows
            asked.append(command)
            return ""

        monkeypatch.setattr(slurm_commands, "state_of", lambda _handle: state)
        monkeypatch.setattr(slurm_commands, "run", run)
        return asked

    return say


TARGET = SlurmTarget("team", SlurmConfig.model_validate({"nodes": "1:4"}))
STARTED_AGAIN = TargetState("running", "running started 2 times", started=2000.0)
ROWS = "3_0|RUNNING|1500\n3_1|PENDING|N/A\n9_0|RUNNING|2000\n9_1|COMPLETING|2100\n"


def test_nodes_that_joined_an_earlier_start_of_a_requeued_job_do_not_count(
    queue: Callable[[TargetState, str], Asked],
) -> None:
    queue(STARTED_AGAIN, ROWS)
    assert TARGET.nodes("2") == 3  # its own, one that waits, and one that came later


def test_those_that_wait_leave_first_and_none_of_an_earlier_start_is_told_to(
    queue: Callable[[TargetState, str], Asked],
) -> None:
    asked = queue(STARTED_AGAIN, ROWS)
    assert TARGET.remove_nodes("2", 2) == ["3_1", "9_0"]
    assert asked == [
        ["scancel", "3_1"],
        ["scontrol", "update", "JobId=9_0", "JobName=foldtrain-left-2"],  # it does not count from now on
        ["scancel", "--batch", "--signal=USR2", "9_0"],
    ]


def test_a_job_that_is_cancelled_takes_all_with_it(queue: Callable[[TargetState, str], Asked]) -> None:
    asked = queue(STARTED_AGAIN, ROWS)
    TARGET.cancel("2")
    assert sorted(command[-1] for command in asked) == ["2", "3_0", "3_1", "9_0"]


def test_a_job_that_waits_has_its_own_nodes_and_those_that_wait(queue: Callable[[TargetState, str], Asked]) -> None:
    queue(TargetState("pending", "pending (BeginTime)"), ROWS)
    assert TARGET.nodes("2") == 2
