"""What every network does on a GPU, without one: no copies, no waiting, products in bf16, fused attention."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import cache, partial
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from model.classifier import Classifier
from model.config import (
    ClassifierConfig,
    FiniteScalarConfig,
    ImageFolderConfig,
    LookupFreeConfig,
    MaskgitVqganConfig,
    NextScaleConfig,
    NextTokenConfig,
    QuantizerConfig,
    SphericalConfig,
    VectorConfig,
    ViTConfig,
    VqganConfig,
)
from model.config.heads import DepthHeadConfig
from model.config.titok import TiTokConfig
from model.generators.next_scale import FoldedGenerator
from model.generators.next_token import NextTokenGenerator
from model.layout import TokenLayout
from model.losses.contrastive import contrastive_loss
from model.losses.tokens import folded_cross_entropy, loss_of_groups
from model.protocols import SamplingPlan
from model.quantizers.multi_scale import FoldedQuantizer
from model.tokenizers.grid import KEPT_MEAN, KEPT_SCALES
from model.tokenizers.imagefolder import ImageFolderTokenizer
from model.tokenizers.maskgit_vqgan import MaskgitVqganTokenizer
from model.tokenizers.titok import TiTokTokenizer
from model.tokenizers.vqgan import ConvolutionalTokenizer
from tests.model.fake_cuda import FUSED_ATTENTION, GpuRules, fake_gpu, gpu_rules, on_fake_gpu

VIT = ViTConfig(width=32, depth=2, heads=2, drop_path=0.2)
TOKENIZER = ImageFolderConfig(
    image_size=16,
    patch_size=4,
    encoder=VIT,
    decoder=VIT,
    scales=(1, 2, 3),
    quantizer=VectorConfig(codebook_size=64, code_dim=8),
    shared_residual_convs=2,
)
HALF = {"widths": (8, 8, 16), "blocks": (1,), "norm_groups": 4}
CONVOLUTIONAL = {"image_size": 16, "quantizer": {"codebook_size": 64, "code_dim": 8}, "encoder": HALF, "decoder": HALF}
VQGAN = VqganConfig.model_validate(CONVOLUTIONAL | {"scales": (1, 2, 4), "branches": 2, "teacher_width": 32})
MASKGIT = MaskgitVqganConfig.model_validate(CONVOLUTIONAL | {"scales": (4,)})
GENERATOR = NextScaleConfig(num_classes=5, depth=2, width=32, heads=2, drop_path=0.2)
QUANTIZERS: dict[str, QuantizerConfig] = {
    "vq": VectorConfig(codebook_size=64, code_dim=8, entropy=0.1, lookup="euclidean"),
    "lfq": LookupFreeConfig(bits=6),
    "bsq": SphericalConfig(bits=6),
    "fsq": FiniteScalarConfig(levels=(4, 5, 3)),
}
FLOAT32 = {"linear_fp32", "step", "choose", "shares", "contrastive_loss"}
"""The functions whose products are float32 in any case: the generator's input, the quantizer and a loss."""
TITOK_VIT = {"width": 128, "depth": 1, "heads": 2, "patch_size": 4}
TITOK: dict[str, object] = {
    "image_size": 16,
    "latents": 6,
    "encoder": TITOK_VIT,
    "decoder": TITOK_VIT,
    "quantizer": {"kind": "vq", "codebook_size": 32, "code_dim": 8, "lookup": "euclidean", "unit_codes": True},
    "proxy_codes": 32,
    "pixel_decoder": {"code_dim": 16, "widths": (16, 16, 32), "norm_groups": 8},
    "latent_dropout": {"kept": [2]},
}
B = 4


def longs(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.int64, device="cuda")


