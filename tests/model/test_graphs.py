"""torch.compile finds one graph in each block, and one in each network: nothing in them sends it back to Python."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from model.config import (
    FiniteScalarConfig,
    GeneratorConfig,
    ImageFolderConfig,
    NextScaleConfig,
    NextTokenConfig,
    QuantizerConfig,
    SphericalConfig,
    VectorConfig,
    ViTConfig,
    VqganConfig,
)
from model.config.masked import BertConfig, MaskedConfig, UViTConfig
from model.config.random_order import RandomOrderConfig
from model.families import build_generator
from model.generators.next_scale import Block, FoldedGenerator
from model.layers import attention
from model.layers.convolutions import GridAttention, ResidualBlock
from model.layers.visibility import GroupCausal
from model.layers.vit import ImageBlock, build_trunk
from model.layout import TokenLayout
from model.quantizers.multi_scale import FoldedQuantizer
from model.tokenizers.grid import KEPT_SCALES
from model.tokenizers.imagefolder import ImageFolderTokenizer
from model.tokenizers.vqgan import ConvolutionalTokenizer

VIT = ViTConfig(width=32, depth=2, heads=2, drop_path=0.2)
TOKENIZER = ImageFolderConfig(
    image_size=16,
    patch_size=4,
    encoder=VIT,
    decoder=VIT,
    scales=(1, 3),
    dropout_min_scales=1,
    quantizer=VectorConfig(codebook_size=64, code_dim=8),
    shared_residual_convs=2,
)
GENERATOR = NextScaleConfig(num_classes=5, depth=2, width=32, heads=2, drop_path=0.2)
B = 2


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def graphs(module: nn.Module, *arguments: object) -> int:
    """How many graphs a pass through the compiled module has; a break in one is an error."""
    counter = CompileCounterWithBackend("eager")
    torch.compile(module, backend=counter, fullgraph=True)(*arguments)
    return int(counter.frame_count)


def block_arguments(block: Block, device: str) -> tuple[Tensor, tuple[Tensor, ...], GroupCausal, None, Tensor]:
    x, condition = torch.zeros(B, 14, 32, device=device), torch.zeros(B, 32, device=device)
    with torch.no_grad():
        modulation = block.modulation(condition, None)
    return x, modulation, GroupCausal((1, 4, 9)), None, torch.full((2, B), 0.5, device=device)


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize(
    "path",
    ["cpu", pytest.param("cpu bf16", marks=pytest.mark.slow), "sdpa", pytest.param("flex", marks=pytest.mark.slow)],
)
def test_a_block_of_the_generator_is_one_graph(path: str, qk_norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU; with torch's kernel as on a GPU (of meta tensors); and with FlexAttention, forward only on a CPU."""
    device = "meta" if path == "sdpa" else "cpu"
    block = Block(GENERATOR.model_copy(update={"qk_norm": qk_norm}), 0.1).to(device).train()
    arguments = block_arguments(block, device)
    if path == "flex":
        monkeypatch.setattr(attention, "_chosen", lambda *_: "flex")
    with torch.set_grad_enabled(path != "flex"), torch.autocast("cpu", torch.bfloat16, enabled=path == "cpu bf16"):
        assert graphs(block, *arguments) == 1


@pytest.mark.parametrize("bf16", [False, True])
def test_a_block_of_a_vision_transformer_is_one_graph(bf16: bool) -> None:
    block = build_trunk(VIT, 16, 4).train().blocks[1]
    assert isinstance(block, ImageBlock)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        assert graphs(block, torch.zeros(B, 5, 32), torch.full((2, B), 0.5)) == 1


