"""What masked generators do on a GPU, without one: no copies, no waiting, products in bf16, fused attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from model.config.masked import MaskedConfig, MaskedOptions
from model.generators.masked import MASKED_SHARE, MEAN_WEIGHT, MaskedGenerator
from model.layout import TokenLayout
from model.protocols import SamplingPlan
from tests.model.fake_cuda import FUSED_ATTENTION, GpuRules, fake_gpu, gpu_rules, on_fake_gpu

LAYOUT, B = TokenLayout((1, 4, 9), (16, 24)), 4
BACKBONES: dict[str, dict[str, Any]] = {
    "bert": {"kind": "bert", "depth": 2, "width": 32, "heads": 2, "attention_dropout": 0.0},
    "uvit": {"kind": "uvit", "depth": 2, "width": 32, "heads": 2, "dropout": 0.1},
}


def made(kind: str, **changes: Any) -> MaskedGenerator:
    config = MaskedConfig.model_validate({"num_classes": 5, "backbone": BACKBONES[kind] | changes})
    return on_fake_gpu(lambda: MaskedGenerator(config, LAYOUT))


def trained(network: MaskedGenerator) -> Callable[[], object]:
    tokens = torch.zeros(B, 14, 2, dtype=torch.int64, device="cuda")
    label = seed = torch.zeros(B, dtype=torch.int64, device="cuda")
    of_step = {MEAN_WEIGHT: torch.ones((), device="cuda"), MASKED_SHARE: torch.ones(3, device="cuda")}

    def terms() -> object:
        found = network.training_terms(tokens, label, seed, None, of_step if network.training else None)
        assert all(value.dtype == torch.float32 and value.ndim == 0 for value in found.values())
        return found

    return terms


def sampled(network: MaskedGenerator, kept: bool) -> Callable[[], object]:
    kept_BLF = torch.full((B, 14, 2), -1, device="cuda") if kept else None
    label = seed = torch.zeros(B, dtype=torch.int64, device="cuda")
    numbers, options = torch.zeros(B, 14, 2, device="cuda"), MaskedOptions(confidence="log-probability")
    plan = SamplingPlan(label, numbers, 2.0, 5, 0.9, kept_BLF, seed_B=seed, order=options)
    return lambda: network.eval().sample(plan, None)


WORK: dict[str, Callable[[str], Callable[[], object]]] = {
    "training": lambda kind: trained(made(kind).train()),
    "a held-out loss": lambda kind: trained(made(kind).eval()),
    "sampling": lambda kind: sampled(made(kind), kept=False),
    "sampling around given tokens": lambda kind: sampled(made(kind), kept=True),
}


def record(work: Callable[[], Callable[[], object]]) -> GpuRules:
    with fake_gpu():
        run = work()
        run()
        with gpu_rules() as rules:
            run()
    return rules


@pytest.mark.slow
@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("name", WORK)
def test_nothing_waits_for_the_gpu_or_leaves_it_and_kernels_are_those_of_16_bits(name: str, kind: str) -> None:
    rules = record(lambda: WORK[name](kind))
    assert rules.products, "nothing was multiplied"
    assert {dtype for (_, dtype) in rules.products} == {torch.bfloat16}
    assert rules.kernels
    assert rules.kernels <= FUSED_ATTENTION, rules.kernels - FUSED_ATTENTION


def test_attention_with_dropout_does_not_wait_either() -> None:
    rules = record(lambda: trained(made("bert", attention_dropout=0.1).train()))
    assert {dtype for (_, dtype) in rules.products} == {torch.bfloat16}


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kind", BACKBONES)
def test_gradients_have_the_shapes_and_dtypes_of_their_parameters(kind: str, half: bool) -> None:
    with torch.device("meta"):
        config = MaskedConfig.model_validate({"num_classes": 5, "backbone": BACKBONES[kind]})
        network = MaskedGenerator(config, LAYOUT).train()
        tokens, label = torch.zeros(B, 14, 2, dtype=torch.int64), torch.zeros(B, dtype=torch.int64)
    network = network.bfloat16() if half else network
    network.training_terms(tokens, label, label, None)["loss"].backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad.shape, parameter.grad.dtype) == (parameter.shape, parameter.dtype), name
