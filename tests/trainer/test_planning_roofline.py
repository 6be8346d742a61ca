"""Time by the roofline: two kernels on paper, fusion, the optimizer, communication."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from trainer.config import TrainerConfig
from trainer.planning import update
from trainer.planning.devices import Device
from trainer.planning.fake_device import fake_device
from trainer.planning.memory import Held
from trainer.planning.operation import Kernel, Operation
from trainer.planning.roofline import Assumptions, fuse, seconds
from trainer.planning.step_cost import step_cost
from trainer.planning.step_trace import MicroBatch
from trainer.planning.trace import Trace
from trainer.planning.update import step_traffic, update_kernels

DEVICE = Device("a toy", "toy", bf16=1e12, fp32=1e11, memory=1e9, bandwidth=1e10, link=1e9, source="made up")
ALL_OF_IT = Assumptions(1.0, 1.0, 1.0, 1.0, shortest_kernel=1e-6)


def trainer(**changes: Any) -> TrainerConfig:
    return TrainerConfig.model_validate({"steps": 10, "global_batch": 64} | changes)


def micro_batch(kernels: list[Kernel], parameters: int = 1000) -> MicroBatch:
    counted = Counter(kernels)
    return MicroBatch(8, counted, counted, (), (parameters,), 0, 0, Held(0, 0, 0, 0, 0))


def test_two_operations_take_the_bytes_and_the_time_that_they_take_on_paper() -> None:
    rows = 64
    with fake_device("cuda") as fake, Trace(fake.device) as trace:
        weight, x = (fake.like(torch.empty(shape)) for shape in ((rows, 32), (1000, rows)))
        (x @ weight).relu()
    product, relu = (operation.kernel for operation in trace.operations)
    assert product.bytes == 4 * (1000 * rows + rows * 32 + 1000 * 32)
    assert relu.bytes == 4 * 2 * 1000 * 32
    assert product.flops == 2 * 1000 * rows * 32
    assert seconds(product, DEVICE, ALL_OF_IT) == pytest.approx(max(product.flops / 1e11, product.bytes / 1e10))
    assert seconds(relu, DEVICE, ALL_OF_IT) == pytest.approx(relu.bytes / 1e10)


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        (Kernel("forward", "mm", "bfloat16", 10**9, 10**9, 8), 1e-3 / 0.5),
        (Kernel("forward", "mm", "float32", 10**9, 10**9, 8), 1e-2 / 0.25),
        (Kernel("forward", "add", "float32", 0, 0, 10**7), 1e-3 / 0.8),
        (Kernel("forward", "add", "float32", 0, 0, 8), 3e-6),
    ],
    ids=["half", "single", "memory", "shortest"],
)
def test_each_limit_is_a_share_of_the_peak(kernel: Kernel, expected: float) -> None:
    assumed = Assumptions(half_share=0.5, single_share=0.25, bandwidth_share=0.8, shortest_kernel=3e-6)
    assert seconds(kernel, DEVICE, assumed) == pytest.approx(expected)


def test_float32_as_tf32_runs_at_half_the_rate_of_16_bits() -> None:
    kernel = Kernel("forward", "mm", "float32", 10**9, 10**9, 8)
    assert seconds(kernel, DEVICE, Assumptions(half_share=0.5, tf32=True)) == pytest.approx(4e-3)


def op(name: str, reads: list[int], write: int, *, fusible: bool = True) -> Operation:
    read = tuple((number, 100) for number in reads)
    return Operation("forward", name, "float32", 0, 0, read, ((write, 100),), fusible=fusible)


def test_a_chain_reads_what_it_does_not_make_and_writes_what_is_read_later() -> None:
    chain = [op("mul", [1, 2], 3), op("add", [3, 4], 5), op("exp", [5], 6), op("mm", [6, 3], 7, fusible=False)]
    fused, product = fuse(chain)
    assert sorted(number for number, _ in fused.reads) == [1, 2, 4]
    assert sorted(number for number, _ in fused.writes) == [3, 6]  # 5 is read by the chain alone
    assert (fused.kernel.bytes, product.name) == (500, "mm")


def test_chains_that_share_nothing_stay_two_kernels_and_gradients_are_written() -> None:
    found = fuse([op("mul", [1], 2), op("add", [11], 12), op("exp", [2], 3)], needed_later=[2, 12])
    assert [sorted(number for number, _ in each.writes) for each in found] == [[12], [2]] or len(found) == 2
    assert sum(len(each.reads) for each in found) == 2


def test_the_update_moves_seven_numbers_a_parameter_of_the_ranks_share() -> None:
    [adamw] = [k for k in update_kernels(1000, trainer(zero_stage=2, micro_batch=1), 8) if k.name == "adamw"]
    assert adamw.bytes == 7 * 4 * 125
    [whole] = [k for k in update_kernels(1000, trainer(zero_stage=0), 8) if k.name == "adamw"]
    assert whole.bytes == 7 * 4 * 1000
    offloaded = update_kernels(1000, trainer(zero_stage=2, offload="optimizer"), 8)
    assert "adamw" not in {kernel.name for kernel in offloaded}


@pytest.mark.parametrize(
    ("stage", "gradients", "weights"), [(0, 2, 0), (1, 1, 1), (2, 4, 1), (3, 4, 8)], ids=lambda value: str(value)
)
def test_communication_follows_the_zero_stage_and_four_micro_batches(stage: int, gradients: int, weights: int) -> None:
    found = step_traffic(1000, trainer(zero_stage=stage, micro_batch=2), 8)
    unit = 4 * 1000 * 7 / 8
    assert (found.gradients, found.weights) == (gradients * unit, weights * unit)


@pytest.mark.parametrize(("overlaps", "exposed"), [(True, 1), (False, 2)])
def test_gradients_hide_behind_backward_where_they_overlap_and_weights_do_not(
    monkeypatch: pytest.MonkeyPatch, overlaps: bool, exposed: int
) -> None:
    kernels = [Kernel("backward", "mm", "float32", 10**9, 10**9, 8)]  # 10 ms
    once = 4e6 * 7 / 8 / 1e9  # 3.5 ms for the gradients, and as much for the weights
    settings = {"zero_optimization": {"overlap_comm": overlaps}}
    monkeypatch.setattr(update, "deepspeed_config", lambda *_: settings)
    cost = step_cost(micro_batch(kernels, 10**6), trainer(zero_stage=1), DEVICE, ALL_OF_IT, world=8)
    found = sum(part.seconds for part in cost.parts if part.phase == "communication")
    assert found == pytest.approx(exposed * once)


def test_gradients_that_travel_in_16_bits_are_half_as_many_bytes() -> None:
    found = step_traffic(1000, trainer(zero_stage=1, communication="bf16"), 8)
    assert found.gradients == found.weights / 2


def test_micro_batches_of_a_step_add_up() -> None:
    kernels = [Kernel("forward", "mm", "float32", 10**9, 10**9, 8)]
    one, four = (
        step_cost(micro_batch(kernels), trainer(micro_batch=size), DEVICE, ALL_OF_IT, world=1) for size in (64, 16)
    )
    forward = [sum(part.seconds for part in cost.parts if part.phase == "forward") for cost in (one, four)]
    assert forward == pytest.approx([0.01, 0.04])