@pytest.mark.parametrize("block", [ResidualBlock(8, 16, 4, shortcut_of_branch=True), GridAttention(8, 4)])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_block_of_a_convolutional_tokenizer_is_one_graph(block: nn.Module, bf16: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        assert graphs(block, torch.zeros(B, 8, 4, 4)) == 1


@pytest.mark.slow
def test_a_convolutional_tokenizers_training_pass_is_one_graph() -> None:
    half = {"widths": (8, 16), "blocks": (1,), "norm_groups": 4}
    network = ConvolutionalTokenizer(VqganConfig(image_size=7, scales=(1, 4), encoder=half, decoder=half)).train()
    assert graphs(network, torch.zeros(B, 3, 7, 7)) == 1


@pytest.mark.slow
def test_a_generators_training_pass_is_one_graph() -> None:
    network = FoldedGenerator(GENERATOR, TOKENIZER.layout, TOKENIZER.forcing_width).train()
    tokens, label = torch.zeros(B, 10, 2, dtype=torch.int64), torch.zeros(B, dtype=torch.int64)
    assert graphs(network, label, torch.zeros(B, 9, 16), label, tokens) == 1


@pytest.mark.slow
def test_a_tokenizers_training_pass_is_one_graph() -> None:
    network, kept = ImageFolderTokenizer(TOKENIZER).train(), torch.full((B,), 2)
    assert graphs(network, torch.zeros(B, 3, 16, 16), {KEPT_SCALES: kept}, kept) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "quantizer", [SphericalConfig(bits=6), FiniteScalarConfig(levels=(4, 5, 3))], ids=lambda config: config.kind
)
def test_a_training_pass_of_other_quantizers_is_one_graph(quantizer: QuantizerConfig) -> None:
    network = FoldedQuantizer(TOKENIZER.model_copy(update={"quantizer": quantizer, "branches": 1})).train()
    assert graphs(network, torch.zeros(B, 1, network.code_dim, 3, 3), torch.full((B,), 2)) == 1


@pytest.mark.slow
def test_a_compiled_pass_has_the_loss_and_gradients_of_an_eager_one() -> None:
    """Compiled code takes the plain formulas, where eager code has its gradients written out."""
    torch.manual_seed(0)
    network = FoldedGenerator(GENERATOR, TOKENIZER.layout, TOKENIZER.forcing_width).train()
    tokens, label = torch.randint(64, (B, 10, 2)), torch.tensor([1, 4])
    arguments = label, torch.randn(B, 9, 16), torch.tensor([3, 9]), tokens
    names, parameters = zip(*network.named_parameters(), strict=True)
    eager = network(*arguments)[0]
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)(*arguments)[0]
    torch.testing.assert_close(compiled, eager)
    expected = torch.autograd.grad(eager, parameters)
    for name, actual, wanted in zip(names, torch.autograd.grad(compiled, parameters), expected, strict=True):
        torch.testing.assert_close(actual, wanted, msg=lambda text, name=name: f"{name}: {text}")


BLOCKS: dict[str, GeneratorConfig] = {
    "masked": MaskedConfig(num_classes=5, backbone=BertConfig(depth=1, width=32, heads=2)),
    "masked, long skips": MaskedConfig(
        num_classes=5, backbone=UViTConfig(depth=2, width=32, heads=2, dropout=0.1, attention_dropout=0.1)
    ),
    "random": RandomOrderConfig(num_classes=5, depth=1, width=32, heads=2, random_until=1, scan_from=2),
    "next-token": NextTokenConfig(num_classes=5, depth=1, width=32, heads=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_with_dropout_is_one_graph(name: str, bf16: bool) -> None:
    """Each block as the network calls it in a training pass; a break in its graph is an error."""
    network: Any = build_generator(BLOCKS[name], TokenLayout((9,), (11,)), None).train()
    counters = []
    blocks = network.backbone.blocks if hasattr(network, "backbone") else network.blocks
    for block in blocks:
        counters.append(CompileCounterWithBackend("aot_eager"))
        block.compile(backend=counters[-1], fullgraph=True)
    seed_B = torch.arange(B)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = network.training_terms(torch.zeros(B, 9, 1, dtype=torch.int64), seed_B, seed_B)["loss"]
    loss.backward()
    assert [int(counter.frame_count) for counter in counters] == [1] * len(blocks)
