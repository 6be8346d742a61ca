"""A small network under the engine, for tests and benchmarks of checkpoints: what each rank runs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.checkpoints import exporting
from trainer.checkpoints.catalog import step_folder
from trainer.checkpoints.reader import CheckpointReader, load_checkpoint
from trainer.checkpoints.retention import Retention
from trainer.checkpoints.snapshot import pieces
from trainer.checkpoints.writer import CheckpointWriter
from trainer.config import TrainerConfig
from trainer.engine.agreement import Agreement
from trainer.engine.batches import Batch
from trainer.engine.deepspeed_engine import DeepSpeedEngine, prepare_deepspeed
from trainer.engine.engine import Update, train
from trainer.engine.scalars import Scalars, Terms
from trainer.engine.schedule import learning_rate
from trainer.engine.trainable import Trainable

BATCH, WIDTH = 8, 6
NAME = "regression"
"""Of the trainable."""
ROLES = ("master", "exp_avg", "exp_avg_sq", "ema")
EVERYTHING_PARTITIONED = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}


@dataclass(frozen=True, kw_only=True)
class Rows(Batch):
    """Inputs and what is to be predicted of them."""

    x_BC: Tensor
    y_B: Tensor


class Regression(nn.Module):
    """Small, with a matrix, vectors, and a buffer; no parameter's size is a multiple of two ranks and four."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDTH, 7), nn.Tanh(), nn.Linear(7, 1))
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x_BC: Tensor) -> Tensor:
        predicted: Tensor = self.layers(x_BC).float().squeeze(1)
        return predicted

    def terms(self, rows: Rows) -> Terms:
        return {"loss": (self(rows.x_BC) - rows.y_B).square().mean()}


def settings(**changes: Any) -> TrainerConfig:
    """A trainer's config with everything on: average, decay and clipping. In fp16 nothing overflows."""
    values = {"steps": 8, "global_batch": BATCH, "learning_rate": 0.05, "ema_decay": 0.9, "weight_decay": 0.1}
    values |= {"initial_loss_scale": 1024}
    extra = {"extra": EVERYTHING_PARTITIONED} if changes.get("zero_stage") == 3 else {}
    return TrainerConfig(**(values | {"gradient_clipping": 1.0} | extra | changes))


def rows(step: int) -> Rows:
    """This rank's slice of the global batch of a step."""
    generator = torch.Generator().manual_seed(step)
    x, world = torch.randn(BATCH, WIDTH, generator=generator), dist.get_world_size()
    share = BATCH // world
    mine = x[dist.get_rank() * share :][:share]
    return Rows(x_BC=mine, y_B=mine.sum(1))


class Training:
    """The network, its engine and its checkpoints, on this rank."""

    def __init__(self, config: TrainerConfig, folder: str, keep: int = 100) -> None:
        prepare_deepspeed(torch.device("cpu"))
        torch.manual_seed(0)
        self.config, self.folder, self.step = config, folder, 0
        self.module = Regression()
        trainable = Trainable(self.module, {"layers.2.weight"})
        self.engine = DeepSpeedEngine(trainable, config, torch.device("cpu"), lambda: self.writer.wait_for_copy())
        self.engines = {NAME: self.engine}
        self.events: list[tuple[str, int, dict[str, Any]]] = []
        agreement = Agreement()
        self.writer = CheckpointWriter(folder, agreement, Retention(keep), config.max_failed_checkpoints, self._report)

    def _report(self, event: str, step: int, **details: Any) -> None:
        self.events.append((event, step, details))

    def load(self, folder: str, step: int) -> None:
        """Go on from a checkpoint."""
        reader = CheckpointReader(step_folder(folder, step))
        load_checkpoint(reader, self.engines)
        scale = reader.trainable(NAME).loss_scale
        if self.engine.loss_scale and scale:
            self.engine.loss_scale.load_state(scale.model_dump())
        self.step = int(reader.state["step"])

    def learn(self, batch: Rows, rate: float) -> tuple[Scalars, Update]:
        """One optimizer step."""
        parts = batch.split(self.engine.accumulation)
        terms = train(self.engine, [partial(self.module.terms, part) for part in parts], rate)
        update = self.engine.take_update()
        assert update is not None
        return terms, update

    def advance(self, last: int) -> list[float]:
        """Train up to a step. Returns the losses, averaged over ranks."""
        losses = []
        for step in range(self.step, last):
            terms, _ = self.learn(rows(step), learning_rate(self.config, step))
            self.module.get_buffer("seen").add_(1)
            mean = terms["loss"].clone()
            dist.all_reduce(mean)
            losses.append(float(mean / dist.get_world_size()))
        self.step = last
        return losses

    def begin_save(self) -> None:
        """Begin a checkpoint at this step."""
        scale = self.engine.loss_scale
        own = {"optimizer_step": self.engine.owned.optimizer_step, "loss_scale": scale.state() if scale else None}
        state = {"step": self.step, "skipped_steps": 0, "trainables": {NAME: own}, "exported": NAME}
        self.writer.save(self.step, pieces(self.engines, {}), state)

    def save(self) -> None:
        """Write a checkpoint, and wait for it."""
        self.begin_save()
        self.writer.finish()

    def weights(self) -> dict[str, Any]:
        """Whole weights as numpy, by name."""
        return {name: self.engine.whole(name).numpy() for name, _ in self.module.named_parameters()}


def states(folder: str, step: int) -> dict[str, dict[str, Tensor]]:
    """Whole tensors of every role of a checkpoint."""
    return {role: exporting.assemble(folder, step, role, NAME) for role in ROLES}


def unbroken(cells: list[tuple[int, str, str]], middle: int, last: int) -> list[list[float]]:
    """For each (stage, precision, folder): train to the end in one go, with two checkpoints."""
    curves = []
    for stage, precision, folder in cells:
        training = Training(settings(zero_stage=stage, precision=precision), folder)
        losses = training.advance(middle)
        training.save()
        losses += training.advance(last)
        training.save()
        curves.append(losses)
    return curves


def resumed(cells: list[tuple[int, str, str, str]], middle: int, last: int) -> list[dict[str, Any]]:
    """For each (stage, precision, source, folder): go on from the source, with two checkpoints."""
    results = []
    for stage, precision, source, folder in cells:
        training = Training(settings(zero_stage=stage, precision=precision), folder)
        began = time.perf_counter()
        training.load(source, middle)
        loaded = time.perf_counter() - began
        training.save()
        weights = training.weights()
        results.append({"weights": weights, "losses": training.advance(last), "load_seconds": loaded})
        training.save()
    return results
