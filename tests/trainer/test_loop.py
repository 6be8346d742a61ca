"""The loop on real processes: a stop that any rank asks for, checkpoints by the clock, counts that outlive it."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline import storage
from data_pipeline.config import ReadingConfig
from data_pipeline.errors import FoldtrainError, UsageError
from data_pipeline.leases.lease import LeaseLostError, take
from data_pipeline.leases.lease_record import Holder
from data_pipeline.storage.retries import PATIENCE_VARIABLE
from tests.trainer.gloo import run_gloo
from tests.trainer.small_training import Regression, Rows, rows
from trainer.checkpoints.catalog import complete_steps
from trainer.checkpoints.index import Index
from trainer.config import ClassifierStageConfig, TrackingConfig, TrainerConfig
from trainer.engine.deepspeed_engine import DeepSpeedEngines
from trainer.engine.engine import Engines, train
from trainer.engine.scalars import Scalars
from trainer.engine.trainable import Trainable, Trainables
from trainer.job import TrainJob
from trainer.loop.compose import build_loop
from trainer.loop.ending import EndRequest
from trainer.loop.training_loop import Loop

STEPS = 10


class CountingStage:
    """A regression that counts its samples on each rank, and says at the end how many all ranks have seen."""

    exported = "regression"
    validation = None

    def __init__(self, stop_at: int | None) -> None:
        torch.manual_seed(0)
        self.network = Regression()
        self.trainables: Trainables = {self.exported: Trainable(self.network)}
        self.samples = None
        self.loop: Loop | None = None
        self.request = EndRequest()
        self.stop_at, self.seen, self.total = stop_at, 0, 0
        self.checkpoint_at: int | None = None

    def card(self) -> dict[str, Any]:
        return {}

    def batch(self, step: int) -> Rows:
        return rows(step)

    def step(self, micro_batches: Sequence[Rows], engines: Engines, rate: float) -> Scalars:
        self.seen += sum(len(batch.y_B) for batch in micro_batches)
        return train(engines[self.exported], [partial(self.network.terms, batch) for batch in micro_batches], rate)

    def after_step(self, step: int, engines: DeepSpeedEngines) -> dict[str, dict[str, Any]]:
        if step - 1 == self.checkpoint_at and dist.get_rank() == 0:
            self.request.checkpoint()
        if step - 1 == self.stop_at:
            self.request.note("asked", {"by": "a test"})
        if step - 1 == self.stop_at and dist.get_rank() == dist.get_world_size() - 1:
            assert self.loop is not None
            self.loop.request_stop()
        return {}

    def state(self) -> dict[str, Tensor]:
        seen = torch.tensor([self.seen])
        dist.all_reduce(seen)
        return {"seen": seen}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.seen = int(state["seen"]) if state else 0


def job(folder: Path, lineage: str = "a", **changes: Any) -> TrainJob:
    values = {"steps": STEPS, "global_batch": 8, "checkpoint_every": 4, "keep_checkpoints": 100, "log_every": 1}
    trainer = TrainerConfig(**(values | {"ema_decay": 0.5} | changes))
    section = ClassifierStageConfig(trainer=trainer)
    return TrainJob(
        "teacher",
        str(folder),
        section,
        0,
        "squash",
        ReadingConfig(),
        {},
        {"images": lineage},
        {},
        TrackingConfig(wandb="off"),
    )


def run(jobs: list[tuple[TrainJob, int | None]]) -> list[tuple[bool, int]]:
    """Whether each of several starts reached the end, and how many samples all ranks had seen by then."""
    found = []
    for each, stop_at in jobs:
        stage = CountingStage(stop_at)
        stage.loop = build_loop(each, stage, torch.device("cpu"), request=stage.request)
        ended = stage.loop.run()
        found.append((ended, int(stage.state()["seen"])))
    return found


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(folder: Path, name: str) -> list[int]:
    records = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [record["step"] for record in records if record["event"] == name]


@pytest.mark.slow
def test_a_stop_asked_of_one_rank_ends_all_with_a_checkpoint_and_the_same_goes_on_from_there(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    starts = [(job(whole), None), (job(parts), 5), (job(parts), None)]
    assert run_gloo(2, tmp_path, run, starts)[0] == [(True, 80), (False, 56), (True, 80)]
    assert events(parts, "stop") == [7]  # the agreement of a step goes on beside the next
    assert events(parts, "resume") == [7]
    assert events(parts, "asked") == [6]  # both ranks were told, and one of them records
    assert complete_steps(str(parts / "checkpoints")) == [4, 7, 8, 10]
    assert losses(parts) == losses(whole)
    one, other = ((folder / "export" / "ema.safetensors").read_bytes() for folder in (whole, parts))
    assert one == other


def run_with_a_checkpoint(given: tuple[TrainJob, int]) -> bool:
    each, stage = given[0], CountingStage(None)
    stage.checkpoint_at = given[1]
    return build_loop(each, stage, torch.device("cpu"), request=stage.request).run()


def test_a_checkpoint_that_is_asked_of_one_rank_is_saved_once_and_training_goes_on(tmp_path: Path) -> None:
    found = run_gloo(2, tmp_path, run_with_a_checkpoint, (job(tmp_path / "run"), 5))
    assert found == [True, True]
    assert complete_steps(str(tmp_path / "run/checkpoints")) == [4, 7, 8, 10]


def records_of(folder: Path, name: str) -> list[Any]:
    return [json.loads(line)[name] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_loss_scale_of_fp16_is_recorded_and_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    changes = {"precision": "fp16", "initial_loss_scale": 2.0**19, "loss_scale_window": 3}
    run_gloo(
        1, tmp_path, run, [(job(whole, **changes), None), (job(parts, **changes), 5), (job(parts, **changes), None)]
    )
    for name in ("loss", "loss_scale", "skipped_steps"):
        assert records_of(parts, name) == records_of(whole, name)
    scales, skipped = records_of(whole, "loss_scale"), records_of(whole, "skipped_steps")
    assert scales[0] == 2.0**19
    assert skipped[0] == 1
    assert min(scales) <= 2.0**18
    assert len(events(whole, "skipped_step")) == skipped[-1] < STEPS
    state = json.loads((parts / "checkpoints" / "step_00000007" / "state.json").read_text())
    assert state["trainables"]["regression"]["loss_scale"]["value"] in {scales[6], scales[7]}


def test_counts_of_a_stage_go_on_at_another_number_of_workers(tmp_path: Path) -> None:
    assert run_gloo(2, tmp_path, run, [(job(tmp_path / "run"), 4)])[0] == [(False, 48)]
    assert run_gloo(1, tmp_path, run, [(job(tmp_path / "run", zero_stage=3), None)])[0] == [(True, 80)]


@pytest.mark.slow
def test_the_clock_of_the_first_rank_asks_all_for_checkpoints(tmp_path: Path) -> None:
    run_gloo(2, tmp_path, run, [(job(tmp_path / "run", checkpoint_minutes=1e-9), None)])
    assert complete_steps(str(tmp_path / "run" / "checkpoints")) == list(range(2, STEPS + 1))


def test_the_best_checkpoint_stays(tmp_path: Path) -> None:
    best = {"metric": "step_seconds", "mode": "max"}
    run_gloo(1, tmp_path, run, [(job(tmp_path / "run", checkpoint_every=1, keep_checkpoints=1, keep_best=best), None)])
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    slowest = max(records, key=lambda record: record["step_seconds"])["step"]
    assert complete_steps(str(tmp_path / "run" / "checkpoints")) == sorted({slowest, STEPS})


def test_a_finished_run_is_trained_further_and_its_export_is_of_the_last_step(tmp_path: Path) -> None:
    whole, longer = tmp_path / "whole", tmp_path / "longer"
    settings: dict[str, Any] = {"final_learning_rate": 1.0, "keep_checkpoints": 1}
    more = replace(job(longer, steps=14, **settings), accept_changes=True)
    starts = [(job(whole, steps=14, **settings), None), (job(longer, **settings), None), (more, None)]
    assert run_gloo(1, tmp_path, run, starts)[0] == [(True, 112), (True, 80), (True, 112)]
    assert losses(longer) == losses(whole)
    one, other = ((folder / "export" / "card.json").read_bytes() for folder in (whole, longer))
    assert one == other
    assert json.loads(one)["steps"] == 14
    assert complete_steps(str(longer / "checkpoints")) == [14]
    assert more.is_finished()


def die_between_the_last_checkpoint_and_the_export(one: TrainJob, again: TrainJob) -> list[tuple[bool, int]]:
    """As if older checkpoints had not been removed yet, and with a file of an attempt that another had replaced."""
    first = run([(one, None)])
    folder = Path(one.folder)
    (folder / "checkpoints" / f"step_{STEPS:08d}" / "rank_0000-0badf00d.safetensors").write_bytes(b"left")
    shutil.rmtree(folder / "export")
    return first + run([(again, None)])


def test_a_start_that_has_nothing_to_save_removes_what_the_one_before_left(tmp_path: Path) -> None:
    one, again = job(tmp_path / "run"), job(tmp_path / "run", keep_checkpoints=1)
    (found,) = run_gloo(1, tmp_path, die_between_the_last_checkpoint_and_the_export, one, again)
    assert found == [(True, 80), (True, 80)]
    assert complete_steps(one.checkpoints) == [STEPS]
    assert not list((tmp_path / "run/checkpoints").rglob("*0badf00d*"))
    assert again.is_finished()


def other_data(one: TrainJob, other: TrainJob) -> str:
    run([(one, 2)])
    with pytest.raises(UsageError) as refused:
        run([(other, None)])
    return str(refused.value)


def test_a_start_is_on_record_once_it_is_accepted(tmp_path: Path) -> None:
    folder, changed = tmp_path / "run", replace(job(tmp_path / "run", learning_rate=0.5), accept_changes=True)
    run_gloo(1, tmp_path, run, [(job(folder), 5), (changed, None)])
    assert json.loads((folder / "settings.json").read_text()) == changed.settings()
    assert json.loads((folder / "lineage.json").read_text()) == {"images": "a"}
    assert events(folder, "settings_changed") == [7]


def test_a_checkpoint_from_other_data_is_not_continued(tmp_path: Path) -> None:
    message = run_gloo(1, tmp_path, other_data, job(tmp_path / "run"), job(tmp_path / "run", lineage="b"))[0]
    assert "lineage.images: a -> b" in message
    assert json.loads((tmp_path / "run" / "settings.json").read_text()) == job(tmp_path / "run").settings()
    assert json.loads((tmp_path / "run" / "lineage.json").read_text()) == {"images": "a"}


def fails_at(each: TrainJob, *steps: int) -> str | None:
    """Train while checkpoints at some steps cannot be written. Returns what that failed with, if it did."""
    os.environ[PATIENCE_VARIABLE] = "0.01"
    for step in steps:
        (Path(each.checkpoints) / f"step_{step:08d}" / "index.json").mkdir(
            parents=True, exist_ok=True
        )  # where a file should be
    try:
        run([(each, None)])
    except FoldtrainError as error:
        return str(error)
    return None


def test_a_run_whose_last_checkpoint_fails_again_and_again_has_failed(tmp_path: Path) -> None:
    (message,) = run_gloo(1, tmp_path, fails_at, job(tmp_path / "run"), STEPS)
    assert "3 checkpoints in a row could not be written, the last at step 10" in message
    assert events(tmp_path / "run", "checkpoint_failed") == [STEPS] * 3
    assert events(tmp_path / "run", "finish") == []


class AwaitedStage(CountingStage):
    """The step after a checkpoint begins when that has been written, or has failed, however slow the disk is."""

    def __init__(self, step: int) -> None:
        super().__init__(None)
        self.awaited = step

    def step(self, micro_batches: Sequence[Rows], engines: Engines, rate: float) -> Scalars:
        assert self.loop is not None
        if self.loop.step == self.awaited:
            self.loop.writer.finish()
        return super().step(micro_batches, engines, rate)


def fails_once_at(each: TrainJob, step: int) -> bool:
    """Train while the checkpoint at a step cannot be written."""
    os.environ[PATIENCE_VARIABLE] = "0.01"
    (Path(each.checkpoints) / f"step_{step:08d}" / "index.json").mkdir(parents=True, exist_ok=True)
    stage = AwaitedStage(step)
    stage.loop = build_loop(each, stage, torch.device("cpu"))
    return stage.loop.run()


@pytest.mark.slow
def test_a_checkpoint_that_failed_is_tried_again_before_the_next_is_due(tmp_path: Path) -> None:
    each = job(tmp_path / "run", steps=40, checkpoint_every=20)
    assert run_gloo(2, tmp_path, fails_once_at, each, 20) == [True, True]
    assert events(tmp_path / "run", "checkpoint_failed") == [20]
    assert complete_steps(each.checkpoints) == [21, 40]


def too_many_skipped(each: TrainJob) -> str:
    """Train though no step can be applied. Returns what that failed with."""
    with pytest.raises(FoldtrainError) as failed:
        run([(each, None)])
    return str(failed.value)


def test_a_run_ends_when_more_steps_in_a_row_are_skipped_than_may_be(tmp_path: Path) -> None:
    overflowing = {"precision": "fp16", "initial_loss_scale": 2.0**40}
    (message,) = run_gloo(1, tmp_path, too_many_skipped, job(tmp_path / "run", max_skipped_steps=2, **overflowing))
    assert "3 optimizer steps in a row were skipped up to step 3" in message
    assert events(tmp_path / "run", "skipped_step") == [1, 2, 3]
    assert events(tmp_path / "run", "finish") == []


@pytest.mark.slow
def test_only_skipped_steps_in_a_row_count_against_a_run(tmp_path: Path) -> None:
    """The loss scale doubles after each applied step, so that many are skipped, but never three."""
    doubling = {"precision": "fp16", "initial_loss_scale": 2.0**14, "loss_scale_window": 1, "steps": 20}
    each = job(tmp_path / "run", max_skipped_steps=2, **doubling)
    assert run_gloo(1, tmp_path, run, [(each, None)])[0] == [(True, 160)]
    assert len(events(tmp_path / "run", "skipped_step")) > 2


class AheadStage(CountingStage):
    """A step ends only when the batch of the next one is being made."""

    def __init__(self) -> None:
        super().__init__(None)
        self.made = [threading.Event() for _ in range(STEPS + 1)]
        self.made[STEPS].set()

    def batch(self, step: int) -> Rows:
        self.made[step].set()
        return super().batch(step)

    def step(self, micro_batches: Sequence[Rows], engines: Engines, rate: float) -> Scalars:
        assert self.loop is not None
        assert self.made[self.loop.step + 1].wait(60)
        return super().step(micro_batches, engines, rate)


def made_ahead(each: TrainJob) -> tuple[bool, list[bool]]:
    stage = AheadStage()
    stage.loop = build_loop(each, stage, torch.device("cpu"))
    return stage.loop.run(), [event.is_set() for event in stage.made]


def test_a_batch_is_made_while_the_step_before_computes(tmp_path: Path) -> None:
    assert run_gloo(1, tmp_path, made_ahead, job(tmp_path / "run")) == [(True, [True] * (STEPS + 1))]


class LockedStage(CountingStage):
    """The last checkpoint cannot be written for the first time; then the obstacle goes."""

    def __init__(self, obstacle: Path) -> None:
        super().__init__(None)
        self.obstacle, self.saves = obstacle, 0

    def state(self) -> dict[str, Tensor]:
        self.saves += 1
        if self.saves == 1:
            self.obstacle.mkdir(parents=True)
        elif self.obstacle.is_dir():
            self.obstacle.rmdir()
        return super().state()


def last_fails_once(each: TrainJob) -> bool:
    os.environ[PATIENCE_VARIABLE] = "0.01"
    stage = LockedStage(Path(each.checkpoints) / f"step_{STEPS:08d}" / "index.json")
    return build_loop(each, stage, torch.device("cpu")).run()


@pytest.mark.slow
def test_the_last_checkpoint_is_tried_again_and_then_the_run_is_finished(tmp_path: Path) -> None:
    each = job(tmp_path / "run", checkpoint_every=100)
    assert run_gloo(1, tmp_path, last_fails_once, each) == [True]
    assert events(tmp_path / "run", "checkpoint_failed") == events(tmp_path / "run", "finish") == [STEPS]
    assert complete_steps(each.checkpoints) == [STEPS]


def never_uploaded(each: TrainJob) -> tuple[str, str]:
    """Train while no upload ends. Returns what that failed with."""
    loop, never = build_loop(each, CountingStage(None), torch.device("cpu")), threading.Event()
    index = loop.writer._snapshot.index

    def waiting() -> Index:
        never.wait()
        return index()

    loop.writer._snapshot.index = waiting  # type: ignore[method-assign] # called when all is copied
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.loop.training_loop._LAST_UPLOAD_SECONDS", 0.0)
        with pytest.raises(FoldtrainError) as failed:
            loop.run()
    return type(failed.value).__name__, str(failed.value)


@pytest.mark.slow
def test_a_run_whose_last_upload_does_not_end_has_failed(tmp_path: Path) -> None:
    each = job(tmp_path / "run", checkpoint_every=100, checkpoint_wait_seconds=0.01)
    ((kind, message),) = run_gloo(1, tmp_path, never_uploaded, each)
    assert kind == "FoldtrainError"
    assert f"the checkpoint of step {STEPS} is still under way after 0.01 s" in message
    assert events(tmp_path / "run", "checkpoint_failed") == [STEPS] * 3
    assert events(tmp_path / "run", "finish") == []
    assert complete_steps(each.checkpoints) == []


def mended(each: TrainJob) -> bool:
    """Train while the disk refuses the first four writes of checkpoints."""
    write, refused = storage.write_bytes, list[str]()

    def refuse(uri: str, data: bytes) -> None:
        if "step_" in uri and len(refused) < 4:
            refused.append(uri)
            raise OSError(28, "No space left on device", uri)
        write(uri, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "write_bytes", refuse)
        patch.setattr("trainer.checkpoints.writer.FIRST_PAUSE", 0.001)
        return run([(each, None)])[0][0] and len(refused) == 4


@pytest.mark.slow
def test_a_checkpoint_whose_writes_fail_for_a_while_has_not_failed(tmp_path: Path) -> None:
    each = job(tmp_path / "run", checkpoint_every=100)
    assert run_gloo(1, tmp_path, mended, each) == [True]
    assert events(tmp_path / "run", "checkpoint_failed") == []
    assert complete_steps(each.checkpoints) == [STEPS]


class SucceededStage(CountingStage):
    """While it trains, another driver takes its folder over."""

    def after_step(self, step: int, engines: DeepSpeedEngines) -> dict[str, dict[str, Any]]:
        if step == 5 and dist.get_rank() == 0:
            assert self.loop is not None
            self.loop.writer.finish()  # the checkpoint of step 4 is complete
            folder = self.loop.job.folder
            storage.write_json(f"{folder}/lease/000002.json", Holder.here("another driver", 30).record())
        return super().after_step(step, engines)


def is_succeeded(each: TrainJob) -> str:
    each = replace(each, lease=take(each.folder, "train", seconds=600))
    stage = SucceededStage(None)
    stage.loop = build_loop(each, stage, torch.device("cpu"))
    try:
        stage.loop.run()
    except LeaseLostError as error:
        return str(error)
    return "it went on"


def test_a_run_that_another_driver_took_over_writes_no_checkpoint_and_ends(tmp_path: Path) -> None:
    each = job(tmp_path / "run", steps=40)
    (message,) = run_gloo(1, tmp_path, is_succeeded, each)
    assert "another driver on" in message
    assert complete_steps(each.checkpoints) == [4]
    assert not (tmp_path / "run" / "export").exists()
