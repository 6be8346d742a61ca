"""Train a small classifier on real images: the teacher; and the judge, with another seed and data order."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.loading.loader import ImageBatches
from data_pipeline.order.permutations import network_seeds
from model.classifier import Classifier
from trainer.config import ClassifierStageConfig
from trainer.engine.batches import Batch, normalized
from trainer.engine.deepspeed_engine import DeepSpeedEngines
from trainer.engine.engine import Engines, train
from trainer.engine.scalars import Scalars, Terms
from trainer.engine.trainable import Trainable, Trainables
from trainer.job import TrainJob
from trainer.stages.inputs import open_images


@dataclass(frozen=True, kw_only=True)
class LabelledImages(Batch):
    """Images and what they show."""

    pixels_BCHW: Tensor
    """uint8."""
    label_B: Tensor
    """int64."""


class ClassifierStage:
    """Cross-entropy on image shards, mirrored at random."""

    exported = "classifier"
    validation = None

    def __init__(self, job: TrainJob, device: torch.device) -> None:
        assert isinstance(job.section, ClassifierStageConfig)
        # Teacher and judge start from other weights and see another order, so that they do not err alike.
        seed = (job.seed * 2 + zlib.crc32(job.stage.encode()) % 2**31) % 2**63
        torch.manual_seed(seed)
        self._compose(job.section, Classifier(job.section.model).to(device), device, seed)
        self.samples: ImageBatches | None = ImageBatches(
            open_images(job),
            image_size=job.section.model.image_size,
            fit=job.fit,
            reading=job.reading,
            seed=seed,
            global_batch=job.section.trainer.global_batch,
            horizontal_flip=True,
        )

    @classmethod
    def without_data(cls, config: ClassifierStageConfig, network: Classifier, device: torch.device) -> Self:
        """The stage around a given network, which can do all but make batches: to trace or time its terms."""
        stage = cls.__new__(cls)
        stage._compose(config, network, device)
        stage.samples = None
        return stage

    def _compose(self, config: ClassifierStageConfig, network: Classifier, device: torch.device, seed: int = 0) -> None:
        self._config, self._device, self._seed, self.network = config, device, seed, network
        self.trainables: Trainables = {self.exported: Trainable(network)}

    def card(self) -> dict[str, Any]:
        """The config that rebuilds the network."""
        return self._config.model.model_dump(mode="json")

    def batch(self, step: int) -> LabelledImages:
        """Images, labels and seeds of this rank."""
        assert self.samples is not None
        batch = self.samples.batch(step, dist.get_rank(), dist.get_world_size())
        return LabelledImages(
            index_B=batch.index_B,
            seed_B=torch.from_numpy(network_seeds(self._seed, batch.position_B)),
            pixels_BCHW=torch.from_numpy(batch.pixels_BCHW),
            label_B=torch.from_numpy(batch.label_B),
        )

    def blank_batch(self, size: int) -> LabelledImages:
        """A batch of the right shapes, with zeros in it."""
        side = self._config.model.image_size
        return LabelledImages(
            seed_B=torch.zeros(size, dtype=torch.int64, device=self._device),
            pixels_BCHW=torch.zeros(size, 3, side, side, dtype=torch.uint8, device=self._device),
            label_B=torch.zeros(size, dtype=torch.int64, device=self._device),
        )

    def step(self, micro_batches: Sequence[LabelledImages], engines: Engines, rate: float) -> Scalars:
        """Every sample is judged by itself."""
        return train(engines[self.exported], [partial(self.terms, each) for each in micro_batches], rate)

    def terms(self, batch: LabelledImages) -> Terms:
        """Cross-entropy and accuracy."""
        logits = self.network(normalized(batch.pixels_BCHW), batch.seed_B).float()
        right = (logits.argmax(1) == batch.label_B).float().mean()
        return {"loss": F.cross_entropy(logits, batch.label_B), "accuracy": right}

    def after_step(self, step: int, engines: DeepSpeedEngines) -> dict[str, dict[str, Any]]:  # noqa: ARG002 - a Stage has it
        """Nothing."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Nothing."""