def train_generator(config: NextScaleConfig) -> Callable[[], object]:
    network = on_fake_gpu(lambda: FoldedGenerator(config, TOKENIZER.layout, TOKENIZER.forcing_width)).train()
    quantizer = on_fake_gpu(lambda: FoldedQuantizer(TOKENIZER)).requires_grad_(False)
    tokens, label, seed = longs(B, 14, 2), longs(B), longs(B)

    def terms() -> object:
        with torch.no_grad():
            inputs = quantizer.generator_input(tokens)
        loss, losses_BLF, hits_BLF = network(label, inputs, seed, tokens)
        assert loss.dtype == losses_BLF.dtype == torch.float32
        assert hits_BLF.dtype == torch.bool
        logits = network(label, inputs, seed)
        assert logits.dtype == torch.float32
        return loss_of_groups(losses_BLF.mean(0), TOKENIZER.layout), folded_cross_entropy(logits, tokens)

    return terms


def train_quantizer(quantizer: QuantizerConfig) -> Callable[[], object]:
    config = TOKENIZER.model_copy(update={"quantizer": quantizer})
    network = on_fake_gpu(lambda: FoldedQuantizer(config)).train()
    latent, kept = torch.zeros(B, 2, network.code_dim, 3, 3, device="cuda"), longs(B)
    mean = torch.ones(3, device="cuda")

    def terms() -> object:
        out = network(latent, kept, mean)
        assert all(loss.dtype == torch.float32 for loss in out.losses.values())
        return network.losses_of_means(out.means)

    return terms


def train_tokenizer() -> Callable[[], object]:
    network = on_fake_gpu(lambda: ImageFolderTokenizer(TOKENIZER)).train()
    image, kept, seed = torch.zeros(B, 3, 16, 16, device="cuda"), longs(B), longs(B)
    mean = torch.ones(3, device="cuda")

    def terms() -> object:
        out = network(image, {KEPT_SCALES: kept, KEPT_MEAN: mean}, seed)
        teacher = network.project_teacher(torch.zeros(B, 32, device="cuda"))
        assert all(loss.dtype == torch.float32 for loss in out.losses.values())
        return contrastive_loss(out.branch_BPC[:, -1], teacher), network.losses_of_means(out.means)

    return terms


def train_vqgan() -> Callable[[], object]:
    network = on_fake_gpu(lambda: ConvolutionalTokenizer(VQGAN)).train()
    image, kept = torch.zeros(B, 3, 16, 16, device="cuda"), longs(B)
    mean = torch.ones(3, device="cuda")

    def terms() -> object:
        out = network(image, {KEPT_SCALES: kept, KEPT_MEAN: mean})
        teacher = network.project_teacher(torch.zeros(B, 32, device="cuda"))
        assert out.losses["codebook"].dtype == torch.float32
        return contrastive_loss(out.branch_BPC[:, -1], teacher)

    return terms


def train_titok(**changes: object) -> Callable[[], object]:
    """Of stage 1, stage 2 and a Gaussian bottleneck."""
    network = on_fake_gpu(lambda: TiTokTokenizer(TiTokConfig.model_validate(TITOK | changes))).train()
    image, seed = torch.zeros(B, 3, 16, 16, device="cuda"), longs(B)
    given = {"proxy_BK": longs(B, 16), "kept_latents": longs(B)}

    def terms() -> object:
        out = network(image, given, seed)
        assert all(loss.dtype == torch.float32 for loss in out.losses.values())
        return out.reconstruction_BCHW

    return terms


def tokenize_with(make: Callable[[], ConvolutionalTokenizer]) -> Callable[[], object]:
    network = on_fake_gpu(make).eval()
    image = torch.zeros(B, 3, 16, 16, device="cuda")

    def run() -> object:
        with torch.no_grad():
            return network.detokenize(network.tokenize(image), network.prefixes[0])

    return run


def train_classifier() -> Callable[[], object]:
    config = ClassifierConfig(num_classes=5, image_size=16, widths=(8, 16), dropout=0.1)
    network = on_fake_gpu(lambda: Classifier(config)).train()
    image, seed = torch.zeros(B, 3, 16, 16, device="cuda"), longs(B)
    return lambda: network(image, seed)


