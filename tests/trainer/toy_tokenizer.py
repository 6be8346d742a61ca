"""A tokenizer and its discriminator, as small as they can be, with every term on."""

from __future__ import annotations

import copy
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipeline.config import ReadingConfig
from data_pipeline.loading.loader import ImageBatch
from data_pipeline.order.permutations import step_positions
from model.config import ImageFolderConfig, VectorConfig, ViTConfig
from trainer.config import TokenizerLossConfig, TokenizerStageConfig, TrackingConfig, TrainerConfig
from trainer.engine.engine import Engine, Engines, Update
from trainer.engine.scalars import Scalars
from trainer.job import TrainJob
from trainer.stages import tokenizer
from trainer.stages.tokenizer import TokenizerStage
from trainer.stages.tokenizer_pass import TokenizerImages

BATCH, SIZE, WIDTH, STEPS, START = 12, 16, 8, 4, 1
VIT = ViTConfig(width=WIDTH, depth=1, heads=2, drop_path=0.3, layer_scale=None)
MODEL = ImageFolderConfig(
    image_size=SIZE,
    patch_size=4,
    scales=(1, 2),
    dropout_min_scales=1,
    quantizer=VectorConfig(codebook_size=8, code_dim=4, entropy=0.3, entropy_temperature=0.5),
    quantizer_dropout=0.4,
    encoder=VIT,
    decoder=VIT,
)
DISCRIMINATOR = {"kind": "patch", "group": 2, "width": 4, "layers": 2}
ADVERSARIAL: dict[str, Any] = {
    "discriminator": DISCRIMINATOR,
    "weight": 0.7,
    "start": START,
    "adaptive": True,
    "lecam": {"weight": 0.5, "decay": 0.6, "of": "means", "update": "after"},
    "augment": {"probability": 0.8},
    "learning_rate": 0.01,
    "final_learning_rate": 0.5,
    "warmup_steps": 1,
    "betas": [0.4, 0.9],
    "weight_decay": 0.02,
    "gradient_clipping": 0.5,
}
LOSS: dict[str, Any] = {
    "pixels": "l1",
    "reconstruction": 0.8,
    "perceptual": [{"kind": "teacher", "weight": 0.2}],
    "semantic": {"weight": 0.5, "branches": "all", "temperature": 1.0, "final_temperature": 3.0},
    "detail": {"weight": 0.3, "feature": "patch", "normalize": True},
    "adversarial": ADVERSARIAL,
}


class FixedTeacher(nn.Module):
    """A frozen layer, as wide as the tokenizer's encoder."""

    size = SIZE
    weight_DX: Tensor

    def __init__(self, *_: Any) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.register_buffer("weight_DX", torch.randn(WIDTH, 3 * SIZE**2, generator=generator) / SIZE)

    def features(self, image_BCHW: Tensor) -> Tensor:
        return torch.tanh(image_BCHW.flatten(1) @ self.weight_DX.T)

    def patch_features(self, image_BCHW: Tensor) -> Tensor:
        return torch.sin(3 * image_BCHW.flatten(1) @ self.weight_DX.T)


