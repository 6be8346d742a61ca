"""Random orders on a GPU, without one: nothing waits for it, in a training pass or between two tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.config.random_order import RandomOrderConfig, RandomOrderOptions
from model.generators.random_order import SHARE, RandomOrderGenerator
from model.layout import TokenLayout
from model.protocols import SamplingPlan
from tests.model.fake_cuda import FUSED_ATTENTION, GpuRules, fake_gpu, gpu_rules, on_fake_gpu

LAYOUT = TokenLayout((9,), (64, 32))
CONFIG = RandomOrderConfig(num_classes=5, depth=2, width=32, heads=2, scan="spiral-in")
B = 4


def longs(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.int64, device="cuda")


def trained(config: RandomOrderConfig) -> GpuRules:
    with fake_gpu():
        network = on_fake_gpu(lambda: RandomOrderGenerator(config, LAYOUT)).train()
        given = (longs(B, 9, 2), longs(B), longs(B), None, {SHARE: torch.zeros((), device="cuda")})
        network.training_terms(*given)
        with gpu_rules() as rules:
            terms = network.training_terms(*given)
    assert {term.dtype for term in terms.values()} == {torch.float32}
    return rules


def sampled(plan_order: RandomOrderOptions) -> GpuRules:
    with fake_gpu():
        network = on_fake_gpu(lambda: RandomOrderGenerator(CONFIG, LAYOUT)).eval()
        uniform = torch.zeros(B, 9, 2, device="cuda")
        plan = SamplingPlan(longs(B), uniform, 2.0, 5, 0.9, longs(B, 9, 2), seed_B=longs(B), order=plan_order)
        network.sample(plan)
        with gpu_rules() as rules:
            network.sample(plan)
    return rules


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_training_pass_does_not_wait_and_multiplies_in_bf16(dropout: float) -> None:
    rules = trained(CONFIG.model_copy(update={"dropout": dropout, "attention_dropout": dropout}))
    assert {dtype for _, dtype in rules.products} == {torch.bfloat16}
    assert dropout or rules.kernels <= FUSED_ATTENTION
    assert rules.kernels


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["scan", "random"])
def test_sampling_does_not_wait_between_tokens(positions: str) -> None:
    rules = sampled(RandomOrderOptions.model_validate({"positions": positions}))
    assert {dtype for _, dtype in rules.products} == {torch.bfloat16}
    assert rules.kernels <= FUSED_ATTENTION
