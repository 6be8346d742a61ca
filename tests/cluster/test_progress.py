"""What is shown of a training stage until its first step."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, cast

import pytest

from cluster.progress.training_progress import Follower, ProgressLine, _say_environment, has_ended
from trainer.job import TrainJob


class FakeJob:
    """As much of a job as is shown."""

    stage = "generator"

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def record(self, event: str, at: float | None = None, **details: Any) -> None:
        line = {"time": time.time() if at is None else at, "event": event, "step": 0} | details
        with Path(self.folder, "events.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


class FakeRun:
    """A run whose workers come up when they are told to."""

    up = False

    def news(self) -> list[str]:
        return []

    def has_workers(self) -> bool:
        return self.up


@pytest.fixture
def job(tmp_path: Path) -> FakeJob:
    facts = {"workers": 2, "device": "cpu", "backend": "gloo", "attention": "sdpa"}
    (tmp_path / "environment.json").write_text(json.dumps(facts))
    return FakeJob(tmp_path)


def follower(job: FakeJob, asked: float | None = None) -> Follower:
    return Follower(cast("TrainJob", job), time.time() if asked is None else asked)


def test_what_a_start_waits_for_is_shown_once_each_with_the_time_that_has_passed(
    job: FakeJob, capsys: pytest.CaptureFixture[str]
) -> None:
    job.record("stop", at=time.time() - 3600)  # of an earlier command
    shown, run = follower(job, asked=time.time() - 65), FakeRun()
    shown.look()
    with shown.telling(run):
        shown.look()
        shown.look()
        run.up = True
        shown.look()
        job.record("start")
        shown.look()
        job.record("first_step", seconds=71.2)
        shown.look()
        shown.look()
    lines = [line for line in capsys.readouterr().out.splitlines() if "workers on cpu" not in line]
    assert lines == [
        "generator: starting Ray (1m 05s since the start)",
        "generator: starting workers (1m 05s since the start)",
        "generator: loading torch, the network and the newest checkpoint (1m 05s since the start)",
        "generator: waiting for the first step (1m 05s since the start)",
        "generator: first step 1m 11s after the start",
    ]


def test_a_start_says_how_its_data_is_read(job: FakeJob, capsys: pytest.CaptureFixture[str]) -> None:
    known = {"workers": 2, "device": "cpu", "backend": "gloo", "attention": "sdpa"}
    _say_environment(known | {"data": "data is read by windows of 2 shards of 7"}, ProgressLine("generator", "steps"))
    assert "generator: data is read by windows of 2 shards of 7" in capsys.readouterr().out.splitlines()


def test_a_stage_that_ended_before_its_first_step_waits_for_none(
    job: FakeJob, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = follower(job)
    job.record("failure")
    shown.look()
    assert "waiting" not in capsys.readouterr().out


def test_after_the_end_a_run_is_asked_for_nothing(job: FakeJob) -> None:
    shown, run = follower(job), FakeRun()
    with shown.telling(run):
        pass
    run.news = run.has_workers = None  # type: ignore[assignment, method-assign]
    shown.look()


@pytest.mark.parametrize(
    ("events", "ended"),
    [
        ([], True),  # there is nobody to wait for
        (["settings_changed"], True),
        (["start"], False),
        (["resume", "checkpoint"], False),
        (["start", "stop"], True),
        (["start", "stop", "resume"], False),  # paused, to go on with others
        (["start", "failure", "resume", "stop"], True),
        (["start", "finish"], True),
        (["resume", "failure"], True),
    ],
)
def test_workers_have_ended_when_they_recorded_it_or_have_not_begun(
    job: FakeJob, events: list[str], ended: bool
) -> None:
    job.record("start", at=50.0)  # of an earlier command
    for event in events:
        job.record(event, at=100.0)
    assert has_ended(cast("TrainJob", job), 99.0) is ended
