"""The real networks under every ZeRO stage, with all weights partitioned under stage 3, and blocks computed twice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from data_pipeline.errors import UsageError
from model.classifier import Classifier
from model.config import ClassifierConfig, ImageFolderConfig, NextScaleConfig, VectorConfig, ViTConfig
from model.config.masked import MaskedConfig
from model.config.titok import PixelDecoderConfig, TiTokConfig, TiTokViTConfig
from model.generators.masked import MaskedGenerator
from model.generators.next_scale import FoldedGenerator
from model.losses.contrastive import contrastive_loss
from model.losses.tokens import folded_cross_entropy
from model.tokenizers.imagefolder import ImageFolderTokenizer
from model.tokenizers.titok import TiTokTokenizer
from tests.trainer.gloo import run_gloo
from tests.trainer.small_training import settings
from trainer.engine.blocks import compile_blocks, recompute_blocks
from trainer.engine.deepspeed_engine import DeepSpeedEngine, prepare_deepspeed
from trainer.engine.engine import train
from trainer.engine.scalars import Terms
from trainer.engine.trainable import Trainable

pytestmark = pytest.mark.slow

STAGES = (0, 1, 2, 3)
VIT = ViTConfig(width=16, depth=2, heads=2, drop_path=0.2)
TOKENIZER = ImageFolderConfig(
    image_size=28,
    patch_size=14,
    encoder=VIT,
    decoder=VIT,
    quantizer=VectorConfig(codebook_size=32, code_dim=8),
    scales=(1, 2),
    dropout_min_scales=1,
    teacher_width=12,
)


class Generating(nn.Module):
    """The generator on random tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.network = FoldedGenerator(
            NextScaleConfig(num_classes=1000, depth=2, width=16, heads=2, drop_path=0.2),
            TOKENIZER.layout,
            TOKENIZER.forcing_width,
        )

    def forward(self, seed: int) -> Terms:
        layout = TOKENIZER.layout
        generator = torch.Generator().manual_seed(seed)
        tokens_BLF = torch.randint(32, (4, layout.positions, layout.folds), generator=generator)
        later = layout.positions - layout.groups[0]
        input_BLC = torch.randn(4, later, TOKENIZER.forcing_width, generator=generator)
        logits_BLFV = self.network(torch.arange(4), input_BLC, seed * 4 + torch.arange(4))
        return {"loss": folded_cross_entropy(logits_BLFV, tokens_BLF)[0]}


