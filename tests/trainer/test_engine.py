"""The engine on real processes, at each ZeRO stage: accumulation, average, skipped steps, overwritten rows."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from data_pipeline.errors import UsageError
from tests.trainer.gloo import run_gloo
from tests.trainer.small_training import NAME, WIDTH, Training, rows, settings
from trainer.checkpoints import exporting
from trainer.config import TrainerConfig
from trainer.engine.settings import deepspeed_config

STAGES = (0, 1, 2, 3)


def averages(folder: str) -> list[dict[str, Any]]:
    """After each stage's steps, the average of a full replica that is updated beside it."""
    found = []
    for stage in STAGES:
        training = Training(settings(zero_stage=stage), f"{folder}/{stage}")
        replica = training.weights()
        for step in range(1, 6):
            training.advance(step)
            for name, weight in training.weights().items():
                replica[name] = replica[name] + (weight - replica[name]) * (1 - training.config.ema_decay)
        training.save()
        found.append(replica)
    return found


def test_the_sharded_average_equals_that_of_a_full_replica_at_every_stage(tmp_path: Path) -> None:
    for stage, replica in zip(STAGES, run_gloo(2, tmp_path, averages, str(tmp_path))[0], strict=True):
        sharded = exporting.assemble(str(tmp_path / str(stage)), 5, "ema", NAME)
        for name, values in replica.items():
            torch.testing.assert_close(sharded[name], torch.from_numpy(values), rtol=1e-6, atol=1e-7)


def owned_elements(folder: str) -> list[dict[str, int]]:
    """Elements of each role that this rank keeps for itself, at each stage."""
    found = []
    for stage in STAGES:
        sizes: dict[str, int] = {}
        for fragment in Training(settings(zero_stage=stage), folder).engine.owned.owned():
            for role, tensor in fragment.roles.items():
                sizes[role] = sizes.get(role, 0) + tensor.numel()
        found.append(sizes)
    return found


def reduce_buckets(folder: str) -> list[int]:
    """Elements of the buffers that DeepSpeed's optimizers allocate, at stages 1 to 3."""
    engines = [Training(settings(zero_stage=stage), folder).engine for stage in STAGES if stage]
    return [int(engine._engine.optimizer.reduce_bucket_size) for engine in engines]


def test_the_bucket_that_is_allocated_is_as_large_as_the_network(tmp_path: Path) -> None:
    total = WIDTH * 7 + 7 + 7 + 1
    assert run_gloo(1, tmp_path, reduce_buckets, str(tmp_path))[0] == [total + total % 2] * 3


def test_each_element_of_each_role_is_owned_once_and_the_average_is_shared_out(tmp_path: Path) -> None:
    total = WIDTH * 7 + 7 + 7 + 1
    first, second = run_gloo(2, tmp_path, owned_elements, str(tmp_path))
    for one, other in zip(first, second, strict=True):
        assert {role: one[role] + other[role] for role in one} == dict.fromkeys(
            ("master", "exp_avg", "exp_avg_sq", "ema"), total
        )
        assert max(one["ema"], other["ema"]) <= total / 2 + 4


def curves(configs: list[TrainerConfig], folder: str) -> list[list[float]]:
    return [Training(config, folder).advance(4) for config in configs]


def test_accumulation_gives_the_step_of_the_whole_batch_at_every_stage(tmp_path: Path) -> None:
    configs = [settings(zero_stage=stage, micro_batch=micro) for stage in STAGES for micro in (None, 2)]
    whole, *others = run_gloo(1, tmp_path, curves, configs, str(tmp_path))[0]
    for losses in others:
        assert losses == pytest.approx(whole, rel=1e-5)


@pytest.mark.slow
def test_optimizer_states_in_host_memory_change_nothing(tmp_path: Path) -> None:
    configs = [settings(zero_stage=stage, offload=place) for stage in (1, 2, 3) for place in ("none", "optimizer")]
    found = run_gloo(2, tmp_path, curves, configs, str(tmp_path))[0]
    for place in range(0, len(found), 2):
        assert found[place + 1] == pytest.approx(found[place], rel=1e-6)