def draw_samples() -> Callable[[], object]:
    network = on_fake_gpu(lambda: FoldedGenerator(GENERATOR, TOKENIZER.layout, TOKENIZER.forcing_width)).eval()
    tokenizer = on_fake_gpu(lambda: ImageFolderTokenizer(TOKENIZER)).eval()
    plan = SamplingPlan(longs(B), torch.zeros(B, 14, 2, device="cuda"), guidance=2.0, top_k=5, top_p=0.9)

    def draw() -> object:
        tokens = network.sample(plan, tokenizer.quantizer)
        with torch.no_grad():
            return tokenizer.detokenize(tokens)

    return draw


NEXT_TOKEN = NextTokenConfig(
    num_classes=5, depth=2, width=32, heads=2, head=DepthHeadConfig(depth=1, width=16, heads=2)
)
FOLDED_GRID = TokenLayout((16,), (32, 24))


def train_next_token() -> Callable[[], object]:
    network = on_fake_gpu(lambda: NextTokenGenerator(NEXT_TOKEN, FOLDED_GRID)).train()
    return lambda: network.training_terms(longs(B, 16, 2), longs(B), longs(B))


def draw_next_tokens() -> Callable[[], object]:
    network = on_fake_gpu(lambda: NextTokenGenerator(NEXT_TOKEN, FOLDED_GRID)).eval()
    uniform = torch.zeros(B, 16, 2, device="cuda")
    return lambda: network.sample(
        SamplingPlan(longs(B), uniform, guidance=2.0, top_k=5, top_p=0.9, kept_BLF=longs(B, 16, 2))
    )


def tokenize() -> Callable[[], object]:
    network = on_fake_gpu(lambda: ImageFolderTokenizer(TOKENIZER)).eval()
    image = torch.zeros(B, 3, 16, 16, device="cuda")

    def run() -> object:
        with torch.no_grad():
            return network.detokenize(network.tokenize(image), network.prefixes[1])

    return run


WORK: dict[str, Callable[[], Callable[[], object]]] = {
    "generator": lambda: train_generator(GENERATOR),
    "shared adaln": lambda: train_generator(GENERATOR.model_copy(update={"shared_adaln": True, "qk_norm": False})),
    "tokenizer": train_tokenizer,
    "classifier": train_classifier,
    "vqgan": train_vqgan,
    "titok stage 1": lambda: train_titok(target="codes"),
    "titok stage 2": lambda: train_titok(target="pixels"),
    "titok kl": lambda: train_titok(target="rgb", pixel_decoder=None, quantizer={"kind": "kl", "code_dim": 8}),
    "vqgan tokenize": lambda: tokenize_with(lambda: ConvolutionalTokenizer(VQGAN)),
    "maskgit-vqgan tokenize": lambda: tokenize_with(lambda: MaskgitVqganTokenizer(MASKGIT)),
    "sampling": draw_samples,
    "next-token": train_next_token,
    "next-token sampling": draw_next_tokens,
    "tokenize": tokenize,
    **{f"{kind} quantizer": partial(train_quantizer, config) for kind, config in QUANTIZERS.items()},
}


IN_THE_FAST_SET = {"generator", "tokenizer", "vqgan", "titok stage 2", "sampling", "next-token", "vq quantizer"}
"""One of each family and of each sort of work."""


def works(names: Iterable[str]) -> list[Any]:
    """Cases of a test."""
    return [name if name in IN_THE_FAST_SET else pytest.param(name, marks=pytest.mark.slow) for name in names]


CONVOLUTIONS_ALONE = {"classifier", "maskgit-vqgan tokenize", *(f"{kind} quantizer" for kind in QUANTIZERS)}


def second_pass(work: Callable[[], Callable[[], object]]) -> GpuRules:
    """The rules' record of a pass with warm caches: tables are made once, on the host."""
    run = work()
    run()
    with gpu_rules() as rules:
        run()
    return rules


@cache
def record(name: str) -> GpuRules:
    with fake_gpu():
        return second_pass(WORK[name])


@pytest.mark.parametrize("name", works(WORK))
def test_nothing_waits_for_the_gpu_or_leaves_it(name: str) -> None:
    assert record(name).products, "nothing was multiplied"


