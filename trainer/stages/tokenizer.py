"""Train a tokenizer of any kind: reconstruction, what its quantizer minimizes, and a teacher's view of the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, cast

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipeline.loading.loader import ImageBatches
from data_pipeline.order.permutations import keyed_uniform, network_seeds, step_positions
from model.families import build_tokenizer
from model.protocols import ProxyTaught, Tokenizer, TokenizerOutput
from trainer.config import TokenizerStageConfig
from trainer.engine.batches import Batch, normalized
from trainer.engine.deepspeed_engine import DeepSpeedEngines
from trainer.engine.engine import Engines, train
from trainer.engine.scalars import Scalars, Terms
from trainer.engine.trainable import Trainable, Trainables
from trainer.evaluation.teacher import Teacher, load_teacher
from trainer.job import TrainJob
from trainer.stages import contrast
from trainer.stages.dead_codes import CodeRestarts
from trainer.stages.inputs import open_images
from trainer.stages.proxy import PROXY_CODES, load_proxy, proxy_codes
from trainer.stages.stage import Validation
from trainer.stages.validation import teacher_distance, validation_of


@dataclass(frozen=True, kw_only=True)
class TokenizerImages(Batch):
    """Images, and what the tokenizer drew for them."""

    pixels_BCHW: Tensor
    """uint8."""
    drawn_B: dict[str, Tensor]
    """For each sample (`Draws.of_sample`)."""
    drawn: dict[str, Tensor]
    """For the step (`Draws.of_step`)."""


class TokenizerStage:
    """Images in, the tokenizer's loss out."""

    exported = "tokenizer"

    def __init__(self, job: TrainJob, device: torch.device) -> None:
        assert isinstance(job.section, TokenizerStageConfig)
        network, teacher = build_tokenizer(job.section.model), None
        if job.section.loss.needs_teacher:
            teacher = load_teacher(job.inputs.get("teacher_timm"), job.inputs["teacher"], device)
        proxy = None
        if job.section.model.needs_proxy:
            proxy = load_proxy(job, device)
            cast("ProxyTaught", network).adopt(proxy)
        self._compose(job.section, network, teacher, device, job.seed, proxy)
        images = open_images(job)
        self.validation: Validation | None = validation_of(job, network, images, teacher_distance(teacher))
        self.samples: ImageBatches | None = ImageBatches(
            images,
            image_size=job.section.model.image_size,
            fit=job.fit,
            reading=job.reading,
            seed=job.seed,
            global_batch=job.section.trainer.global_batch,
            horizontal_flip=job.section.horizontal_flip,
        )

    @classmethod
    def without_data(
        cls,
        config: TokenizerStageConfig,
        network: Tokenizer,
        teacher: Teacher | None,
        device: torch.device,
        proxy: Tokenizer | None = None,
    ) -> Self:
        """The stage around given networks, which can do all but make batches: to trace or time its terms."""
        stage = cls.__new__(cls)
        stage._compose(config, network, teacher, device, proxy=proxy)
        stage.samples = stage.validation = None
        return stage

    def _compose(
        self,
        config: TokenizerStageConfig,
        network: Tokenizer,
        teacher: Teacher | None,
        device: torch.device,
        seed: int = 0,
        proxy: Tokenizer | None = None,
    ) -> None:
        self._config, self._seed, self._device = config, seed, device
        self.network, self._teacher, self._proxy = network, teacher, proxy
        module = cast("nn.Module", network).to(device)
        self.trainables: Trainables = {self.exported: Trainable(module, network.no_decay_parameters())}
        self._codes = CodeRestarts(network.codebooks, config, seed, device)

    def card(self) -> dict[str, Any]:
        """The config that rebuilds the network."""
        return self._config.model.without_pretraining().model_dump(mode="json")

    def batch(self, step: int) -> TokenizerImages:
        """Images and seeds of this rank, and what the tokenizer draws for them."""
        assert self.samples is not None
        batch = self.samples.batch(step, dist.get_rank(), dist.get_world_size())
        everyone = step_positions(step, self._config.trainer.global_batch)
        draws = self.network.draw(partial(keyed_uniform, self._seed), batch.position_B, everyone)
        return TokenizerImages(
            index_B=batch.index_B,
            seed_B=torch.from_numpy(network_seeds(self._seed, batch.position_B)),
            pixels_BCHW=torch.from_numpy(batch.pixels_BCHW),
            drawn_B={name: torch.from_numpy(rows) for name, rows in draws.of_sample.items()},
            drawn={name: torch.from_numpy(values) for name, values in draws.of_step.items()},
        )

    def blank_batch(self, size: int) -> TokenizerImages:
        """A batch of the right shapes, with zeros in it."""
        side, device, positions = self._config.model.image_size, self._device, np.arange(size)
        draws = self.network.draw(lambda _, places: np.zeros(len(places)), positions, positions)
        return TokenizerImages(
            seed_B=torch.zeros(size, dtype=torch.int64, device=device),
            pixels_BCHW=torch.zeros(size, 3, side, side, dtype=torch.uint8, device=device),
            drawn_B={name: torch.from_numpy(rows).to(device) for name, rows in draws.of_sample.items()}
            | self._blank(size),
            drawn={name: torch.from_numpy(values).to(device) for name, values in draws.of_step.items()},
        )

    def _blank(self, size: int) -> dict[str, Tensor]:
        """Codes in place of those of a proxy that is not there."""
        if self._proxy is not None or not self._config.model.needs_proxy:
            return {}
        shape = (size, self._config.model.proxy_positions)
        return {PROXY_CODES: torch.zeros(shape, dtype=torch.int64, device=self._device)}

    def step(self, micro_batches: Sequence[TokenizerImages], engines: Engines, rate: float) -> Scalars:
        """With several micro-batches, the semantic loss needs a preview of all of them before the first backward."""
        engine = engines[self.exported]
        compared: Sequence[contrast.Compared | None] = [None] * len(micro_batches)
        if len(micro_batches) > 1 and self._config.loss.semantic:
            seen = [engine.preview(partial(self._preview, each)) for each in micro_batches]
            compared = contrast.compare(seen, self._config.loss)
        pairs = zip(micro_batches, compared, strict=True)
        return train(engine, [partial(self.terms, *pair) for pair in pairs], rate)

    def _preview(self, batch: TokenizerImages) -> contrast.Seen:
        """The vectors that the semantic loss compares; ends where the decoder begins."""
        image_BCHW = normalized(batch.pixels_BCHW)
        target_BD = self._features(image_BCHW)
        teacher_BC = self.network.project_teacher(target_BD)
        output = self._encode(batch, image_BCHW, decode=False)
        assert output.branch_BPC is not None  # the tokenizer compares, or this stage was refused
        return contrast.Seen(output.branch_BPC[:, -1], teacher_BC, target_BD)

    def terms(self, batch: TokenizerImages, compared: contrast.Compared | None = None) -> Terms:
        """All terms of the loss, and the loss."""
        image_BCHW = normalized(batch.pixels_BCHW)
        target_BD = self._features(image_BCHW) if compared is None else compared.features_BD
        # Before the encoder, so that a preview, which ends where the decoder begins, is the begin of an ordinary pass.
        teacher_BC = self.network.project_teacher(target_BD) if self._config.loss.semantic else None
        output = self._encode(batch, image_BCHW, decode=True)
        self._codes.note(output)
        semantic = None
        if teacher_BC is not None and output.branch_BPC is not None:
            semantic = contrast.semantic_loss(output.branch_BPC[:, -1], teacher_BC, self._config.loss, compared)
        return self._losses(image_BCHW, output, target_BD, semantic)

    def _encode(self, batch: TokenizerImages, image_BCHW: Tensor, *, decode: bool) -> TokenizerOutput:
        given = batch.drawn_B | batch.drawn
        if self._proxy is not None:
            given[PROXY_CODES] = proxy_codes(self._proxy, image_BCHW)
        return self.network(image_BCHW, given, batch.seed_B, decode=decode)

    def _losses(self, image_BCHW: Tensor, output: TokenizerOutput, target_BD: Tensor, semantic: Tensor | None) -> Terms:
        weights = self._config.loss
        terms, loss = dict[str, Tensor](), image_BCHW.new_zeros(())
        if self._config.model.paints:
            terms["reconstruction"] = F.mse_loss(output.reconstruction_BCHW.float(), image_BCHW)
            loss = weights.reconstruction * terms["reconstruction"]
        terms |= output.losses
        for term in output.losses.values():
            loss = loss + term
        if weights.feature and self._teacher is not None:
            seen_BD = self._teacher.features(output.reconstruction_BCHW.float())
            terms["feature"] = F.mse_loss(seen_BD.float(), target_BD)
            loss = loss + weights.feature * terms["feature"]
        if semantic is not None:
            terms["semantic"] = semantic
            loss = loss + weights.semantic * semantic
        return terms | {"loss": loss}

    @torch.no_grad()
    def _features(self, image_BCHW: Tensor) -> Tensor:
        """What the teacher sees, [B, D], float32; nothing, [B, 0], without one."""
        if self._teacher is None:
            return image_BCHW.new_empty(len(image_BCHW), 0)
        return self._teacher.features(image_BCHW).float()

    def after_step(self, step: int, engines: DeepSpeedEngines) -> dict[str, Any]:
        """Restart dead codes every `dead_code_steps`."""
        restarted = self._codes.after_step(step, engines[self.exported])
        return {"codes": restarted} if any(restarted) else {}

    def state(self) -> dict[str, Tensor]:
        """How often codes were chosen, summed over ranks."""
        return self._codes.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Count on from there."""
        self._codes.load_state(state)