class Unmasking(nn.Module):
    """A masked generator on random tokens of two folds; what it knows of the step is of all workers' seeds."""

    def __init__(self, backbone: dict[str, Any]) -> None:
        super().__init__()
        config = MaskedConfig.model_validate({"num_classes": 4, "backbone": backbone})
        self.network = MaskedGenerator(config, TOKENIZER.layout)

    def forward(self, seed: int) -> Terms:
        layout = TOKENIZER.layout
        generator = torch.Generator().manual_seed(seed)
        tokens_BLF = torch.randint(32, (4, layout.positions, layout.folds), generator=generator)
        of_step = self.network.of_step(0, seed // 2 * 8 + torch.arange(8))
        return self.network.training_terms(tokens_BLF, torch.arange(4), seed * 4 + torch.arange(4), None, of_step)


class Tokenizing(nn.Module):
    """The tokenizer on random images, with the semantic loss over all workers' images."""

    def __init__(self) -> None:
        super().__init__()
        self.network = ImageFolderTokenizer(TOKENIZER)

    def forward(self, seed: int) -> Terms:
        generator = torch.Generator().manual_seed(seed)
        image_BCHW = torch.rand(4, 3, 28, 28, generator=generator) * 2 - 1
        target_BD = torch.randn(4, 12, generator=generator)
        output = self.network(image_BCHW, seed_B=seed * 4 + torch.arange(4))
        sides = (output.branch_BPC[:, -1].float(), self.network.project_teacher(target_BD).float())
        gather = torch.distributed.nn.all_gather
        student, teacher = (torch.cat(gather(side)) for side in sides)
        pixels = (output.reconstruction_BCHW.float() - image_BCHW).square().mean()
        quantized = output.losses["codebook"] + output.losses["commitment"]
        return {"loss": pixels + quantized + contrastive_loss(student, teacher)}


class Painting(nn.Module):
    """TiTok, whose encoder learns in stage 1 and is frozen in stage 2, on random images and codes of a proxy."""

    def __init__(self, target: str) -> None:
        super().__init__()
        vit = TiTokViTConfig(width=16, depth=2, heads=2, patch_size=4)
        self.network = TiTokTokenizer(
            TiTokConfig(
                image_size=16,
                latents=4,
                encoder=vit,
                decoder=vit,
                quantizer=VectorConfig(codebook_size=32, code_dim=8, lookup="euclidean", unit_codes=True),
                target=target,
                proxy_codes=32,
                pixel_decoder=PixelDecoderConfig(code_dim=8, widths=(8, 8, 8), blocks=(1,), norm_groups=2),
            )
        )

    def forward(self, seed: int) -> Terms:
        generator = torch.Generator().manual_seed(seed)
        image_BCHW = torch.rand(4, 3, 16, 16, generator=generator) * 2 - 1
        proxy_BK = torch.randint(32, (4, 16), generator=generator)
        output = self.network(image_BCHW, {"proxy_BK": proxy_BK}, seed * 4 + torch.arange(4))
        if output.losses:
            return {"loss": torch.stack(list(output.losses.values())).sum()}
        return {"loss": (output.reconstruction_BCHW.float() - image_BCHW).square().mean()}


KINDS: dict[str, Callable[[], nn.Module]] = {"generator": Generating, "tokenizer": Tokenizing}
BACKBONE = {"depth": 2, "width": 16, "heads": 2, "dropout": 0.1, "attention_dropout": 0.1}
MASKED = {kind: partial(Unmasking, BACKBONE | {"kind": kind}) for kind in ("bert", "uvit")}
TITOKS = {"titok stage 1": partial(Painting, "codes"), "titok stage 2": partial(Painting, "pixels")}


def curve(kind: str, stage: int, bf16: bool, twice: bool) -> list[float]:
    torch.manual_seed(0)
    module = KINDS[kind]()
    if twice:
        recompute_blocks(module)
    precision = "bf16" if bf16 else "fp32"
    config = settings(zero_stage=stage, learning_rate=1e-3, global_batch=8, precision=precision)
    engine = DeepSpeedEngine(Trainable(module), config, torch.device("cpu"))
    losses = []
    for step in range(3):
        terms = train(engine, [partial(module.forward, step * 2 + dist.get_rank())], 1e-3)
        losses.append(float(terms["loss"]))
    ends = ("head.weight", "quantizer.codebook", "to_logits.weight")
    name = next(name for name, each in module.named_parameters() if each.requires_grad and name.endswith(ends))
    return [*losses, float(engine.whole(name).double().sum())]


Case = tuple[str, int, bool, bool]
CASES: list[Case] = [
    (kind, stage, bf16, twice)
    for kind in KINDS
    for bf16 in (False, True)
    for stage in STAGES
    for twice in ((False, True) if stage in {2, 3} else (False,))
]
CASES += [(kind, stage, False, stage == 3) for kind in TITOKS for stage in (1, 3)]
CASES += [(kind, stage, False, stage == 3) for kind in MASKED for stage in (1, 3)]
KINDS |= TITOKS | MASKED


def curves(cases: list[Case]) -> list[list[float]]:
    import torch.distributed.nn  # the tokenizer's gathering

    prepare_deepspeed(torch.device("cpu"))
    return [curve(*case) for case in cases]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, list[float]]:
    return dict(zip(CASES, run_gloo(2, tmp_path_factory.mktemp("networks"), curves, CASES)[0], strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}-zero{c[1]}{'-bf16' * c[2]}{'-twice' * c[3]}")
def test_every_stage_trains_every_network_alike(found: dict[Case, list[float]], case: Case) -> None:
    kind, _, bf16, _ = case
    assert found[case] == pytest.approx(found[kind, 1, bf16, False], rel=1e-3 if bf16 else 1e-5)


def compiled(bf16: bool) -> tuple[list[float], list[float]]:
    prepare_deepspeed(torch.device("cpu"))
    plain = curve("generator", 2, bf16, False)
    KINDS["compiled"] = Compiled
    return plain, curve("compiled", 2, bf16, False)


class Compiled(Generating):
    """The same, its blocks compiled."""

    def __init__(self) -> None:
        super().__init__()
        compile_blocks(self)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
def test_compiled_blocks_train_alike(tmp_path: Path) -> None:
    plain, found = run_gloo(1, tmp_path, compiled, False)[0]
    assert found == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("changes", [{"zero_stage": 3}, {"zero_stage": 2, "activation_checkpointing": True}])
def test_compile_is_refused_where_torch_cannot_trace(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="compile works with zero_stage 0 to 2"):
        settings(compile=True, **changes)


def test_a_network_without_blocks_has_none_to_compute_twice() -> None:
    with pytest.raises(UsageError, match="Classifier has no blocks"):
        recompute_blocks(Classifier(ClassifierConfig(num_classes=10, widths=(8,))))
