"""One screen that says what happened to a job, why, what it did by itself, and what to do."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.jobs.control import Stop
from cluster.jobs.records import Attempt, JobRecord, State, Submitted
from cluster.stages.describing import Step, describe
from cluster.targets.target import TargetState

NOW = 10_000.0
JOB = Submitted(
    id="run-0a1b2c",
    stages=("tokenize", "train-generator"),
    run="s3://b/my run",
    target="ours",
    target_config={"kind": "slurm"},
    submitted=100.0,
    who="me@here",
)


def told(
    state: State | None, asked: TargetState | None = None, step: Step | None = None, **more: Any
) -> dict[str, str]:
    record = JobRecord(JOB.id, JOB.run, JOB, "17", state, **more)
    parts = describe(record, step or Step(), asked, NOW)
    return {title: "\n".join(lines) for title, lines in parts}


def state(status: Any, **values: Any) -> State:
    fields: dict[str, Any] = {"status": status, "started": 400.0, "heartbeat": 9_990.0, "stage": "train-generator"}
    return State(**fields | {"node": "node-3", "pid": 7} | values)


def test_a_failure_has_its_step_its_cause_its_exit_code_and_a_command_that_goes_on() -> None:
    failed = state("failed", ended=4_000.0, exit_code=2, message="tokens are missing", last_lines=("error: tokens",))
    step = Step(step=1200, steps=5000, checkpoint=1000)
    said = told(failed, step=step)
    assert said["what happened"] == "it failed, after 1h 00m; start 1, on node-3 (pid 7); exit code 2"
    assert said["step"] == "train-generator, step 1200 of 5000; the newest checkpoint is that of step 1000"
    assert said["cause"] == "tokens are missing"
    assert (
        "foldtrain submit 's3://b/my run/jobs/run-0a1b2c/config.yaml' --stage tokenize,train-generator" in said["to do"]
    )
    assert "--target ours" in said["to do"]
    assert said["last lines"] == "error: tokens"


def test_stages_that_are_over_stand_in_their_order() -> None:
    found = told(state("running", done={"train-generator": "done", "tokenize": "finished"}))
    assert found["what happened"].splitlines()[1] == "stages: tokenize finished, train-generator done"


def test_what_a_job_did_by_itself_is_counted() -> None:
    events = [{"event": name, "step": at} for name, at in (("restart", 10), ("restart", 30), ("rollback", 20))]
    before = Attempt(status="preempted", started=1.0, told="SIGTERM", node="node-1", stage="tokenize")
    said = told(state("running", earlier=(before,), attempt=2), step=Step(events=events))
    assert said["by itself"].splitlines() == [
        "start 1 on node-1 preempted in tokenize: SIGTERM; went on",
        "went on from a checkpoint after a worker was lost or their number changed: 2 times, the last at step 30",
        "went back to an earlier checkpoint: once, the last at step 20",
    ]


def test_a_job_that_was_stopped_names_who_asked() -> None:
    said = told(state("stopped", ended=500.0, exit_code=0), stop=Stop(stop="checkpoint", asked=450.0, by="ann@desk"))
    assert said["cause"].startswith("ann@desk asked it to stop with a checkpoint")
    assert said["to do"].startswith("to go on from what is committed: foldtrain submit")


def test_a_preempted_job_needs_nothing_if_its_scheduler_starts_it_again_and_a_command_if_not() -> None:
    preempted = state("preempted", ended=500.0, told="SIGUSR1", exit_code=143)
    waits = told(preempted, TargetState("pending", "Resources"))
    assert waits["to do"].startswith("nothing: its scheduler starts it again")
    assert "its target says: pending; Resources" in waits["what happened"]
    assert "foldtrain submit" in told(preempted, TargetState("failed"))["to do"]
    assert "foldtrain submit" in told(preempted)["to do"]


def test_a_job_that_vanished_says_since_when_and_what_its_target_knows() -> None:
    silent = state("running", heartbeat=9_000.0)
    said = told(silent, TargetState("lost", "the local cluster has ended"))
    assert said["what happened"].startswith("it gave no sign of life for 16m 40s, after 2h 23m of work")
    assert "the local cluster has ended" in said["cause"]


def test_what_a_target_says_is_said_once() -> None:
    said = told(state("running"), TargetState("running", "running"))
    assert said["what happened"].endswith("its target says: running")


def test_a_job_that_waits_says_why() -> None:
    said = told(None, TargetState("pending", "QOSMaxGRESPerUser"))
    assert said["what happened"].startswith("it waits to be started")
    assert said["cause"] == "QOSMaxGRESPerUser"
    assert "step" not in said


@pytest.mark.parametrize(
    ("status", "does"), [("succeeded", "nothing"), ("running", "foldtrain logs -f run-0a1b2c, or foldtrain monitor")]
)
def test_a_job_that_is_well_needs_no_remedy(status: str, does: str) -> None:
    assert told(state(status))["to do"].startswith(does)