class Images:
    """Batches that are drawn by position, in place of a data set."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def batch(self, step: int, rank: int, world: int) -> ImageBatch:
        position_B = step_positions(step, BATCH, rank, world)
        image = [np.random.default_rng(int(p)).integers(0, 256, (3, SIZE, SIZE)) for p in position_B]
        return ImageBatch(np.stack(image).astype(np.uint8), position_B % 4, position_B, position_B)


class ToyStage(TokenizerStage):
    """The stage, whose process dies between its two updates in a step, if it is told to."""

    kill_at: int | None = None
    source: TokenizerStage

    def batch(self, step: int) -> TokenizerImages:
        return self.source.batch(step)

    def step(self, micro_batches: Any, engines: Engines, rate: float) -> Scalars:
        if self.kill_at == micro_batches[0].step:
            assert self._adversary is not None
            self._adversary.train = self._die  # type: ignore[method-assign]
        return super().step(micro_batches, engines, rate)

    def _die(self, *_: Any) -> Scalars:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def job(folder: Path | str, loss: dict[str, Any] = LOSS, model: ImageFolderConfig = MODEL, **changes: Any) -> TrainJob:
    """With everything on: average, decay, clipping, a schedule."""
    values = {"steps": STEPS, "global_batch": BATCH, "learning_rate": 0.01, "ema_decay": 0.9, "weight_decay": 0.1}
    values |= {"gradient_clipping": 2.0, "warmup_steps": 1, "checkpoint_every": 2, "keep_checkpoints": 100}
    values |= {"log_every": 1, "zero_stage": 0}
    if changes.get("zero_stage") == 3:
        values["extra"] = {"zero_optimization": {"stage3_param_persistence_threshold": 30}}
    section = TokenizerStageConfig(
        model=model,
        loss=TokenizerLossConfig.model_validate(loss),
        dead_code_steps=2,
        trainer=TrainerConfig.model_validate(values | changes),
    )
    inputs = {"images": "", "teacher": ""}
    arguments = (section, 3, "squash", ReadingConfig(), inputs, {}, {}, TrackingConfig(wandb="off"))
    return TrainJob("tokenizer", str(folder), *arguments)


def build(each: TrainJob) -> ToyStage:
    """The stage on this rank, on images that are drawn by position."""
    torch.manual_seed(each.seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "open_images", Images)
        patch.setattr(tokenizer, "load_teacher", FixedTeacher)
        patch.setattr(tokenizer, "ImageBatches", Images)
        stage = ToyStage(each, torch.device("cpu"))
    stage.source = copy.copy(stage)
    stage.source.__class__ = TokenizerStage
    stage.samples = None  # a loop keeps no ledger of images that are drawn
    return stage


class PlainEngine(Engine):
    """Adds gradients up, and moves nothing."""

    def __init__(self, stage: TokenizerStage, name: str, accumulation: int = 1) -> None:
        super().__init__(stage.trainables[name], torch.device("cpu"))
        self._accumulation = accumulation

    @property
    def accumulation(self) -> int:
        return self._accumulation

    def forward(self, work: Any) -> Any:
        return work()

    def preview(self, work: Any) -> Any:
        with torch.no_grad():
            return work()

    def probe(self, parameter: str, work: Any) -> Any:
        with self._without_gradients(but=parameter):
            return work()

    def through(self, work: Any) -> Any:
        self._check_frozen()
        return work()

    def accumulate(self, loss: Tensor) -> None:
        (loss / self._accumulation).backward()  # type: ignore[no-untyped-call]

    def update(self, rate: float) -> Update:
        return Update(torch.ones((), dtype=torch.bool), torch.zeros(()))

    def take_update(self) -> Update | None:
        return None

    def gradients(self) -> dict[str, Tensor]:
        """Means over all ranks (a collective)."""
        found = {}
        for name, parameter in self.module.named_parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            dist.all_reduce(gradient)
            found[name] = gradient / dist.get_world_size()
        return found


Result = tuple[dict[str, float], dict[str, npt.NDArray[np.float32]], list[float]]
"""Terms over the global batch, gradients of both networks, and LeCam's averages."""


def one_step(step: int, accumulation: int, loss: dict[str, Any] = LOSS, stage: ToyStage | None = None) -> Result:
    """What a step of the stage comes to before its updates."""
    stage = stage or build(job("", loss))
    engines = {name: PlainEngine(stage, name, accumulation) for name in stage.trainables}
    batch = stage.batch(step)
    assert isinstance(batch, TokenizerImages)
    scalars = stage.step(batch.split(accumulation), engines, 0.0)
    values_N = scalars.values_N.clone()
    dist.all_reduce(values_N)
    terms = dict(zip(scalars.names, (values_N / dist.get_world_size()).tolist(), strict=True))
    gradients = {f"{name}.{key}": g.numpy() for name, each in engines.items() for key, g in each.gradients().items()}
    averages = stage._adversary.critic.averages_2.tolist() if stage._adversary else []
    return terms, gradients, averages
