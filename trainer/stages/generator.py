"""Train the folded generator on token shards. The tokenizer's quantizer alone turns tokens into its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline.loading.loader import TokenBatches
from data_pipeline.order.permutations import keyed_uniform, network_seeds
from model.config import TokenizerConfig
from model.generators.next_scale import FoldedGenerator
from model.losses import loss_of_scales
from model.quantizers.multi_scale import FoldedQuantizer
from trainer.config import GeneratorStageConfig
from trainer.engine.batches import Batch
from trainer.engine.deepspeed_engine import Engines, train
from trainer.engine.scalars import Scalars, Terms
from trainer.engine.trainable import Trainable, Trainables
from trainer.job import TrainJob
from trainer.networks import load_quantizer
from trainer.stages.inputs import open_tokens


@dataclass(frozen=True, kw_only=True)
class TokenSamples(Batch):
    """Tokens and their conditions."""

    tokens_BLF: Tensor
    """int64."""
    label_B: Tensor
    """int64; the number of classes where the label is hidden."""

    @property
    def tokens(self) -> int:
        """Tokens that the network is to predict."""
        return self.tokens_BLF.numel()


class GeneratorStage:
    """Tokens in, cross-entropy of every token out."""

    exported = "generator"

    def __init__(self, job: TrainJob, device: torch.device) -> None:
        assert isinstance(job.section, GeneratorStageConfig)
        quantizer, tokenizer = load_quantizer(job.inputs["tokenizer"], device)
        network = FoldedGenerator(job.section.model, tokenizer.layout, tokenizer.code_dim).to(device)
        self._compose(job.section, network, quantizer, tokenizer, device, job.seed)
        batch, window = job.section.trainer.global_batch, job.reading.shuffle_window
        self.samples: TokenBatches | None = TokenBatches(open_tokens(job), job.seed, batch, window)

    @classmethod
    def without_data(
        cls,
        config: GeneratorStageConfig,
        network: FoldedGenerator,
        quantizer: FoldedQuantizer,
        tokenizer: TokenizerConfig,
        device: torch.device,
    ) -> Self:
        """The stage around given networks, which can do all but make batches: to trace or time its terms."""
        stage = cls.__new__(cls)
        stage._compose(config, network, quantizer, tokenizer, device)
        stage.samples = None
        return stage

    def _compose(
        self,
        config: GeneratorStageConfig,
        network: FoldedGenerator,
        quantizer: FoldedQuantizer,
        tokenizer: TokenizerConfig,
        device: torch.device,
        seed: int = 0,
    ) -> None:
        self._config, self._seed, self._device = config, seed, device
        self._quantizer, self._tokenizer, self.network = quantizer, tokenizer, network
        self.trainables: Trainables = {self.exported: Trainable(network, network.no_decay_parameters())}

    def card(self) -> dict[str, Any]:
        """The config that rebuilds the network: its own and that of the tokenizer whose tokens it speaks."""
        config = self._config.model.model_dump(mode="json")
        return {"generator": config, "tokenizer": self._tokenizer.model_dump(mode="json")}

    def batch(self, step: int) -> TokenSamples:
        """Tokens, labels and seeds of this rank; some labels are hidden, which ones is a function of the position."""
        assert self.samples is not None
        batch = self.samples.batch(step, dist.get_rank(), dist.get_world_size())
        hidden = keyed_uniform(self._seed, "label_dropout", batch.position_B) < self._config.model.label_dropout
        label = np.where(hidden, self._config.model.classes, batch.condition_B)
        return TokenSamples(
            index_B=batch.index_B,
            seed_B=torch.from_numpy(network_seeds(self._seed, batch.position_B)),
            tokens_BLF=torch.from_numpy(batch.tokens_BLF.astype(np.int64)),
            label_B=torch.from_numpy(label),
        )

    def blank_batch(self, size: int) -> TokenSamples:
        """A batch of the right shapes, with zeros in it."""
        layout = self._tokenizer.layout
        return TokenSamples(
            seed_B=torch.zeros(size, dtype=torch.int64, device=self._device),
            tokens_BLF=torch.zeros(size, layout.positions, layout.folds, dtype=torch.int64, device=self._device),
            label_B=torch.zeros(size, dtype=torch.int64, device=self._device),
        )

    def step(self, micro_batches: Sequence[TokenSamples], engines: Engines, rate: float) -> Scalars:
        """Every sample is judged by itself."""
        return train(engines[self.exported], [partial(self.terms, each) for each in micro_batches], rate)

    def terms(self, batch: TokenSamples) -> Terms:
        """Mean cross-entropy, and that of each scale and branch."""
        tokens_BLF = batch.tokens_BLF
        with torch.no_grad():
            input_BLC = self._quantizer.generator_input(tokens_BLF)
        loss, loss_LF = self.network(batch.label_B, input_BLC, batch.seed_B, tokens_BLF)
        by_scale_SF = loss_of_scales(loss_LF, self._tokenizer.layout)
        named = {
            f"loss_scale{scale}_branch{branch}": by_scale_SF[scale, branch]
            for scale in range(by_scale_SF.shape[0])
            for branch in range(by_scale_SF.shape[1])
        }
        return {"loss": loss} | named

    def after_step(self, step: int, engines: Engines) -> dict[str, Any]:  # noqa: ARG002 - a Stage has it
        """Nothing."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Nothing."""
