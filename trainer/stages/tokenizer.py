"""Train ImageFolder's tokenizer: reconstruction, quantization, and semantic regularization of the last branch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.loading.loader import ImageBatches
from data_pipeline.order.permutations import Positions, keyed_uniform, network_seeds, step_positions
from model.config import TokenizerConfig
from model.tokenizers.imagefolder import ImageFolderTokenizer, TokenizerOutput
from trainer.config import TokenizerStageConfig
from trainer.engine.batches import Batch, normalized
from trainer.engine.deepspeed_engine import Engine, Engines, train
from trainer.engine.scalars import Scalars, Terms
from trainer.engine.trainable import Trainable, Trainables
from trainer.evaluation.teacher import Teacher, load_teacher
from trainer.job import TrainJob
from trainer.stages import contrast
from trainer.stages.dead_codes import replacements
from trainer.stages.inputs import open_images

_LAST_RESTART = 0.9  # share of the steps after which no code is restarted
_NOT_DECAYED = re.compile(r"pos_embed|codebook|queries|level|token")


def kept_scales(config: TokenizerConfig, seed: int, positions: Positions) -> Positions:
    """Quantizer dropout: how many scales the sample at each position keeps, int64.

    A share `quantizer_dropout` of samples keeps a number that is uniform from `dropout_min_scales` to all. It is a
    function of the position, so the same images are affected at any number of workers (specs of ImageFolder, 1.6, fix
    the first images of each worker's batch instead).
    """
    scales, fewest = len(config.scales), config.dropout_min_scales
    dropped = keyed_uniform(seed, "quantizer_dropout", positions) < config.quantizer_dropout
    count = fewest + np.floor(keyed_uniform(seed, "kept_scales", positions) * (scales - fewest + 1)).astype(np.int64)
    return np.where(dropped, count, scales)


@dataclass(frozen=True, kw_only=True)
class TokenizerImages(Batch):
    """Images, and how many scales of each are kept."""

    pixels_BCHW: Tensor
    """uint8."""
    kept_scales_B: Tensor
    """int64."""
    kept_mean_S: Tensor
    """Share of the global batch that keeps each scale, float32."""


class TokenizerStage:
    """Images in, the tokenizer's loss out."""

    exported = "tokenizer"

    def __init__(self, job: TrainJob, device: torch.device) -> None:
        assert isinstance(job.section, TokenizerStageConfig)
        network = ImageFolderTokenizer(job.section.model).to(device)
        teacher = None
        if job.section.loss.needs_teacher:
            teacher = load_teacher(job.inputs.get("teacher_timm"), job.inputs["teacher"], device)
        self._compose(job.section, network, teacher, device, job.seed)
        self.samples: ImageBatches | None = ImageBatches(
            open_images(job),
            image_size=job.section.model.image_size,
            fit=job.fit,
            reading=job.reading,
            seed=job.seed,
            global_batch=job.section.trainer.global_batch,
            horizontal_flip=job.section.horizontal_flip,
        )

    @classmethod
    def without_data(
        cls, config: TokenizerStageConfig, network: ImageFolderTokenizer, teacher: Teacher | None, device: torch.device
    ) -> Self:
        """The stage around given networks, which can do all but make batches: to trace or time its terms."""
        stage = cls.__new__(cls)
        stage._compose(config, network, teacher, device)
        stage.samples = None
        return stage

    def _compose(
        self,
        config: TokenizerStageConfig,
        network: ImageFolderTokenizer,
        teacher: Teacher | None,
        device: torch.device,
        seed: int = 0,
    ) -> None:
        self._config, self._seed, self._device = config, seed, device
        self.network, self._teacher = network, teacher
        no_decay = {name for name, _ in network.named_parameters() if _NOT_DECAYED.search(name)}
        self.trainables: Trainables = {self.exported: Trainable(network, no_decay)}
        layout = self.network.layout
        shape_PSV = (layout.folds, len(layout.groups), layout.vocabulary())
        self._hits_PSV = torch.zeros(shape_PSV, dtype=torch.int64, device=device)

    def card(self) -> dict[str, Any]:
        """The config that rebuilds the network."""
        return self._config.model.without_pretraining().model_dump(mode="json")

    def batch(self, step: int) -> TokenizerImages:
        """Images and seeds of this rank, and how many scales each keeps."""
        model, share = self._config.model, self._config.trainer.global_batch
        assert self.samples is not None
        batch = self.samples.batch(step, dist.get_rank(), dist.get_world_size())
        all_kept = kept_scales(model, self._seed, step_positions(step, share))
        scales = np.arange(len(model.scales))
        return TokenizerImages(
            index_B=batch.index_B,
            seed_B=torch.from_numpy(network_seeds(self._seed, batch.position_B)),
            pixels_BCHW=torch.from_numpy(batch.pixels_BCHW),
            kept_scales_B=torch.from_numpy(kept_scales(model, self._seed, batch.position_B)),
            kept_mean_S=torch.from_numpy((all_kept[:, None] > scales).mean(0)).float(),
        )

    def blank_batch(self, size: int) -> TokenizerImages:
        """A batch of the right shapes, with zeros in it."""
        model, device = self._config.model, self._device
        return TokenizerImages(
            seed_B=torch.zeros(size, dtype=torch.int64, device=device),
            pixels_BCHW=torch.zeros(size, 3, model.image_size, model.image_size, dtype=torch.uint8, device=device),
            kept_scales_B=torch.zeros(size, dtype=torch.int64, device=device),
            kept_mean_S=torch.ones(len(model.scales), device=device),
        )

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
        return contrast.Seen(output.semantic_BC, teacher_BC, target_BD)

    def terms(self, batch: TokenizerImages, compared: contrast.Compared | None = None) -> Terms:
        """All terms of the loss, and the loss."""
        image_BCHW = normalized(batch.pixels_BCHW)
        target_BD = self._features(image_BCHW) if compared is None else compared.features_BD
        # Before the encoder, so that a preview, which ends where the decoder begins, is the begin of an ordinary pass.
        teacher_BC = self.network.project_teacher(target_BD) if self._config.loss.semantic else None
        output = self._encode(batch, image_BCHW, decode=True)
        self._hits_PSV += output.quantized.hits_PSV
        semantic = None
        if teacher_BC is not None:
            semantic = contrast.semantic_loss(output.semantic_BC, teacher_BC, self._config.loss, compared)
        return self._losses(image_BCHW, output, target_BD, semantic)

    def _encode(self, batch: TokenizerImages, image_BCHW: Tensor, *, decode: bool) -> TokenizerOutput:
        seen = (image_BCHW, batch.kept_scales_B, batch.kept_mean_S, batch.seed_B)
        output: TokenizerOutput = self.network(*seen, decode=decode)
        return output

    def _losses(self, image_BCHW: Tensor, output: TokenizerOutput, target_BD: Tensor, semantic: Tensor | None) -> Terms:
        weights = self._config.loss
        terms = {
            "reconstruction": F.mse_loss(output.reconstruction_BCHW.float(), image_BCHW),
            "codebook": output.quantized.codebook_loss,
            "commitment": output.quantized.commitment_loss,
        }
        loss = weights.reconstruction * terms["reconstruction"] + terms["codebook"] + terms["commitment"]
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

    def after_step(self, step: int, engines: Engines) -> dict[str, Any]:
        """Restart dead codes every `dead_code_steps`."""
        every = self._config.dead_code_steps
        if not every or step % every or step >= self._config.trainer.steps * _LAST_RESTART:
            return {}
        hits_PSV = self._hits_PSV.clone()
        dist.all_reduce(hits_PSV)
        self._hits_PSV.zero_()
        engine: Engine = engines[self.exported]
        restarted = []
        for index in range(self.network.layout.folds):
            name = f"quantizer.branches.{index}.codebook"
            rows, values = replacements(engine.whole(name), hits_PSV[index], self._seed, step, index)
            if len(rows):
                engine.overwrite_rows(name, rows, values)
            restarted.append(len(rows))
        return {"codes": restarted} if any(restarted) else {}

    def state(self) -> dict[str, Tensor]:
        """How often each code was chosen since the last restart, int64 [P, S, V], summed over ranks."""
        if not self._config.dead_code_steps:  # the config alone decides, so that all ranks reach the collective
            return {}
        hits_PSV = self._hits_PSV.clone()
        dist.all_reduce(hits_PSV)
        return {"hits": hits_PSV}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Count on from there."""
        self._hits_PSV.zero_()
        if "hits" in state:
            self._hits_PSV += state["hits"].to(self._device)
