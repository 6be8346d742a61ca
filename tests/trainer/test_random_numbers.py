"""What a network draws at random is a function of seed and position: not of workers, micro-batches or restarts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline.config import ReadingConfig
from data_pipeline.loading.loader import ImageBatch, TokenBatch
from data_pipeline.order.permutations import network_seeds, step_positions
from model.config import ClassifierConfig, ImageFolderConfig, NextScaleConfig, VectorConfig, ViTConfig
from model.generators.next_scale import FoldedGenerator
from model.quantizers.multi_scale import FoldedQuantizer
from tests.trainer.gloo import run_gloo
from trainer.config import (
    ClassifierStageConfig,
    GeneratorStageConfig,
    TokenizerLossConfig,
    TokenizerStageConfig,
    TrainerConfig,
)
from trainer.engine.blocks import recompute_blocks
from trainer.engine.deepspeed_engine import DeepSpeedEngine, prepare_deepspeed
from trainer.job import StageSection, TrainJob
from trainer.stages import build_stage, classifier, generator, tokenizer
from trainer.stages.stage import Stage

Changes = tuple[tuple[str, Any], ...]
"""Settings of a trainer and their values."""
Case = tuple[str, Changes]
"""A stage and what is set of its trainer."""

BATCH, SIZE, STEPS = 8, 16, 4
VIT = ViTConfig(width=8, depth=3, heads=2, drop_path=0.5, layer_scale=None)
TOKENIZER = ImageFolderConfig(
    image_size=SIZE,
    patch_size=4,
    scales=(1, 2),
    dropout_min_scales=1,
    quantizer=VectorConfig(codebook_size=8, code_dim=4),
    quantizer_dropout=0.5,
    encoder=VIT,
    decoder=VIT,
)
GENERATOR = NextScaleConfig(num_classes=4, depth=3, width=16, heads=2, drop_path=0.5, label_dropout=0.3)


class NoShards:
    """A data set that is not read."""

    layout = TOKENIZER.layout

    def __init__(self, *_: Any, **__: Any) -> None: ...


class Drawn:
    """Batches that are drawn by position, in place of a data set."""

    keys = np.array([b"0"])

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def positions(self, step: int, rank: int, world: int) -> Any:
        return step_positions(step, BATCH, rank, world)


class Images(Drawn):
    def batch(self, step: int, rank: int, world: int) -> ImageBatch:
        position_B = self.positions(step, rank, world)
        image = [np.random.default_rng(int(p)).integers(0, 256, (3, SIZE, SIZE)) for p in position_B]
        return ImageBatch(np.stack(image).astype(np.uint8), position_B % 4, position_B, position_B)


class Tokens(Drawn):
    def batch(self, step: int, rank: int, world: int) -> TokenBatch:
        position_B, layout = self.positions(step, rank, world), TOKENIZER.layout
        shape = (layout.positions, layout.folds)
        drawn = np.stack([np.random.default_rng(int(p)).integers(0, 8, shape) for p in position_B])
        return TokenBatch(drawn.astype(np.uint16), position_B % 4, position_B, position_B)


def quantizer(*_: Any) -> FoldedQuantizer:
    torch.manual_seed(1)
    return FoldedQuantizer(TOKENIZER).eval().requires_grad_(False)


def section(stage: str, **changes: Any) -> StageSection:
    values = {"steps": STEPS, "global_batch": BATCH}
    trainer = TrainerConfig.model_validate(values | changes)
    if stage == "generator":
        return GeneratorStageConfig(model=GENERATOR, trainer=trainer)
    if stage == "tokenizer":
        return TokenizerStageConfig(model=TOKENIZER, loss=TokenizerLossConfig(), trainer=trainer)
    model = ClassifierConfig(image_size=SIZE, num_classes=4, widths=(8, 16), dropout=0.5)
    return ClassifierStageConfig(model=model, trainer=trainer)


def check_blank_batch(stage: Stage) -> None:
    """What is traced or timed without a data set has the shapes and number formats of a real batch."""
    real, blank = stage.batch(0), stage.blank_batch(BATCH // dist.get_world_size())
    shapes = [
        {name: (each.shape, each.dtype) for name, each in vars(batch).items() if torch.is_tensor(each)}
        for batch in (real, blank)
    ]
    assert shapes[0] == shapes[1]


def curve(job: TrainJob) -> list[float]:
    """Losses of a stage, averaged over ranks. Ranks and calls differ in torch's generator."""
    config = job.section.trainer
    torch.manual_seed(job.seed)
    stage = build_stage(job, torch.device("cpu"))
    check_blank_batch(stage)
    trainable = stage.trainables[stage.exported]
    if config.activation_checkpointing:
        recompute_blocks(trainable.module)
    engine = DeepSpeedEngine(replace(trainable, no_decay=set()), config, torch.device("cpu"))
    torch.seed()
    losses = []
    for step in range(STEPS):
        parts = stage.batch(step).split(engine.accumulation)
        loss = stage.step(parts, {stage.exported: engine}, 1e-2)["loss"].clone()
        dist.all_reduce(loss)
        losses.append(float(loss) / dist.get_world_size())
    return losses