def offloaded(folder: str) -> list[list[float]]:
    """Losses of an unbroken run with offload, and of one that was resumed without and with it."""
    found = []
    for stage, place, source in ((1, "optimizer", ""), (3, "none", "/1"), (2, "optimizer", "/1")):
        training = Training(settings(zero_stage=stage, offload=place), f"{folder}/{stage}")
        if source:
            training.load(folder + source, 2)
        else:
            training.advance(2)
            training.save()
        found.append(training.advance(4))
    return found


@pytest.mark.slow
def test_a_checkpoint_with_offload_continues_without_it_and_back(tmp_path: Path) -> None:
    whole, without, back = run_gloo(2, tmp_path, offloaded, str(tmp_path))[0]
    assert without == pytest.approx(whole, rel=1e-5)
    assert back == pytest.approx(whole, rel=1e-5)


def overwrite(folder: str) -> list[dict[str, Any]]:
    found = []
    for stage in STAGES:
        training = Training(settings(zero_stage=stage), f"{folder}/{stage}")
        training.advance(1)
        training.engine.overwrite_rows("layers.0.weight", torch.tensor([1, 5]), torch.full((2, WIDTH), 3.0))
        training.save()
        found.append(training.weights())
    return found


def test_overwritten_rows_lose_their_moments_and_no_others_do_at_every_stage(tmp_path: Path) -> None:
    ranks = run_gloo(2, tmp_path, overwrite, str(tmp_path))
    for stage in STAGES:
        folder = str(tmp_path / str(stage))
        master, average = (exporting.assemble(folder, 1, role, NAME) for role in ("master", "ema"))
        moments = exporting.assemble(folder, 1, "exp_avg_sq", NAME)["layers.0.weight"]
        seen = [torch.tensor(found[stage]["layers.0.weight"]) for found in ranks]
        for rows_of in (master["layers.0.weight"], average["layers.0.weight"], *seen):
            assert (rows_of[[1, 5]] == 3).all()
            assert not (rows_of[[0, 2]] == 3).any()
        assert (moments[[1, 5]] == 0).all()
        assert (moments[[0, 2, 3, 4, 6]] > 0).all()


def poisoned(folder: str) -> list[list[bool]]:
    found = []
    for stage in STAGES:
        training = Training(settings(zero_stage=stage), folder)
        before = training.weights()["layers.0.weight"]
        bad = rows(0)
        if training.writer._agreement.rank == 1:
            bad.y_B[0] = float("nan")
        _, skipped = training.learn(bad, 0.05)
        unmoved = bool((before == training.weights()["layers.0.weight"]).all())
        counted = training.engine.owned.optimizer_step
        found.append([bool(skipped.applied), unmoved, counted == 0, bool(training.learn(rows(1), 0.05)[1].applied)])
    return found


def test_a_step_with_gradients_that_are_not_finite_is_skipped_on_all_workers_and_said(tmp_path: Path) -> None:
    assert run_gloo(2, tmp_path, poisoned, str(tmp_path)) == [[[False, True, True, True]] * len(STAGES)] * 2


def scaled(folder: str) -> list[dict[str, list[Any]]]:
    """At each stage, steps that begin with a loss scale which is too large; and the same, gone on from the middle."""
    found = []
    for stage in STAGES:
        config = settings(zero_stage=stage, precision="fp16", initial_loss_scale=2.0**19, loss_scale_window=3)
        training = Training(config, f"{folder}/{stage}")
        steps: dict[str, list[Any]] = {"scale": [], "applied": [], "loss": [], "norm": [], "moved": []}
        for step in range(SCALED_STEPS):
            if step == SCALED_STEPS // 2:
                training.save()
                training = Training(config, f"{folder}/{stage}")
                training.load(f"{folder}/{stage}", step)
            before = training.weights()["layers.0.weight"]
            terms, update = training.learn(rows(step % 2), 1e-4)
            training.step += 1
            steps["scale"].append(update.loss_scale)
            steps["applied"].append(bool(update.applied))
            steps["loss"].append(float(terms["loss"]))
            steps["norm"].append(float(update.grad_norm))
            steps["moved"].append(bool((before != training.weights()["layers.0.weight"]).any()))
        found.append(steps)
    return found


