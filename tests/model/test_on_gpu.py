"""What only a GPU can show: its kernels against the definition, and that a step neither waits nor leaves the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from model.config import (
    GeneratorConfig,
    ImageFolderConfig,
    NextScaleConfig,
    NextTokenConfig,
    VectorConfig,
    ViTConfig,
)
from model.config.masked import BertConfig, MaskedConfig
from model.config.random_order import RandomOrderConfig
from model.families import build_generator
from model.generators.next_scale import FoldedGenerator
from model.layers import attention
from model.layers.attention import attend
from model.layers.flash_attention import flash_refusal
from model.layers.flex_attention import flex_refusal
from model.layers.visibility import GroupCausal
from model.layout import TokenLayout
from model.protocols import SamplingPlan
from model.quantizers.multi_scale import FoldedQuantizer
from model.tokenizers.imagefolder import ImageFolderTokenizer
from trainer.engine.device import state_float32

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and torch sees none"),
]
CUDA = torch.device("cuda")
VIT = ViTConfig(width=64, depth=2, heads=4)
TOKENIZER = ImageFolderConfig(
    image_size=16,
    patch_size=4,
    encoder=VIT,
    decoder=VIT,
    scales=(1, 2, 3),
    quantizer=VectorConfig(codebook_size=64, code_dim=8),
)
GENERATOR = NextScaleConfig(num_classes=5, depth=2, width=64, heads=4, drop_path=0.1)
GROUPS = [GroupCausal(tuple(k * k for k in (1, 1, 2, 3, 3, 4, 5, 6, 8, 11))), GroupCausal((1,) * 33), None]


@pytest.mark.parametrize("groups", GROUPS, ids=["scales", "causal", "all"])
@pytest.mark.parametrize("backend", ["flex", "flash_attn", "sdpa"])
def test_a_backend_computes_the_definition(backend: str, groups: GroupCausal | None) -> None:
    why = flex_refusal(CUDA) if backend == "flex" else flash_refusal(CUDA, torch.bfloat16)
    if why and backend != "sdpa":
        pytest.skip(f"this GPU has no {backend}: {why}")
    length = 40 if groups is None else groups.positions
    torch.manual_seed(0)
    tensors = [torch.randn(2, length, 4, 64, device=CUDA, dtype=torch.bfloat16) for _ in range(4)]

    def passes(name: str) -> tuple[Tensor, ...]:
        q, k, v = (tensor.clone().requires_grad_() for tensor in tensors[:3])
        out = attend(q, k, v, groups, backend=name)
        return (out, *torch.autograd.grad(out, (q, k, v), tensors[3]))

    for actual, expected in zip(passes(backend), passes("plain"), strict=True):
        assert (actual - expected).float().norm() < 0.02 * expected.float().norm()


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """torch raises where the host would wait for the GPU."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("compiled", [False, True])
def test_a_training_step_does_not_wait_for_the_gpu(compiled: bool, no_waiting: None) -> None:
    network = FoldedGenerator(GENERATOR, TOKENIZER.layout, TOKENIZER.forcing_width).to(CUDA).train()
    quantizer = FoldedQuantizer(TOKENIZER).to(CUDA).requires_grad_(False)
    if compiled:
        for block in network.blocks:
            block.compile()
    tokens = torch.randint(64, (4, 14, 2), device=CUDA)
    label = torch.tensor([0, 1, 2, 5], device=CUDA)

    def step() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            loss: Tensor = network(label, quantizer.generator_input(tokens), label, tokens)[0]
        loss.backward()
        return loss

    step()
    torch.cuda.set_sync_debug_mode("error")
    loss = step()
    torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()


def test_tokens_and_samples_are_those_of_the_cpu() -> None:
    """In float32, which is float32 there: no TF32."""
    state_float32()
    torch.manual_seed(0)
    network = FoldedGenerator(GENERATOR, TOKENIZER.layout, TOKENIZER.forcing_width).eval()
    tokenizer = ImageFolderTokenizer(TOKENIZER).eval()
    image, uniform = torch.rand(4, 3, 16, 16) * 2 - 1, torch.rand(4, 14, 2)

    def run(device: torch.device) -> tuple[Tensor, Tensor]:
        network.to(device)
        tokenizer.to(device)
        with torch.no_grad():
            tokens = tokenizer.tokenize(image.to(device))
            label = torch.arange(4, device=device)
            drawn = network.sample(SamplingPlan(label, uniform.to(device), 2.0, 10, 0.9), tokenizer.quantizer)
        return tokens.cpu(), drawn.cpu()

    for there, here in zip(run(CUDA), run(torch.device("cpu")), strict=True):
        assert (there == here).float().mean() > 0.98


def test_the_best_backend_is_the_one_that_runs() -> None:
    chosen = attention.attention_backend(CUDA, torch.bfloat16, 64, True)
    assert chosen == ("sdpa" if flex_refusal(CUDA) else "flex")


DROPPING: dict[str, GeneratorConfig] = {
    "masked": MaskedConfig(num_classes=5, backbone=BertConfig(depth=2, width=96, heads=2)),
    "random": RandomOrderConfig(num_classes=5, depth=2, width=96, heads=2, random_until=1, scan_from=2),
    "next-token": NextTokenConfig(num_classes=5, depth=2, width=96, heads=2),
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", DROPPING)
def test_dropout_of_a_training_pass_is_that_of_the_cpu(kind: str, compiled: bool) -> None:
    """The same seeds drop the same elements, by kernels that compute the numbers, and again in backward."""
    state_float32()
    torch.manual_seed(0)
    network: Any = build_generator(DROPPING[kind], TokenLayout((16,), (64,)), None).train()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.05)
    tokens, seed = torch.randint(64, (4, 16, 1)), torch.tensor([3, -8, 2**40, 1])

    def run(device: torch.device) -> list[Tensor]:
        network.to(device)
        if compiled and device == CUDA:
            for block in getattr(network, "backbone", network).blocks:
                block.compile()
        label = torch.arange(4, device=device)
        loss = network.training_terms(tokens.to(device), label, seed.to(device))["loss"]
        found = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
        return [loss.detach().cpu(), *(each.cpu() for each in found if each is not None)]

    expected = run(torch.device("cpu"))
    for there, here in zip(run(CUDA), expected, strict=True):
        assert (there - here).norm() <= 1e-3 * here.norm() + 1e-7
