"""Train the folded generator on token shards. The tokenizer's quantizer alone turns tokens into its inputs."""

from __future__ import annotations

from collections.abc import Sequence
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
from trainer.engine.deepspeed_engine import INDEX, SEED, Batch, Engine, Terms
from trainer.job import TrainJob
from trainer.networks import load_quantizer
from trainer.stages.inputs import open_tokens
from trainer.stages.stage import Look


class GeneratorStage:
    """Tokens in, cross-entropy of every token out."""

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
        self.no_decay = network.no_decay_parameters()

    def card(self) -> dict[str, Any]:
        """The config that rebuilds the network: its own and that of the tokenizer whose tokens it speaks."""
        config = self._config.model.model_dump(mode="json")
        return {"generator": config, "tokenizer": self._tokenizer.model_dump(mode="json")}

    def batch(self, step: int) -> Batch:
        """Tokens, labels and seeds of this rank; some labels are hidden, which ones is a function of the position."""
        assert self.samples is not None
        batch = self.samples.batch(step, dist.get_rank(), dist.get_world_size())
        hidden = keyed_uniform(self._seed, "label_dropout", batch.position_B) < self._config.model.label_dropout
        label = np.where(hidden, self._config.model.classes, batch.condition_B)
        tokens = torch.from_numpy(batch.tokens_BLF.astype(np.int64))
        seeds = torch.from_numpy(network_seeds(self._seed, batch.position_B))
        found = {"tokens": tokens, "label": torch.from_numpy(label), SEED: seeds}
        here = {name: tensor.to(self._device) for name, tensor in found.items()}
        return here | {INDEX: torch.from_numpy(batch.index_B)}

    def blank_batch(self, size: int) -> Batch:
        """A batch of the right shapes, with zeros in it."""
        layout = self._tokenizer.layout
        shapes = {"tokens": (size, layout.positions, layout.folds), "label": (size,), SEED: (size,)}
        return {name: torch.zeros(shape, dtype=torch.int64, device=self._device) for name, shape in shapes.items()}

    def prepare(self, micro_batches: Sequence[Batch], look: Look) -> Sequence[Batch]:  # noqa: ARG002 - a Stage has it
        """As they are: every sample is judged by itself."""
        return micro_batches

    def terms(self, batch: Batch) -> Terms:
        """Mean cross-entropy, and that of each scale and branch."""
        tokens_BLF = batch["tokens"]
        with torch.no_grad():
            input_BLC = self._quantizer.generator_input(tokens_BLF)
        loss, loss_LF = self.network(batch["label"], input_BLC, batch[SEED], tokens_BLF)
        by_scale_SF = loss_of_scales(loss_LF, self._tokenizer.layout)
        named = {
            f"loss_scale{scale}_branch{branch}": by_scale_SF[scale, branch]
            for scale in range(by_scale_SF.shape[0])
            for branch in range(by_scale_SF.shape[1])
        }
        return {"loss": loss} | named

    def after_step(self, step: int, engine: Engine) -> dict[str, Any]:  # noqa: ARG002 - a Stage has it
        """Nothing."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Nothing."""
