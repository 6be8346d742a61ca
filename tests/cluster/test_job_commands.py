"""The words of jobs on the command line (submit, jobs, describe, logs, stop), over a target of plain processes."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cluster.cli import app
from cluster.jobs import records
from cluster.jobs.records import State, Submitted
from cluster.stages.job_plan import Forecast
from data_pipeline.errors import FoldtrainError, UsageError
from trainer.records.run_directory import append_event

Command = Callable[..., Result]


@pytest.fixture
def command(here_package: Path, small_config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Runs `foldtrain ARGUMENTS...` in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str, answer: str = "") -> Result:
        return CliRunner().invoke(app, list(arguments), input=answer, catch_exceptions=False)

    return run


@pytest.fixture
def submit(command: Command, here_package: Path, small_config: Path) -> Command:
    """Submits a stage whose product is given, to the target of the page."""
    given = ["data.source=null", "inputs.images=s3://b/images", "--target", str(here_package / "here.yaml")]

    def run(*options: str, answer: str = "") -> Result:
        return command("submit", str(small_config), *given, *options, answer=answer)

    return run


def id_in(result: Result) -> str:
    found = re.search(r"submitted ([\w-]+);", result.output)
    assert found is not None, result.output
    return found[1]


def asking(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a terminal."""
    import cluster.commands.jobs as jobs

    monkeypatch.setattr(jobs, "_can_ask", lambda: True)


def record(run: Path, **state: Any) -> str:
    """A job that somebody else submitted, on record."""
    job_id = "ingest-0a1b2c"
    target: dict[str, Any] = {"target": "t", "target_config": {"kind": "local"}}
    records.write_job(
        Submitted(id=job_id, stages=("ingest",), run=str(run), submitted=1.0, who="me@here", **target), "run: x\n"
    )
    if state:
        values: dict[str, Any] = {"started": 2.0, "heartbeat": 3.0}
        records.write_state(str(run), job_id, State(**values | state))
    return job_id


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_job_is_submitted_followed_listed_and_described_by_its_id_and_by_its_run(
    submit: Command, command: Command
) -> None:
    job_id = id_in(submit("--stage", "ingest", "--yes", "--follow"))
    for named in (job_id, "runs/small"):
        assert "ingest is not run: inputs.images names" in command("logs", named).output
        described = command("describe", named).output
        assert [
            words for words in (job_id, "it succeeded", "exit code 0", "ingest finished") if words not in described
        ] == []
    for arguments in (("jobs",), ("jobs", "runs/small")):
        assert re.search(rf"{job_id} +ingest .* here +succeeded", command(*arguments).output)
    assert command("stop", job_id).output == f"{job_id} succeeded\n"


def test_a_dry_run_prints_what_would_be_sent_and_writes_and_starts_nothing(submit: Command, tmp_path: Path) -> None:
    before = set(tmp_path.rglob("*"))
    printed = submit("--stage", "ingest", "--dry-run").output
    assert "# command\nnice -n 5 " in printed
    assert "-m cluster.job_process" in printed
    assert set(tmp_path.rglob("*")) == before


def test_on_a_terminal_the_plan_is_shown_and_a_no_submits_nothing(
    submit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking(monkeypatch)
    declined = submit("--stage", "ingest", answer="n\n")
    assert declined.exit_code == 1
    assert "given by inputs: is skipped" in declined.output
    assert "nothing is left to do" in declined.output
    assert not (tmp_path / "runs").exists()


def test_a_job_that_is_at_work_in_the_run_is_named_before_another_is_submitted(
    submit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking(monkeypatch)
    job_id = record(tmp_path / "runs/small", status="running", heartbeat=1e12)
    assert f"{job_id} of this run is running" in submit("--stage", "ingest", answer="n\n").output


def test_the_log_of_a_failed_job_that_is_followed_ends_with_an_error_and_its_reason(
    command: Command, tmp_path: Path
) -> None:
    job_id = record(tmp_path / "run", status="failed", message="no such folder\nmore")
    with pytest.raises(FoldtrainError, match=f"{job_id} failed: no such folder\nfoldtrain describe {job_id}"):
        command("logs", "-f", str(tmp_path / "run"))


def test_a_hostile_record_is_shown_as_text(command: Command, tmp_path: Path) -> None:
    record(tmp_path / "run", status="failed", message="[red]\x1b]0;title\x07", last_lines=("\x1b[2J<b>",))
    shown = command("describe", str(tmp_path / "run")).output
    assert "[red]\\u001b]0;title\\u0007" in shown
    assert "\\u001b[2J<b>" in shown
    assert "\x1b" not in command("jobs", str(tmp_path / "run")).output


@pytest.mark.parametrize("word", ["logs", "stop"])
def test_what_names_no_job_is_an_error_of_usage(command: Command, tmp_path: Path, word: str) -> None:
    with pytest.raises(UsageError, match="no job ingest-000000 was submitted on this machine"):
        command(word, "ingest-000000")
    with pytest.raises(UsageError, match="has no jobs: nothing was submitted there"):
        command(word, str(tmp_path))
    with pytest.raises(UsageError, match="is no id of a job"):
        command(word, str(tmp_path), "--job", "../x")


def test_a_job_that_never_began_is_stopped_by_its_record_alone(command: Command, tmp_path: Path) -> None:
    job_id = record(tmp_path / "run")
    assert command("stop", str(tmp_path / "run")).output == f"{job_id} stopped\n"
    control = json.loads((tmp_path / "run/jobs" / job_id / "control.json").read_text())
    assert control["stop"] == "checkpoint"


def test_jobs_whose_runs_are_gone_are_not_listed(command: Command, submit: Command, tmp_path: Path) -> None:
    assert command("jobs").output == "no jobs\n"
    from cluster.jobs import places

    places.remember(str(tmp_path / "gone"), "ingest-0a1b2c")
    assert command("jobs").output == "no jobs\n"


def test_the_time_is_worked_out_for_a_person_alone(submit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster.jobs import submitting
    from cluster.stages import job_plan

    asked: list[str] = []
    monkeypatch.setattr(job_plan, "forecast", lambda _config, stage, _section: asked.append(stage) or Forecast())
    monkeypatch.setattr(submitting, "start", lambda *_: "")
    assert submit("--stage", "train-tokenizer").exit_code == 0
    asking(monkeypatch)
    assert submit("--stage", "train-tokenizer", "-y").exit_code == 0
    assert asked == []
    assert submit("--stage", "train-tokenizer", answer="y\n").exit_code == 0
    assert asked == ["train-tokenizer"]


def test_a_run_without_jobs_is_described_by_what_its_training_recorded(command: Command, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    with pytest.raises(UsageError, match="has no jobs and no training"):
        command("describe", run)
    append_event(f"{run}/generator", "start", 0)
    append_event(f"{run}/generator", "checkpoint", 40)
    append_event(f"{run}/generator", "rollback", 20)
    append_event(f"{run}/generator", "failure", 50, error="FoldtrainError: the disk is full")
    said = command("describe", run).output
    assert "train-generator failed, " in said
    assert "50; the newest checkpoint is that of step 40" in said
    assert "FoldtrainError: the disk is full" in said
    assert "went back to an earlier checkpoint: once, the last at step 20" in said
    assert f"foldtrain train-generator {run}/generator/config.yaml goes on" in said


def test_nobody_is_asked_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    import cluster.commands.jobs as jobs

    for stream in (None, SimpleNamespace(isatty=lambda: False)):
        monkeypatch.setattr(sys, "stdin", stream)
        assert not jobs._can_ask()