SCALED_STEPS = 14


@pytest.fixture(scope="module")
def fp16(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, list[Any]]]]:
    """Of each rank, by stage."""
    folder = tmp_path_factory.mktemp("fp16")
    found: list[list[dict[str, list[Any]]]] = run_gloo(2, folder, scaled, str(folder))
    return found


@pytest.mark.slow
def test_in_fp16_steps_that_overflow_are_skipped_and_the_scale_follows(fp16: list[list[dict[str, list[Any]]]]) -> None:
    for steps in (each for rank in fp16 for each in rank):
        expected, row = [2.0**19], 0
        for applied in steps["applied"][:-1]:
            row = row + 1 if applied else 0
            expected.append(expected[-1] / 2 if not applied else expected[-1] * (2 if row == 3 else 1))
            row %= 3
        assert steps["scale"] == expected
        assert steps["moved"] == steps["applied"]
        assert not steps["applied"][0]  # too large at first
        assert any(steps["applied"])
        assert len(set(steps["scale"])) < len(steps["scale"])


def norms_of_applied(steps: dict[str, list[Any]]) -> list[float]:
    return [norm for norm, applied in zip(steps["norm"], steps["applied"], strict=True) if applied]


@pytest.mark.slow
def test_in_fp16_every_stage_and_worker_decides_alike(fp16: list[list[dict[str, list[Any]]]]) -> None:
    first = fp16[0][0]
    for steps in (each for rank in fp16 for each in rank):
        assert steps["scale"] == first["scale"]
    for steps in fp16[0][1:]:
        assert steps["loss"] == pytest.approx(first["loss"], rel=1e-3)
        assert norms_of_applied(steps) == pytest.approx(norms_of_applied(first), rel=1e-3)


@pytest.mark.slow
def test_in_fp16_losses_are_those_of_fp32(tmp_path: Path) -> None:
    places = [{"zero_stage": stage} for stage in STAGES] + [{"zero_stage": 2, "offload": "optimizer"}]
    configs = [settings(**place, precision=name) for place in places for name in ("fp32", "fp16")]
    found = run_gloo(1, tmp_path, curves, configs, str(tmp_path))[0]
    for place in range(0, len(found), 2):
        assert found[place + 1] == pytest.approx(found[place], rel=1e-2)


def test_a_batch_that_does_not_fit_the_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="no multiple of the 3 workers"):
        deepspeed_config(settings(), 3)
    assert deepspeed_config(settings(micro_batch=2), 2)["gradient_accumulation_steps"] == 2


def test_extra_settings_are_added_and_derived_ones_are_refused() -> None:
    extra = {"zero_optimization": {"reduce_bucket_size": 1000}, "wall_clock_breakdown": True}
    derived = deepspeed_config(settings(zero_stage=2, extra=extra), 1)
    assert derived["zero_optimization"] == {
        "stage": 2,
        "overlap_comm": True,
        "reduce_bucket_size": 1000,
        "allgather_bucket_size": 50_000_000,
    }
    assert derived["wall_clock_breakdown"] is True
    with pytest.raises(ValueError, match=r"extra\.zero_optimization\.stage: 2 follows"):
        deepspeed_config(settings(extra={"zero_optimization": {"stage": 1}}), 1)
    with pytest.raises(ValueError, match=r"extra\.fp16: set trainer's own precision"):
        deepspeed_config(settings(extra={"fp16": {"enabled": True}}), 1)


@pytest.mark.parametrize(("elements", "bucket"), [(1001, 1002), (1, 2), (10**9, 50_000_000), (None, 50_000_000)])
def test_a_bucket_has_no_more_elements_than_the_network(elements: int | None, bucket: int) -> None:
    zero = deepspeed_config(settings(zero_stage=2), 1, elements)["zero_optimization"]
    assert (zero["reduce_bucket_size"], zero["allgather_bucket_size"]) == (bucket, bucket)
    extra = {"zero_optimization": {"reduce_bucket_size": 5000}}
    assert deepspeed_config(settings(extra=extra), 1, elements)["zero_optimization"]["reduce_bucket_size"] == 5000