@pytest.mark.parametrize("name", works(WORK))
def test_products_are_bf16_where_they_need_not_be_float32(name: str) -> None:
    wide = {where for (where, dtype) in record(name).products if dtype == torch.float32}
    assert wide <= FLOAT32, wide - FLOAT32


@pytest.mark.parametrize("name", works(name for name in WORK if name not in CONVOLUTIONS_ALONE))
def test_attention_is_a_fused_kernel(name: str) -> None:
    kernels = record(name).kernels
    assert kernels
    assert kernels <= FUSED_ATTENTION, kernels - FUSED_ATTENTION


def test_flash_attn_is_asked_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling hides nothing, so its kernel is flash-attn's; the rules hold there, too."""
    calls = []

    def varlen(q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, **_: object) -> Tensor:
        assert {t.device.type for t in (q, k, v, cu_seqlens_q, cu_seqlens_k)} == {"cuda"}
        assert q.dtype == k.dtype == v.dtype == torch.bfloat16
        calls.append(q.shape)
        return torch.empty_like(q)

    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = varlen  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    with fake_gpu():
        assert not second_pass(draw_samples).kernels - FUSED_ATTENTION
    assert calls


@pytest.mark.parametrize(
    ("broken", "work"),
    [
        ("waits", lambda: torch.zeros(3, device="cuda").max().item()),
        ("waits", lambda: torch.zeros(3, device="cuda", dtype=torch.int64).bincount(minlength=3)),
        ("several devices", lambda: torch.zeros(3, device="cuda").cpu()),
        ("several devices", lambda: torch.zeros(3, 3, device="cuda")[torch.zeros(1, dtype=torch.int64)]),
    ],
)
def test_the_rules_see_what_they_are_for(broken: str, work: Callable[[], object]) -> None:
    with pytest.raises(AssertionError, match=broken):
        _under_rules(work)


def _under_rules(work: Callable[[], object]) -> None:
    with fake_gpu(), gpu_rules():
        try:
            work()
        except (DataDependentOutputException, DynamicOutputShapeException) as error:  # fake tensors refuse it, too
            raise AssertionError("waits") from error


def test_what_a_convolutional_tokenizer_keeps_for_backward_is_bf16() -> None:
    """Autocast has norms in float32: that, and the swish after it, would keep 1.6 times the bytes."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with fake_gpu():
        network = on_fake_gpu(lambda: ConvolutionalTokenizer(VQGAN)).train()
        image, latent = torch.zeros(B, 3, 16, 16, device="cuda"), torch.zeros(B, 2, 8, 4, 4, device="cuda")
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            network.encode(image)
            network.decode(latent)
        activations = [tensor for tensor in kept if tensor.ndim == 4 and len(tensor) == B]
        assert len(activations) > 50
        assert {tensor.dtype for tensor in activations} == {torch.bfloat16}


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_have_the_shapes_and_dtypes_of_their_parameters(autocast: bool) -> None:
    """Backward does not run on fake CUDA tensors, so it runs on meta ones, which no host value can be asked of."""
    with torch.device("meta"):
        generator = FoldedGenerator(GENERATOR, TOKENIZER.layout, TOKENIZER.forcing_width).train()
        tokenizer = ImageFolderTokenizer(TOKENIZER).train()
        tokens = torch.zeros(B, 14, 2, dtype=torch.int64)
        label = seed = torch.zeros(B, dtype=torch.int64)
        inputs, image = torch.zeros(B, 13, 16), torch.zeros(B, 3, 16, 16)
    if autocast:
        generator, tokenizer = generator.bfloat16(), tokenizer.bfloat16()
    loss, _, _ = generator(label, inputs, seed, tokens)
    out = tokenizer(image, {KEPT_SCALES: label}, seed)
    (loss + out.reconstruction_BCHW.float().mean() + out.losses["codebook"] + out.branch_BPC[:, -1].mean()).backward()
    for name, parameter in [*generator.named_parameters(), *tokenizer.named_parameters()]:
        assert parameter.grad is not None, name
        assert (parameter.grad.shape, parameter.grad.dtype) == (parameter.shape, parameter.dtype), name