FAKES: list[tuple[Any, str, Any]] = [
    (classifier, "open_images", NoShards),
    (classifier, "ImageBatches", Images),
    (tokenizer, "open_images", NoShards),
    (tokenizer, "ImageBatches", Images),
    (generator, "open_tokens", NoShards),
    (generator, "TokenBatches", Tokens),
    (generator, "load_forcing", quantizer),
]


def curves(cases: list[Case]) -> list[list[float]]:
    """Losses of each stage with each change of its trainer."""
    prepare_deepspeed(torch.device("cpu"))
    inputs = dict.fromkeys(("images", "tokens", "tokenizer"), "")
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for module, name, fake in FAKES:
            patch.setattr(module, name, fake)
        for stage, changes in cases:
            settings = section(stage, **dict(changes))
            found.append(curve(TrainJob(stage, "", settings, 3, "squash", ReadingConfig(), inputs, {}, {})))
    return found


STAGES = ("judge", "tokenizer", "generator")
PLAIN: Changes = (("micro_batch", None),)
TWICE: Changes = (("activation_checkpointing", True),)
WORLDS: dict[int, list[Case]] = {
    1: [(stage, changes) for stage in STAGES for changes in (PLAIN, (("micro_batch", 2),))]
    + [(stage, TWICE) for stage in STAGES[1:]],
    2: [
        (stage, (("micro_batch", micro), ("zero_stage", zero))) for stage in STAGES for micro, zero in ((1, 1), (4, 3))
    ],
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, Case], list[float]]:
    """Losses by number of workers and case."""
    folder = tmp_path_factory.mktemp("curves")
    return {
        (world, case): losses
        for world, cases in WORLDS.items()
        for case, losses in zip(cases, run_gloo(world, folder, curves, cases)[0], strict=True)
    }


SPLITS = [(world, case) for world, cases in WORLDS.items() for case in cases if (world, case[1]) != (1, PLAIN)]


def name_of(split: tuple[int, Case]) -> str:
    world, (stage, changes) = split
    return "-".join([stage, f"{world}-workers", *(f"{name}-{value}" for name, value in changes)])


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS, ids=name_of)
def test_dropout_and_stochastic_depth_do_not_depend_on_how_a_batch_is_split(
    found: dict[tuple[int, Case], list[float]], split: tuple[int, Case]
) -> None:
    whole = found[1, (split[1][0], PLAIN)]
    assert found[split] == pytest.approx(whole, rel=1e-5)
    assert len({round(loss, 6) for loss in whole}) == STEPS


def test_seeds_follow_from_seed_and_position_alone() -> None:
    positions = np.arange(64, dtype=np.int64)
    parts = [network_seeds(5, part) for part in np.split(positions, 8)]
    np.testing.assert_array_equal(network_seeds(5, positions), np.concatenate(parts))
    assert len(set(network_seeds(5, positions)) | set(network_seeds(6, positions))) == 128


def gradients(network: FoldedGenerator) -> tuple[Tensor, list[Tensor]]:
    """Output and gradients, with torch's generator elsewhere in backward than in forward."""
    layout = TOKENIZER.layout
    later = layout.positions - layout.groups[0]
    input_BMC = torch.randn(4, later, layout.folds * 4, generator=torch.Generator().manual_seed(0))
    network.zero_grad()
    logits_BLFV = network(torch.arange(4), input_BMC, torch.arange(4))
    torch.seed()
    logits_BLFV.square().sum().backward()
    return logits_BLFV.detach(), [p.grad.clone() for p in network.parameters() if p.grad is not None]


def test_a_block_that_is_computed_twice_leaves_the_same_branches_out() -> None:
    torch.manual_seed(0)
    network = FoldedGenerator(GENERATOR, TOKENIZER.layout, TOKENIZER.forcing_width).train()
    once, expected = gradients(network)
    recompute_blocks(network)
    twice, found = gradients(network)
    assert torch.equal(once, twice)
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
