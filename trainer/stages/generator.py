"""Train a generator of any kind on token shards, beside the part of the tokenizer that it may need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipeline.errors import UsageError
from data_pipeline.loading.loader import TokenBatches
from data_pipeline.order.permutations import keyed_uniform, network_seeds, step_positions
from model.families import build_generator
from model.layout import TokenLayout
from model.protocols import Generator, StepTaught, TeacherForcing
from trainer.config import GeneratorStageConfig
from trainer.engine.batches import Batch
from trainer.engine.deepspeed_engine import DeepSpeedEngines
from trainer.engine.engine import Engines, train
from trainer.engine.scalars import Scalars, Terms
from trainer.engine.trainable import Trainable, Trainables
from trainer.job import TrainJob
from trainer.networks import load_forcing
from trainer.stages.generator_validation import generator_validation
from trainer.stages.inputs import open_tokens
from trainer.stages.stage import Validation


@dataclass(frozen=True, kw_only=True)
class TokenSamples(Batch):
    """Tokens and their conditions."""

    tokens_BLF: Tensor
    """int64."""
    condition_B: Tensor
    """Classes, int64; the number of classes where the class is hidden."""
    of_step: dict[str, Tensor] | None = None
    """What the network needs to know of the whole step (`GeneratorConfig.needs_step`)."""

    @property
    def tokens(self) -> int:
        """Tokens that the network is to predict."""
        return self.tokens_BLF.numel()


class GeneratorStage:
    """Tokens in, cross-entropy of every token out."""

    exported = "generator"

    def __init__(self, job: TrainJob, device: torch.device) -> None:
        assert isinstance(job.section, GeneratorStageConfig)
        tokens, tokenizer = open_tokens(job), job.inputs.get("tokenizer")
        forcing = None if tokenizer is None else load_forcing(tokenizer, device)
        width = None if forcing is None else forcing.width
        try:
            network = build_generator(job.section.network, tokens.layout, width)
        except ValueError as error:
            raise UsageError(f"generator.model: {error}") from None
        self._compose(job.section, network, forcing, device, job.seed)
        batch, window = job.section.trainer.global_batch, job.reading.shuffle_window
        self.samples: TokenBatches | None = TokenBatches(tokens, job.seed, batch, window)
        self.validation: Validation | None = generator_validation(job, network, forcing, device)

    @classmethod
    def without_data(
        cls,
        config: GeneratorStageConfig,
        network: Generator,
        forcing: TeacherForcing | None,
        device: torch.device,
    ) -> Self:
        """The stage around given networks, which can do all but make batches: to trace or time its terms."""
        stage = cls.__new__(cls)
        stage._compose(config, network, forcing, device)
        stage.samples = stage.validation = None
        return stage

    def _compose(
        self,
        config: GeneratorStageConfig,
        network: Generator,
        forcing: TeacherForcing | None,
        device: torch.device,
        seed: int = 0,
    ) -> None:
        self._config, self._seed, self._device = config, seed, device
        self._forcing, self.network = forcing, network
        module = cast("nn.Module", network).to(device)
        self.trainables: Trainables = {self.exported: Trainable(module, network.no_decay_parameters())}

    def card(self) -> dict[str, Any]:
        """What rebuilds the network: its config, the layout of its tokens, and the width of the sums beside them."""
        layout: TokenLayout = self.network.layout
        width = None if self._forcing is None else self._forcing.width
        config = self._config.model.model_dump(mode="json")
        return {"generator": config, "layout": layout.to_json(), "forcing_width": width}

    def batch(self, step: int) -> TokenSamples:
        """Tokens, labels and seeds of this rank; some labels are hidden, which ones is a function of the position."""
        assert self.samples is not None
        batch = self.samples.batch(step, dist.get_rank(), dist.get_world_size())
        hidden = keyed_uniform(self._seed, "label_dropout", batch.position_B) < self._config.model.label_dropout
        hidden |= not self._config.model.classes  # it learns none
        label = np.where(hidden, self.network.null_class, batch.condition_B)
        return TokenSamples(
            index_B=batch.index_B,
            seed_B=torch.from_numpy(network_seeds(self._seed, batch.position_B)),
            tokens_BLF=torch.from_numpy(batch.tokens_BLF.astype(np.int64)),
            condition_B=torch.from_numpy(label),
            of_step=self._of_step(step),
        )

    def _of_step(self, step: int) -> dict[str, Tensor] | None:
        """What the network needs to know of the samples of all ranks: a function of their positions."""
        if not self._config.model.needs_step:
            return None
        positions = step_positions(step, self._config.trainer.global_batch)
        seed_S = torch.from_numpy(network_seeds(self._seed, positions))
        return cast("StepTaught", self.network).of_step(step, seed_S)

    def blank_batch(self, size: int) -> TokenSamples:
        """A batch of the right shapes, with zeros in it."""
        layout = self.network.layout
        return TokenSamples(
            seed_B=torch.zeros(size, dtype=torch.int64, device=self._device),
            tokens_BLF=torch.zeros(size, layout.positions, layout.folds, dtype=torch.int64, device=self._device),
            condition_B=torch.zeros(size, dtype=torch.int64, device=self._device),
        )

    def step(self, micro_batches: Sequence[TokenSamples], engines: Engines, rate: float) -> Scalars:
        """Every sample is judged by itself."""
        return train(engines[self.exported], [partial(self.terms, each) for each in micro_batches], rate)

    def terms(self, batch: TokenSamples) -> Terms:
        """What the generator minimizes, and what it says beside that."""
        given = (batch.tokens_BLF, batch.condition_B, batch.seed_B, self._forcing)
        if batch.of_step is None:
            return self.network.training_terms(*given)
        return cast("StepTaught", self.network).training_terms(*given, batch.of_step)

    def after_step(self, step: int, engines: DeepSpeedEngines) -> dict[str, dict[str, Any]]:  # noqa: ARG002 - a Stage has it
        """Nothing."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Nothing."""
