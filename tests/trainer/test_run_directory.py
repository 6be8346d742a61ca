"""What a stage has on record once a checkpoint is complete: as much as the checkpoint holds."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline import storage
from tests.trainer.gloo import run_gloo
from tests.trainer.test_loop import CountingStage, job
from trainer.checkpoints.catalog import is_complete
from trainer.job import TrainJob
from trainer.loop.compose import build_loop
from trainer.loop.journal import Journal
from trainer.records.jsonl import JsonlWriter, read_records
from trainer.records.run_directory import RunDirectory


@pytest.mark.xdist_group("s3")
def test_what_is_kept_is_in_the_bucket_before_the_writers_would_put_it_there(
    s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JsonlWriter.__init__, "__defaults__", (3600.0, lambda: None))
    records = RunDirectory(s3_uri, "generator", {}, 0)
    records.metrics({"step": 1, "loss": 0.5})
    assert records.keep(60)
    assert [record["step"] for record in read_records(f"{s3_uri}/metrics.jsonl")] == [1]
    assert [record["event"] for record in read_records(f"{s3_uri}/events.jsonl")] == ["start"]
    records.close()


def stored_at_each_checkpoint(environment: dict[str, str], each: TrainJob) -> list[tuple[int, list[int]]]:
    """Steps of the checkpoints, and of the records that storage held when each was complete."""
    os.environ.update(environment)  # processes are forked from a server that may be older than the S3 server
    JsonlWriter.__init__.__defaults__ = (3600.0, lambda: None)  # longer than this run takes
    found = []

    record_event = Journal.event

    def watched(journal: Journal, event: str, step: int, **details: Any) -> None:
        if event == "checkpoint":
            assert is_complete(each.checkpoints, step)
            found.append((step, [record["step"] for record in read_records(f"{each.folder}/metrics.jsonl")]))
        record_event(journal, event, step, **details)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "event", watched)
        build_loop(each, CountingStage(None), torch.device("cpu")).run()
    return found


@pytest.mark.xdist_group("s3")
def test_the_records_of_all_steps_of_a_checkpoint_outlive_a_kill_as_it_does(tmp_path: Path, s3_uri: str) -> None:
    each = job(Path("run"))
    remote = TrainJob(**{**vars(each), "folder": storage.join(s3_uri, "teacher")})
    found = run_gloo(1, tmp_path, stored_at_each_checkpoint, dict(os.environ), remote)[0]
    assert [step for step, _ in found] == [4, 8, 10]
    for step, stored in found:
        assert stored[:step] == list(range(1, step + 1))


def test_lines_that_are_no_records_do_not_stop_a_restart_and_are_counted(tmp_path: Path) -> None:
    first = RunDirectory(str(tmp_path), "generator", {}, 0)
    first.metrics({"time": 1.0, "step": 1})
    first.close()
    bad = ["[" * 100_000, "null", '{"no": "step"}', '{"step": "x", "event": 7}']
    for name in ("metrics.jsonl", "events.jsonl"):
        with (tmp_path / name).open("a") as file:
            file.write("\n".join(bad) + "\n")
    again = RunDirectory(str(tmp_path), "generator", {}, 1)
    again.close()
    assert again.restarts == 1
    events = read_records(str(tmp_path / "events.jsonl"))
    told = [(event["file"], event["count"]) for event in events if event["event"] == "lines_left_out"]
    assert told == [("events.jsonl", 4), ("metrics.jsonl", 4)]
    assert [record["step"] for record in read_records(str(tmp_path / "metrics.jsonl"))] == [1]


def test_the_first_step_of_a_command_is_recorded_once_with_the_time_since_it_was_given(tmp_path: Path) -> None:
    given = time.time() - 100
    for began in (given, given, given + 3600):  # workers of the same command start again, then those of a later one
        records = RunDirectory(str(tmp_path), "generator", {}, 0, began=began)
        records.first_step(1)
        records.first_step(2)
        records.close()
    found = [event for event in read_records(str(tmp_path / "events.jsonl")) if event["event"] == "first_step"]
    assert [(event["step"], round(event["seconds"], -2)) for event in found] == [(1, 100), (1, -3500)]


def test_the_start_up_is_counted_from_when_the_command_was_given(tmp_path: Path) -> None:
    records = RunDirectory(str(tmp_path), "generator", {}, 0, began=time.time() - 100)
    records.first_step(1)
    records.close()
    (account,) = [event for event in read_records(str(tmp_path / "events.jsonl")) if event["event"] == "goodput"]
    assert account["shares"]["start_up"] * account["wall_seconds"] == pytest.approx(100, abs=5)
