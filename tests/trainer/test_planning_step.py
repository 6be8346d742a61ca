"""A whole step, traced: depth continued exactly, micro-batches, networks that train each other, a d16 in a band."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cluster.config.loading import load_config
from cluster.stages.planning import stage_configs
from data_pipeline.config import ReadingConfig, TokensConfig
from model.config import ImageFolderConfig, NextScaleConfig, SemanticConfig, VectorConfig, ViTConfig
from model.config.masked import MaskedConfig
from trainer.config import (
    GeneratorStageConfig,
    TeacherConfig,
    TokenizerLossConfig,
    TokenizerStageConfig,
    TrainerConfig,
)
from trainer.engine.batches import Batch
from trainer.engine.engine import Engines
from trainer.engine.scalars import Scalars
from trainer.engine.trainable import Trainable
from trainer.planning.blank_stages import BlankStage, StageConfigs
from trainer.planning.devices import find_device
from trainer.planning.fake_device import fake_device
from trainer.planning.forward_trace import trace_tokenizing
from trainer.planning.roofline import STANDARD
from trainer.planning.step_cost import step_cost
from trainer.planning.step_trace import _trace, trace_micro_batch

VIT = ViTConfig(width=32, depth=1, heads=2)
TOKENIZER = ImageFolderConfig(
    image_size=16,
    patch_size=4,
    encoder=VIT,
    decoder=VIT,
    scales=(1, 2),
    dropout_min_scales=1,
    quantizer=VectorConfig(codebook_size=16, code_dim=4),
)


def configs(depth: int = 7, micro_batch: int | None = None) -> StageConfigs:
    trainer = TrainerConfig(steps=1, global_batch=8, precision="bf16", micro_batch=micro_batch)
    generator = NextScaleConfig(num_classes=4, depth=depth, width=32, heads=2, drop_path=0.1)
    return StageConfigs(
        TokenizerStageConfig(model=TOKENIZER, loss=TokenizerLossConfig(), trainer=trainer),
        GeneratorStageConfig(model=generator, trainer=trainer),
        None,
        TokensConfig(),
        ReadingConfig(),
    )


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_few_blocks_continued_are_all_blocks(checkpointing: bool) -> None:
    short, full = (
        trace_micro_batch(
            *("train-generator", configs(depth=6), 2, "cuda"), checkpointing=checkpointing, warm=True, short=short
        )
        for short in (True, False)
    )
    assert short.held == full.held
    assert short.weights == full.weights
    for few, all_of_them in ((short.kernels, full.kernels), (short.fused, full.fused)):
        assert sum(few.values()) == sum(all_of_them.values())
        for of in ("bytes", "flops", "exact_flops"):
            sums = [sum(count * getattr(kernel, of) for kernel, count in found.items()) for found in (few, all_of_them)]
            assert sums[0] == sums[1]


@pytest.mark.slow
def test_a_deep_network_is_not_traced_whole() -> None:
    deep = trace_micro_batch("train-generator", configs(depth=200), 2, "cuda", warm=True, short=True)
    assert len(deep.kernels) < 200
    assert sum(deep.kernels.values()) > 200 * 20


@pytest.mark.slow
def test_blocks_that_differ_are_traced_whole() -> None:
    """In the last half of a U-ViT's blocks long skips end, each in one more product."""
    backbone = {"kind": "uvit", "depth": 8, "width": 32, "heads": 2}
    model = MaskedConfig.model_validate({"num_classes": 4, "backbone": backbone})
    section = GeneratorStageConfig(model=model, trainer=TrainerConfig(steps=1, global_batch=8, precision="bf16"))
    given = replace(configs(), generator=section)
    traced = trace_micro_batch("train-generator", given, 2, "cuda", warm=True, short=True)
    flops = sum(count * kernel.exact_flops for kernel, count in traced.kernels.items())
    blocks, skips, head, slots = 9 * 12 * 32**2, 4 * 2 * 32**2, 2 * 16 * 32, TOKENIZER.layout.positions + 1
    attention = 9 * 4 * slots**2 * 32 * (1 + 2.5)
    assert flops == pytest.approx(2 * (6 * (blocks + skips) * slots + attention + 6 * head * (slots - 1)), rel=0.02)


