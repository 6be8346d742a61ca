"""What a record of metrics.jsonl measures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from cluster.config.run import RunConfig
from cluster.stages.planning import stage_configs
from data_pipeline.config import ReadingConfig
from model.config import ClassifierConfig
from tests.trainer.gloo import run_gloo
from trainer.config import ClassifierStageConfig, TrainerConfig
from trainer.engine.engine import StepResult, Update
from trainer.engine.scalars import Scalars
from trainer.job import StageSection, TrainJob
from trainer.planning.devices import peak_flops
from trainer.planning.model_flops import asked_of, model_flops, sample_flops
from trainer.planning.plan import DataFacts, Request, make_plan
from trainer.records.meter import Meter, percentile

CONFIG = TrainerConfig(steps=100, global_batch=8)


def step(loss: float, grad_norm: float = 1.0) -> StepResult:
    terms = Scalars.of({"loss": torch.tensor(loss), "accuracy": torch.tensor(0.5)})
    updates = {"network": Update(applied=True, grad_norm=grad_norm), "critic": Update(applied=True, grad_norm=7.0)}
    return StepResult(terms, updates)


def two_records() -> list[dict[str, Any]]:
    """Rank r has losses that are r higher, and waits r times as long."""
    rank = dist.get_rank()
    meter = Meter(CONFIG, flops_per_step=lambda: 1e6, peak_flops=1e9, exported="network")
    for number in range(4):
        meter.add(step(number + rank, grad_norm=number), waited=0.5 * rank, seconds=1.0 + number, tokens=100)
    meter.block(0.25 * (rank + 1))
    first = meter.record(4, skipped=2, passed_over=1)
    meter.add(step(math.inf), waited=0.0, seconds=1.0)
    second = meter.record(5, skipped=2)
    unknown = Meter(CONFIG, flops_per_step=lambda: 1e6, peak_flops=None)
    unknown.add(step(1.0), waited=0.0, seconds=1.0)
    return [first, second, unknown.record(1, skipped=2)]


def looked_at() -> dict[str, Any]:
    """A window of one step, of which most was a look."""
    meter = Meter(CONFIG, exported="network")
    meter.add(step(1.0), waited=0.0, seconds=0.1)
    meter._began -= 100
    meter.look(60.0)
    return meter.record(1, skipped=0) | {"next": (meter.add(step(1.0), 0.0, 0.1), meter.record(2, skipped=0))[1]}


def test_a_look_at_the_network_does_not_slow_the_rates(tmp_path: Path) -> None:
    (found,) = run_gloo(1, tmp_path, looked_at)
    assert found["validation_seconds"] == 60.0
    assert found["window_seconds"] == pytest.approx(100, abs=5)
    assert found["step_seconds"] == pytest.approx(40, abs=5)
    assert found["samples_per_second"] == pytest.approx(8 / found["step_seconds"])
    assert found["eta_seconds"] == pytest.approx(99 * found["step_seconds"])
    assert "validation_seconds" not in found["next"]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    found: list[list[dict[str, Any]]] = run_gloo(2, tmp_path_factory.mktemp("meter"), two_records)
    return found


def test_terms_are_means_over_steps_and_ranks(records: list[list[dict[str, Any]]]) -> None:
    assert [(rank[0]["loss"], rank[0]["accuracy"], rank[0]["grad_norm"]) for rank in records] == [(2.0, 0.5, 1.5)] * 2


def test_norms_of_other_trainables_have_their_names(records: list[list[dict[str, Any]]]) -> None:
    assert [rank[0]["grad_norm_critic"] for rank in records] == [7.0, 7.0]


def test_rates_are_of_all_ranks(records: list[list[dict[str, Any]]]) -> None:
    first = records[0][0]
    assert first["samples_per_second"] == pytest.approx(4 * 8 / first["window_seconds"])
    assert first["tokens_per_second"] == pytest.approx(2 * 400 / first["window_seconds"])
    assert first["mfu"] == pytest.approx(4 * 1e6 / (2 * 1e9 * first["window_seconds"]))
    waited = [4 * 0.5 * rank / found[0]["window_seconds"] for rank, found in enumerate(records)]
    assert first["data_wait_share"] == pytest.approx(sum(waited) / 2)


def test_step_times_are_given_by_their_middle_their_tail_and_the_longest(records: list[list[dict[str, Any]]]) -> None:
    first = records[0][0]
    found = [first[f"step_seconds_{which}"] for which in ("p50", "p95", "max")]
    assert found == [2.0, 4.0, 4.0]
    assert first["window_steps"] == 4
    assert first["step_seconds"] == pytest.approx(first["window_seconds"] / 4)


def test_memory_and_blocked_time_are_those_of_the_worst_rank(records: list[list[dict[str, Any]]]) -> None:
    assert records[0][0]["checkpoint_seconds"] == 0.5
    assert records[0][0]["memory_bytes"] == records[1][0]["memory_bytes"] > 2**20


def test_skipped_steps_are_in_every_record(records: list[list[dict[str, Any]]]) -> None:
    assert [record["skipped_steps"] for record in records[0]] == [2, 2, 2]
    assert (records[0][0]["passed_over_steps"], records[0][0]["samples"]) == (1, 3 * 8)


def test_a_record_begins_anew_and_what_is_not_finite_is_null(records: list[list[dict[str, Any]]]) -> None:
    second = records[0][1]
    assert (second["loss"], second["grad_norm"], second["checkpoint_seconds"]) == (None, 1.0, 0.0)
    assert "tokens_per_second" not in second


def test_there_is_no_mfu_where_the_device_is_unknown(records: list[list[dict[str, Any]]]) -> None:
    assert ["mfu" in record for record in records[0]] == [True, True, False]


VIT = {"width": 32, "depth": 1, "heads": 2}
TRAINER = {"steps": 10, "global_batch": 8}
CLASSIFIER = {"image_size": 16, "widths": [8, 16]}
TOKENIZER = {
    "image_size": 16,
    "patch_size": 4,
    "encoder": VIT,
    "decoder": VIT,
    "branches": 2,
    "scales": [1, 4],
    "dropout_min_scales": 1,
    "quantizer": {"codebook_size": 64, "code_dim": 8},
    "teacher_width": 16,
}
LOSS = {"perceptual": [{"kind": "teacher", "weight": 0.2}], "semantic": {"weight": 0.05}}


def small_config() -> RunConfig:
    """A run with a teacher, a tokenizer that learns from it and a generator."""
    values = {
        "run": "nowhere",
        "data": {"source": {"kind": "folder", "path": "pictures"}},
        "teacher": {"model": CLASSIFIER, "trainer": TRAINER},
        "tokenizer": {"model": TOKENIZER, "loss": LOSS, "trainer": TRAINER},
        "generator": {"model": {"depth": 2, "width": 64, "heads": 4}, "trainer": TRAINER},
    }
    return RunConfig.model_validate(values).with_classes(10)


def resolved(stage: str, peak_tflops: float | None = None) -> TrainJob:
    """A stage of that config, with the config of its run."""
    config = small_config()
    sections: dict[str, StageSection] = {"tokenizer": config.tokenizer, "generator": config.generator}
    section = sections.get(stage) or ClassifierStageConfig(trainer=CONFIG)
    record = config.model_dump(mode="json")
    return TrainJob(stage, "", section, 0, "squash", ReadingConfig(), {}, {}, record, peak_tflops=peak_tflops)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["tokenizer", "generator"])
def test_the_operations_of_a_sample_are_those_of_the_plan(stage: str) -> None:
    config = small_config()
    planned = make_plan(Request(f"train-{stage}", stage_configs(config, f"train-{stage}"), 1, 2, None, DataFacts(None)))
    found = sample_flops(**asked_of(resolved(stage)))
    step = found * TRAINER["global_batch"]
    assert step == pytest.approx(planned.time.flops_per_step, rel=1e-4)  # the pairs of images


@pytest.mark.slow
def test_the_operations_of_a_step_are_counted_by_a_process_of_their_own() -> None:
    job = resolved("generator", peak_tflops=1.0)
    found = model_flops(job, torch.device("cpu"))
    found.wait()
    assert found.per_step() == round(sample_flops(**asked_of(job)) * TRAINER["global_batch"])


def test_nothing_is_counted_where_no_peak_is_known() -> None:
    found = model_flops(resolved("generator"), torch.device("cpu"))
    found.wait()
    assert found.per_step() is None
    assert found.left_out == "MFU is left out: the peak of a CPU is not known; cluster.peak_tflops gives it"


def test_a_run_that_ends_before_its_operations_are_counted_leaves_nobody_behind() -> None:
    found = model_flops(resolved("generator", peak_tflops=1.0), torch.device("cpu"))
    found.close()
    assert found.per_step() is None


def test_the_peak_that_is_given_goes_before_what_is_known() -> None:
    found = model_flops(resolved("generator", peak_tflops=0.5), torch.device("cpu"), count=False)
    assert (found.peak, found.left_out) == (0.5e12, None)


def test_the_peak_of_a_gpu_is_that_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    job = resolved("generator")
    found = model_flops(job, torch.device("cuda", 1), count=False)
    assert (found.peak, found.left_out) == (peak_flops("NVIDIA H200", job.section.trainer.precision), None)


def test_the_operations_of_a_classifier_are_counted_too() -> None:
    section = ClassifierStageConfig(model=ClassifierConfig(image_size=8, num_classes=10, widths=(4,)), trainer=CONFIG)
    convolution, head = 2 * 9 * 3 * 4 * 4 * 4, 2 * 4 * 10
    found = sample_flops("judge", section.model_dump(mode="json"), None, None)
    assert found == 2 * convolution + 3 * head  # no gradient to pixels


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0.01, 1))
def test_a_percentile_is_a_value_that_enough_values_do_not_exceed(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values)
    assert sum(value < found for value in values) < share * len(values)
