"""A run is continued with the settings that it was begun with, or not at all."""

from __future__ import annotations

import queue
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import trainer.loop.worker
from data_pipeline import storage
from data_pipeline.config import ReadingConfig
from data_pipeline.errors import UsageError
from data_pipeline.shards import weights
from data_pipeline.storage import watchdog
from trainer.config import ClassifierStageConfig, TrainerConfig
from trainer.job import TrainJob
from trainer.records.jsonl import read_records


def job(
    folder: Path, seed: int = 0, images: str = "a" * 64, reading: dict[str, Any] | None = None, **trainer: Any
) -> TrainJob:
    config = TrainerConfig(**({"steps": 5, "global_batch": 4} | trainer))
    return TrainJob(
        stage="teacher",
        folder=str(folder),
        section=ClassifierStageConfig(trainer=config),
        seed=seed,
        fit="crop",
        reading=ReadingConfig(**(reading or {})),
        inputs={"images": "images"},
        lineage={"images": images},
        config={"run": "r"},
    )


def test_a_folder_that_is_empty_is_not_finished(tmp_path: Path) -> None:
    assert not job(tmp_path).is_finished()


def test_a_run_is_finished_once_its_network_is_exported(tmp_path: Path) -> None:
    job(tmp_path).begin()
    assert not job(tmp_path).is_finished()
    weights.write_weights(job(tmp_path).export, "teacher", {}, {"model": {"w": torch.zeros(1)}}, {})
    assert job(tmp_path).is_finished()


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"learning_rate": 0.5}, "section.trainer.learning_rate: 0.001 -> 0.5"),
        ({"seed": 3}, "seed: 0 -> 3"),
        ({"images": "b" * 64}, "lineage.images"),
        ({"reading": {"crop": "random"}}, "data.crop: center -> random"),
        ({"reading": {"shuffle_window": 4}}, "data.shuffle_window: None -> 4"),
    ],
)
def test_other_settings_are_refused_and_the_difference_is_shown(tmp_path: Path, other: Any, named: str) -> None:
    job(tmp_path).begin()
    with pytest.raises(UsageError) as error:
        job(tmp_path, **other).is_finished()
    assert named in str(error.value)


def test_settings_that_change_no_result_may_change(tmp_path: Path) -> None:
    job(tmp_path).begin()
    assert not job(tmp_path, checkpoint_every=7, log_every=3, zero_stage=1, micro_batch=2).is_finished()


def test_a_run_may_go_on_with_another_learning_rate_if_that_is_asked_for_and_it_is_on_record(tmp_path: Path) -> None:
    job(tmp_path).begin()
    with pytest.raises(UsageError, match="accept_changes=true to go on"):
        job(tmp_path, learning_rate=0.5).is_finished()
    changed = replace(job(tmp_path, learning_rate=0.5, spikes={"window": 8}), accept_changes=True)
    assert not changed.is_finished()
    changed.begin()
    (event,) = read_records(storage.join(str(tmp_path), "events.jsonl"))
    assert (event["event"], event["step"]) == ("settings_changed", 0)
    assert "section.trainer.learning_rate: 0.001 -> 0.5" in event["changes"]
    assert not job(tmp_path, learning_rate=0.5, spikes={"window": 8}).is_finished()


@pytest.mark.parametrize("other", [{"seed": 3}, {"global_batch": 8}, {"ema_decay": 0.5}, {"images": "b" * 64}])
def test_what_state_or_data_depend_on_is_refused_all_the_same(tmp_path: Path, other: Any) -> None:
    job(tmp_path).begin()
    with pytest.raises(UsageError, match=r"start anew\.$"):
        replace(job(tmp_path, learning_rate=0.5, **other), accept_changes=True).is_finished()


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A stage of 5 steps that has ended."""
    job(tmp_path).begin()
    files = {"model": {"w": torch.zeros(1)}}
    weights.write_weights(job(tmp_path).export, "teacher", {}, files, {}, steps=5)
    checkpoint = Path(job(tmp_path).checkpoints, "step_00000005")
    checkpoint.mkdir(parents=True)
    (checkpoint / "COMPLETE").touch()
    return tmp_path


def test_a_finished_run_is_trained_further_if_that_is_asked_for(finished: Path) -> None:
    longer = job(finished, steps=50, learning_rate=0.5)
    with pytest.raises(UsageError, match=r"accept_changes=true to train it further, from step 5 on, with these\.$"):
        longer.is_finished()
    longer = replace(longer, accept_changes=True)
    assert not longer.is_finished()
    longer.begin(5)
    assert not replace(longer, accept_changes=False).is_finished(), "until its export is of 50 steps"
    weights.write_weights(longer.export, "teacher", {}, {"model": {"w": torch.ones(1)}}, {}, steps=50)
    assert longer.is_finished()


@pytest.mark.parametrize("other", [{"steps": 4}, {"learning_rate": 0.5}])
def test_a_finished_run_does_not_go_on_without_more_steps_and_says_what_would(finished: Path, other: Any) -> None:
    with pytest.raises(UsageError, match=r"finished run (.|\n)*set teacher\.trainer\.steps above 5 and accept_changes"):
        replace(job(finished, **other), accept_changes=True).is_finished()


@pytest.mark.parametrize("other", [{"seed": 3}, {"global_batch": 8}, {"images": "b" * 64}])
def test_a_finished_run_of_something_else_is_not_trained_further(finished: Path, other: Any) -> None:
    with pytest.raises(UsageError, match=r"start anew\.$"):
        replace(job(finished, steps=50, **other), accept_changes=True).is_finished()


def test_without_a_checkpoint_a_finished_run_is_not_begun_anew(finished: Path) -> None:
    Path(job(finished).checkpoints, "step_00000005", "COMPLETE").unlink()
    with pytest.raises(UsageError, match=r"no complete checkpoint from which it could be trained further"):
        replace(job(finished, steps=50), accept_changes=True).is_finished()


class Built(Exception):  # noqa: N818 - stands for the loop that is built at last
    """The end of a start, with what was reported of it meanwhile."""


def test_a_start_that_hangs_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reports: queue.Queue[str] = queue.Queue()

    def build(*_: object) -> None:
        raise Built(reports.get(timeout=60))

    monkeypatch.setattr(watchdog, "print_late", reports.put)
    monkeypatch.setattr(trainer.loop.worker, "_build_loop", build)
    with pytest.raises(Built, match=r"teacher: the start is late: .*; being read: nothing"):
        trainer.loop.worker.run_worker(job(tmp_path, reading={"late_seconds": 0.001}), torch.device("cpu"))