def test_gradients_travel_beside_backward_in_buckets_and_in_the_format_that_is_chosen() -> None:
    chosen = settings(zero_stage=1, communication="bf16", bucket_elements=99)
    derived = deepspeed_config(chosen, 2)
    assert derived["communication_data_type"] == "bf16"
    assert derived["zero_optimization"]["overlap_comm"] is True
    assert derived["zero_optimization"]["reduce_bucket_size"] == 100
    assert deepspeed_config(chosen, 2, overlap=False)["zero_optimization"]["overlap_comm"] is False
    assert "communication_data_type" not in deepspeed_config(settings(zero_stage=1), 2)
    off = deepspeed_config(settings(zero_stage=1, overlap_communication=False), 2)
    assert off["zero_optimization"]["overlap_comm"] is False


@pytest.mark.slow
def test_gradients_in_bf16_and_in_small_buckets_train_alike(tmp_path: Path) -> None:
    changes: tuple[dict[str, Any], ...] = ({}, {"bucket_elements": 5}, {"communication": "bf16"})
    configs = [settings(zero_stage=stage, **each) for stage in STAGES for each in changes]
    found = run_gloo(2, tmp_path, curves, configs, str(tmp_path))[0]
    for place in range(0, len(found), 3):
        plain, small, rounded = found[place : place + 3]
        assert small == plain
        assert rounded == pytest.approx(plain, rel=2e-2)
        assert rounded != plain


def test_the_norm_that_finds_gradients_that_are_not_finite_cannot_be_switched_off() -> None:
    with pytest.raises(ValueError, match=r"extra\.zero_optimization\.compute_grad_norm: leave it out"):
        deepspeed_config(settings(extra={"zero_optimization": {"compute_grad_norm": False}}), 1)


def refusals(folder: str) -> list[str]:
    found = []
    for extra in (
        {"zero_optimization": {"compute_grad_norm": False}},
        {"zero_optimization": {"reduce_bucket_sise": 1}},
        {"wall_clock_breakdwon": True},
    ):
        with pytest.raises(UsageError) as refused:
            Training(settings(extra=extra), folder)
        found.append(str(refused.value))
    return found


def test_settings_that_deepspeed_does_not_know_are_refused_by_name(tmp_path: Path) -> None:
    norm, inner, outer = run_gloo(1, tmp_path, refusals, str(tmp_path))[0]
    assert "compute_grad_norm" in norm
    assert "reduce_bucket_sise" in inner
    assert "trainer.extra.wall_clock_breakdwon: DeepSpeed has no such setting" in outer


def test_stage_0_has_nothing_to_offload() -> None:
    with pytest.raises(ValueError, match="stage 0 shards nothing"):
        settings(zero_stage=0, offload="optimizer")


class ReadsOnHost(TorchDispatchMode):
    """Counts how often the host asks for the value of a tensor: on a GPU it would wait for all that was launched."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.places.append("".join(traceback.format_stack(limit=6)))
        return func(*args, **(kwargs or {}))


def host_reads(folder: str) -> list[list[str]]:
    """Where the host reads a tensor in a step, at each stage."""
    found = []
    for stage in STAGES:
        training = Training(settings(zero_stage=stage, micro_batch=2), folder)
        training.advance(2)  # ZeRO 3 records the order of modules first
        with ReadsOnHost() as reads:
            training.learn(rows(2), 1e-3)
        found.append(reads.places)
    return found


def test_the_host_reads_nothing_from_the_device_in_a_step_at_any_stage(tmp_path: Path) -> None:
    for rank in run_gloo(2, tmp_path, host_reads, str(tmp_path)):
        for stage, places in enumerate(rank):
            assert not places, f"ZeRO {stage}: {places[0]}"