class Pair(nn.Module):
    """One layer, so that a generator can learn through a critic."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x)
        return found


class Adversaries:
    """A generator learns through a frozen critic, then the critic from what the generator made."""

    exported = "generator"
    samples = None

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.device("meta"):
            self.trainables = {name: Trainable(Pair()) for name in ("generator", "critic")}

    def blank_batch(self, size: int) -> Batch:
        return Batch(seed_B=torch.zeros(size, 4, device=self._device))

    def step(self, micro_batches: Sequence[Batch], engines: Engines, rate: float) -> Scalars:
        generator, critic = engines["generator"], engines["critic"]
        for batch in micro_batches:
            assert batch.seed_B is not None
            with critic.frozen():
                made = generator.forward(partial(generator.module, batch.seed_B))
                judged = critic.through(partial(critic.module, made))
                generator.accumulate(judged.float().mean())
            of_made = critic.forward(partial(critic.module, made.detach()))
            critic.accumulate(of_made.float().square().mean())
        for engine in engines.values():
            engine.update(rate)
        return Scalars.of({"loss": torch.zeros(())})


def test_two_networks_that_train_each_other_are_traced_as_their_stage_steps() -> None:
    with fake_device("cuda") as fake:
        stage: Any = Adversaries(fake.device)
        for trainable in stage.trainables.values():
            fake.fill(trainable.module)
        found = _trace(BlankStage(stage), fake, 5, accumulates=False, warm=False)
    product = 2 * 5 * 4 * 4
    flops = dict.fromkeys(("forward", "backward"), 0.0)
    for kernel, count in found.kernels.items():
        flops[kernel.phase] += count * kernel.flops
    # forward: generator, critic through which it learns, critic alone. Backward: through the critic to what was made,
    # the generator's weights, the critic's weights.
    assert flops == {"forward": 3 * product, "backward": 3 * product}


@pytest.mark.slow
def test_what_previews_all_micro_batches_does_that_ahead() -> None:
    config = load_config("configs/quickstart.yaml").with_classes(10)
    found = stage_configs(config, "train-tokenizer")
    once, twice = (
        trace_micro_batch("train-tokenizer", found, 4, "cuda", accumulates=accumulates) for accumulates in (False, True)
    )
    assert "ahead" not in {kernel.phase for kernel in once.kernels}
    ahead = sum(count * kernel.flops for kernel, count in twice.kernels.items() if kernel.phase == "ahead")
    whole = sum(count * kernel.flops for kernel, count in once.kernels.items() if kernel.phase == "forward")
    assert 0.2 * whole < ahead < 0.8 * whole  # the encoder, without the decoder


def test_tokenizing_is_traced_without_a_backward_pass() -> None:
    found = trace_tokenizing(configs(), 3, "cuda")
    assert {operation.phase for operation in found.operations} == {"forward"}
    patches = 2 * 3 * 16 * (3 * 4 * 4) * 32  # one product of the encoder's
    assert patches in {operation.flops for operation in found.operations}


@pytest.mark.slow
def test_a_d16_is_predicted_between_its_arithmetic_and_three_times_that() -> None:
    """Matrix products at the assumed share of the peak are the floor; elementwise work comes on top."""
    asks_nobody = [f"inputs.{name}=null" for name in ("images", "tokens", "tokenizer")]
    config = load_config("configs/imagefolder/generator-d16.yaml", asks_nobody)
    found = stage_configs(config, "train-generator")
    trace = trace_micro_batch("train-generator", found, 96, "cuda", warm=True, short=True)
    layout, width = ImageFolderConfig().layout, 1024
    blocks = 16 * 12 * width * width * layout.positions  # qkv, projection, two of the MLP
    head = layout.positions * width * 2 * 4096
    conditions = (16 * 6 + 2) * width * width
    products = 3 * 2 * (blocks + head + conditions)
    assert trace.exact_flops / 96 == pytest.approx(products, rel=0.04)  # and attention, and the quantizer's input
    device = find_device("H100 SXM")
    assert device is not None
    trainer = found.section("train-generator").trainer.model_copy(update={"global_batch": 96})
    cost = step_cost(trace, trainer, device, STANDARD)
    floor = 96 * products / (0.65 * device.bf16)
    assert floor < cost.seconds < 3 * floor
    assert trace.syncs == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "image", "patch"),
    [({}, 518, 14), ({"image_size": 256, "patch_size": 16}, 256, 16)],
    ids=["own", "paper"],
)
def test_a_teacher_costs_what_its_sizes_say(sizes: dict[str, int], image: int, patch: int) -> None:
    """On paper: 12 blocks of width 768, each 12 C² per token in products and 2 C per pair of tokens in attention."""
    trainer = TrainerConfig(steps=1, global_batch=2)
    teacher = TeacherConfig(timm="vit_base_patch14_dinov2.lvd142m", trainer=trainer, **sizes)
    model = TOKENIZER.model_copy(update={"teacher_width": 768})
    kernels = []
    for semantic in (None, SemanticConfig()):
        section = TokenizerStageConfig(model=model, loss=TokenizerLossConfig(semantic=semantic), trainer=trainer)
        found = StageConfigs(section, None, teacher, TokensConfig(), ReadingConfig())
        kernels.append(trace_micro_batch("train-tokenizer", found, 2, "cuda").exact_flops / 2)
    patches, width = (image // patch) ** 2, 768
    tokens = patches + 1
    expected = 2 * (12 * (12 * width**2 * tokens + 2 * width * tokens**2) + patches * 3 * patch**2 * width)
    assert kernels[1] - kernels[0] == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_families_of_another_package_are_planned() -> None:
    toys = Path(__file__).parents[1] / "toy"
    code = (
        "from data_pipeline.config import ReadingConfig, TokensConfig\n"
        "from trainer.config import GeneratorStageConfig, TrainerConfig\n"
        "from toy_families import ToyGeneratorConfig, ToyTokenizerConfig\n"
        "from trainer.planning.blank_stages import StageConfigs\n"
        "from trainer.planning.step_trace import trace_micro_batch\n"
        "section = GeneratorStageConfig(model=ToyGeneratorConfig(num_classes=3), "
        "trainer=TrainerConfig(steps=1, global_batch=2))\n"
        "found = StageConfigs(None, section, None, TokensConfig(), ReadingConfig(), ToyTokenizerConfig(image_size=8))\n"
        "print(trace_micro_batch('train-generator', found, 2, 'cuda').exact_flops > 0)\n"
    )
    paths = os.pathsep.join([str(toys), str(toys.parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "True", done.stderr


ADVERSARIAL: dict[str, Any] = {
    "discriminator": {"kind": "dino", "network": "vit_tiny_patch16_224?img_size=32", "group": 2},
    "adaptive": True,
    "lecam": {"of": "means"},
    "augment": {"blur_steps": 9},
}


@pytest.mark.slow
@pytest.mark.parametrize("accumulates", [False, True])
def test_an_adversarial_step_is_traced_without_weights_and_waits_for_no_device(accumulates: bool) -> None:
    trainer = TrainerConfig(steps=9, global_batch=2)
    model = ImageFolderConfig(
        image_size=32,
        patch_size=8,
        scales=(1, 4),
        dropout_min_scales=1,
        quantizer=VectorConfig(codebook_size=16, code_dim=8, entropy=0.1),
        encoder=VIT,
        decoder=VIT,
    )
    found = []
    for loss in ({}, {"perceptual": [{"kind": "lpips"}], "adversarial": ADVERSARIAL}):
        section = TokenizerStageConfig(model=model, loss=TokenizerLossConfig.model_validate(loss), trainer=trainer)
        configs = StageConfigs(section, None, None, TokensConfig(), ReadingConfig())
        found.append(trace_micro_batch("train-tokenizer", configs, 2, "cuda", accumulates=accumulates, warm=True))
    alone, against = found
    assert alone.syncs == against.syncs == ()
    # A head for each of 5 depths: 1x1 and 9x1 convolutions of width 192 with a gain and a shift each, and a logit.
    head = (192**2 + 192) + (9 * 192**2 + 192) + 4 * 192 + (192 + 1)
    assert against.parameters - alone.parameters == 5 * head
    frozen = 5_500_000 + 14_700_000  # the ViT, and VGG16's convolutions
    assert against.frozen_bytes == pytest.approx(4 * frozen, rel=0.05)
    assert against.exact_flops > 2 * alone.exact_flops
