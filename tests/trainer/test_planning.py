"""Failures, storage, what is measured after a run, and what makes a stage fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import storage
from data_pipeline.config import ReadingConfig, TokensConfig
from data_pipeline.errors import UsageError
from model.config import ImageFolderConfig, NextScaleConfig, ViTConfig
from model.layout import TokenLayout
from trainer.config import GeneratorStageConfig, TokenizerLossConfig, TokenizerStageConfig, TrainerConfig
from trainer.planning.blank_stages import StageConfigs
from trainer.planning.failures import best_interval, expect_failures, lost_seconds
from trainer.planning.fitting import BASE_BYTES, MARGIN, PROCESS_BYTES, cheapest_remedy, on_device
from trainer.planning.measured import read_measured
from trainer.planning.plan import DataFacts, Request, make_plan
from trainer.planning.roofline import Assumptions
from trainer.planning.storage import checkpoint_cost, read_images, read_tokens, token_bytes
from trainer.planning.workload import Workload, workload
from trainer.records.jsonl import JsonlWriter

pytestmark = pytest.mark.xdist_group("planning")  # networks are traced once in a process

SMALL_VIT = ViTConfig(width=64, depth=2, heads=4)


def configs(depth: int = 3, **trainer: Any) -> StageConfigs:
    shared = TrainerConfig.model_validate({"steps": 1000, "global_batch": 768, "precision": "bf16"} | trainer)
    tokenizer = ImageFolderConfig(encoder=SMALL_VIT, decoder=SMALL_VIT, scales=(1, 4, 16))
    generator = NextScaleConfig(num_classes=1000, depth=depth, width=64 * depth, heads=depth)
    return StageConfigs(
        TokenizerStageConfig(model=tokenizer, loss=TokenizerLossConfig(), trainer=shared),
        GeneratorStageConfig(model=generator, trainer=shared),
        None,
        TokensConfig(),
        ReadingConfig(),
    )


def work(settings: StageConfigs) -> Workload:
    return workload("train-generator", settings, 8, "cuda")


def request(stage: str = "train-generator", settings: StageConfigs | None = None, **changes: Any) -> Request:
    asked: dict[str, Any] = {"nodes": 1, "ranks_per_node": 8, "device": "H100 SXM", "data": DataFacts(1_281_167)}
    return Request(stage=stage, configs=settings or configs(), **(asked | changes))


@given(st.floats(0.01, 100), st.floats(1000, 1e7))
def test_no_other_interval_loses_much_less_than_the_best(blocked: float, between: float) -> None:
    best = best_interval(blocked, between)
    least = lost_seconds(best, 1e6, blocked, between, 0)
    assert all(lost_seconds(best * factor, 1e6, blocked, between, 0) >= least * 0.97 for factor in (0.25, 0.5, 2, 4))


def test_the_best_interval_is_not_below_an_upload() -> None:
    found = expect_failures(1e6, 100, 0.001, 50, 1e4, 60)
    assert found.best_seconds == 50
    assert found.expected == pytest.approx(100)


def test_tokens_of_imagenet_are_about_one_and_a_half_gigabytes() -> None:
    assert token_bytes(ImageFolderConfig().layout, 1_281_167, 1) == pytest.approx(1.5e9, rel=0.05)


@pytest.mark.parametrize(("largest", "token"), [(65_536, 2), (65_537, 4)])
def test_one_large_vocabulary_makes_all_tokens_of_a_plan_wider(largest: int, token: int) -> None:
    layout = TokenLayout((1, 4), (16, largest, 4096))
    one, two = token_bytes(layout, 1000, 1), token_bytes(layout, 1000, 2)
    assert two - one == 1000 * 5 * 3 * token


def test_every_node_copies_the_tokens_once_and_every_image_is_read_once() -> None:
    tokens = read_tokens(1000, 10**9, 10, nodes=4)
    assert (tokens.bytes, tokens.requests, tokens.node_bytes) == (4 * 10**9, 4 * 10 * 2, 10**9)
    images = read_images(1000, 10**8, 1, 4, 5000, cached=False)
    assert (images.bytes, images.requests) == (5 * 10**8, 5000)


def test_a_checkpoint_is_written_once_whatever_the_number_of_ranks() -> None:
    one, many = (checkpoint_cost(10**6, world, 1, 3, 1e9, ema=True) for world in (1, 8))
    assert one.bytes == many.bytes == 16 * 10**6
    assert many.rank_bytes == 2 * 10**6


@pytest.mark.slow
def test_a_throughput_gives_time_and_mfu() -> None:
    plan = make_plan(request(throughput=7680.0))
    assert plan.time.step_seconds == pytest.approx(0.1)
    assert plan.time.mfu == pytest.approx(plan.time.flops_per_step / (0.1 * 8 * 989.4e12))


def test_without_a_measurement_the_time_is_predicted_and_has_no_mfu() -> None:
    time = make_plan(request()).time
    assert (time.predicted, time.mfu) == (True, None)
    assert time.step_seconds == pytest.approx(sum(part.seconds for part in time.phases))
    assert "0.65 x 989.4 TFLOP/s" in time.known_from


def test_what_the_prediction_takes_of_the_peaks_can_be_changed() -> None:
    slower = Assumptions(
        half_share=0.325, single_share=0.375, bandwidth_share=0.4, link_share=0.35, shortest_kernel=4e-6
    )
    slow, usual = make_plan(request(assumed=slower)).time, make_plan(request()).time
    assert slow.step_seconds == pytest.approx(2 * (usual.step_seconds or 0))


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"device": "NVIDIA A10G"}, "nothing is known of the speed of NVIDIA A10G"),
        ({"device": None}, "a CPU"),
    ],
)
def test_without_a_figure_it_says_what_is_missing(changes: dict[str, Any], missing: str) -> None:
    plan = make_plan(request(**changes))
    assert missing in plan.time.known_from
    assert (plan.time.hours, plan.time.mfu, plan.cost, plan.failures) == (None, None, None, None)


def test_the_configs_peak_is_taken_for_a_device_that_is_not_in_the_table() -> None:
    plan = make_plan(request(device="NVIDIA A10G", peak_tflops=70.0, throughput=100.0))
    assert plan.time.mfu == pytest.approx(plan.time.flops_per_step / (7.68 * 8 * 70e12))


def test_cost_counts_the_work_that_failures_repeat() -> None:
    plan = make_plan(request(throughput=768.0, price=2.0, mtbf_hours=1.0))
    assert plan.failures is not None
    assert plan.time.hours is not None
    assert plan.cost == pytest.approx(2.0 * 8 * (plan.time.hours + plan.failures.lost_hours))


def test_a_batch_that_does_not_divide_is_said_with_the_ranks() -> None:
    with pytest.raises(UsageError, match=r"1 x 7 ranks: trainer.global_batch 768 is no multiple"):
        make_plan(request(ranks_per_node=7))


def test_only_training_stages_can_be_planned() -> None:
    with pytest.raises(UsageError, match="only train-teacher, train-judge, train-tokenizer, train-generator"):
        make_plan(request("ingest"))


@pytest.mark.slow
def test_a_tokenizer_can_be_planned_without_a_teacher() -> None:
    plan = make_plan(request("train-tokenizer"))
    assert plan.fit.fits
    assert plan.reading is not None
    assert plan.reading.requests == plan.samples


@pytest.mark.slow
def test_what_does_not_fit_comes_with_a_setting_that_makes_it_fit() -> None:
    settings = configs(depth=30)
    plan = make_plan(request(settings=settings, device="RTX 4090", ranks_per_node=64))
    assert plan.fit.fits is False
    remedy = plan.fit.remedy
    assert remedy is not None
    trainer = TrainerConfig.model_validate(settings.generator.trainer.model_dump() | remedy.settings)
    size = on_device(workload("train-generator", settings, 64, "cuda").memory(trainer))
    assert size == remedy.bytes <= MARGIN * 24e9


@pytest.mark.slow
def test_a_smaller_micro_batch_is_tried_before_computing_blocks_twice() -> None:
    stage = work(configs())
    limit = (on_device(stage.memory(stage.trainer.model_copy(update={"micro_batch": 48}))) + 1) / MARGIN
    remedy = cheapest_remedy(stage, limit)
    assert remedy is not None
    assert "activation_checkpointing" not in remedy.settings


@pytest.mark.slow
def test_nothing_helps_if_not_even_the_base_fits() -> None:
    assert cheapest_remedy(work(configs()), BASE_BYTES) is None


@pytest.mark.slow
def test_a_node_has_to_hold_what_its_ranks_keep_on_the_host() -> None:
    settings = configs(depth=30, offload="optimizer", zero_stage=2)
    plan = make_plan(request(settings=settings, host_memory=40e9))
    share = 4 * plan.parameters / 8
    snapshot, offloaded = 3 * share, (3 + 2) * share  # without a moving average; two of gradients
    assert plan.host.needed == pytest.approx(8 * (snapshot + offloaded + PROCESS_BYTES), rel=1e-6)
    assert (plan.host.fits, plan.host.remedy) == (False, None)  # snapshots and processes alone are 48 GB
    enough = make_plan(request(settings=settings, host_memory=2000e9))
    assert (enough.host.fits, enough.host.limit) == (True, 2000e9)
    assert make_plan(request(settings=settings)).host.fits is None


@pytest.mark.slow
def test_the_optimizer_stays_on_the_devices_if_the_host_is_too_small_for_it() -> None:
    settings = configs(depth=16, offload="optimizer", zero_stage=2)
    plan = make_plan(request(settings=settings, host_memory=31e9))
    assert plan.host.remedy is not None
    assert plan.host.remedy.settings == {"offload": "none"}
    assert plan.host.remedy.bytes <= MARGIN * 31e9 < plan.host.needed


@pytest.mark.slow
def test_no_remedy_of_a_device_fills_its_host() -> None:
    bucket = {"zero_optimization": {"reduce_bucket_size": 50_000_000}}
    stage = work(configs(depth=16, micro_batch=1, activation_checkpointing=True, zero_stage=2, extra=bucket))
    offloaded = stage.trainer.model_copy(update={"offload": "optimizer", "zero_stage": 2})
    limit = (on_device(stage.memory(offloaded)) + 200e6) / MARGIN
    roomy, tight = cheapest_remedy(stage, limit), cheapest_remedy(stage, limit, 4e9)
    assert roomy is not None
    assert roomy.settings["offload"] == "optimizer"
    assert tight is None or "offload" not in tight.settings


def test_measurements_are_medians_without_the_first_record(tmp_path: Path) -> None:
    write(
        tmp_path,
        "metrics.jsonl",
        [{"step": 1, "step_seconds": s, "samples_per_second": 8 / s} for s in (9.0, 1.0, 2.0, 3.0)],
    )
    saved = [
        {"event": "checkpoint", "step": 1, "time": t, "seconds": 4.0, "blocked_seconds": 0.1, "bytes": 77}
        for t in (10, 20, 40)
    ]
    write(tmp_path, "events.jsonl", [{"event": "start", "time": 0}, *saved, {"event": "resume", "step": 1, "time": 50}])
    found = read_measured(str(tmp_path))
    assert (found.step_seconds, found.checkpoint_bytes, found.restarts) == (2.0, 77, 1)
    assert found.checkpoint_seconds_between == 15


def test_the_most_memory_of_all_records_is_measured(tmp_path: Path) -> None:
    records = [
        {"step": 1, "step_seconds": 1, "samples_per_second": 8, "memory_bytes": size} for size in (5.0, 9.0, 7.0)
    ]
    write(tmp_path, "metrics.jsonl", records)
    found = read_measured(str(tmp_path))
    assert (found.resident_bytes, found.device_bytes) == (9, None)


@pytest.mark.parametrize(("minutes", "count"), [(None, 10), (1.0, 17), (60.0, 10)])
def test_checkpoints_are_counted_by_steps_or_by_minutes_whatever_comes_first(minutes: float | None, count: int) -> None:
    settings = configs(checkpoint_every=100, checkpoint_minutes=minutes)
    assert make_plan(request(settings=settings, throughput=768.0)).checkpoints.count == count


def test_a_folder_without_measurements_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="train the stage first"):
        read_measured(str(tmp_path))


def write(folder: Path, name: str, records: list[dict[str, Any]]) -> None:
    writer = JsonlWriter(storage.join(str(folder), name), keep=records)
    writer.close()


def test_records_that_lack_what_is_measured_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, "metrics.jsonl", [{"step": 1, "step_seconds": 2.0}])
    with pytest.raises(UsageError, match="no measurements there"):
        read_measured(str(tmp_path))
    whole = {"step_seconds": 1.0, "samples_per_second": 8.0, "skipped_steps": None}
    write(tmp_path, "metrics.jsonl", [{"step": 1, "step_seconds": 2.0}, {"step": 2} | whole])
    assert read_measured(str(tmp_path)).samples_per_second == 8.0
