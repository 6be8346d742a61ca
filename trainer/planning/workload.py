"""A training stage as numbers: parameters, operations, activations. Chosen by the stage's name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from data_pipeline.config import ReadingConfig, TokensConfig
from data_pipeline.errors import UsageError
from data_pipeline.shards import weights
from data_pipeline.shards.tokenizers import tokenizer_config
from model.config import ClassifierConfig, GeneratorConfig, ImageFolderConfig, NextScaleConfig, TokenizerConfig
from trainer.config import GeneratorStageConfig, TeacherConfig, TokenizerStageConfig, TrainerConfig
from trainer.planning.activations import Activations, Attention, generator_activations, tokenizer_activations
from trainer.planning.flops import Flops, generator_flops, tokenizer_flops
from trainer.planning.frozen import Frozen, frozen_quantizer, frozen_teacher
from trainer.planning.memory import RankMemory, rank_memory
from trainer.planning.shapes import Weights, generator_weights, tokenizer_weights

FP32, INT64 = 4, 8


AnyModel = GeneratorConfig | TokenizerConfig
Known = TypeVar("Known", NextScaleConfig, ImageFolderConfig)


@dataclass(frozen=True)
class StageConfigs:
    """The sections of a run's config that a plan looks at."""

    tokenizer: TokenizerStageConfig | None
    generator: GeneratorStageConfig | None
    teacher: TeacherConfig | None
    tokens: TokensConfig
    reading: ReadingConfig
    given_tokenizer: TokenizerConfig | None = None
    """The one whose tokens a generator speaks, if the run does not train it."""

    @property
    def tokenizer_model(self) -> TokenizerConfig:
        """The tokenizer whose tokens a generator speaks."""
        if self.given_tokenizer is not None:
            return self.given_tokenizer
        assert self.tokenizer is not None, "a config has the section, or names a tokenizer"
        return self.tokenizer.model


def tokenizer_at(uri: str) -> TokenizerConfig:
    """The tokenizer of an export, by its card."""
    return tokenizer_config(uri, weights.read_card(uri, "tokenizer"))


def teacher_at(uri: str) -> TeacherConfig:
    """The teacher of an export, by its card. It is not trained."""
    model = weights.read_config(uri, weights.read_card(uri, "teacher"), ClassifierConfig)
    return TeacherConfig(model=model, trainer=TrainerConfig(steps=1, global_batch=1))


@dataclass(frozen=True)
class Workload:
    """One stage, trained as `trainer` says."""

    trainer: TrainerConfig
    weights: Weights
    flops: Flops
    """Of one sample."""
    frozen: Frozen
    sample_bytes: int
    """Of one sample on the device, and of what is made of it before the network."""
    activations: Callable[[TrainerConfig, Attention], Activations]
    """Of one sample, by how it is trained."""

    def memory(self, trainer: TrainerConfig, world: int, attention: Attention) -> RankMemory:
        """Of one rank, if it were trained so.

        Raises:
            ValueError: if the global batch cannot be cut into equal micro-batches over the ranks.
        """
        share = trainer.global_batch // world
        kept = self.activations(trainer, attention)
        seen = replace(kept, rest=kept.rest + self.frozen.activations)
        size = share * self.sample_bytes
        return rank_memory(
            *(self.weights, trainer, world, seen),
            frozen=self.frozen.bytes,
            batch=size,
            touched_only=attention == "cpu",
        )


def workload(stage: str, configs: StageConfigs, world: int) -> Workload:
    """The numbers of a stage on `world` ranks.

    Raises:
        UsageError: if the stage trains nothing that can be planned, or a network's sizes cannot be known.
        ValueError: if the global batch cannot be cut into equal micro-batches over the ranks.
    """
    kinds = {"train-tokenizer": _tokenizer, "train-generator": _generator}
    if stage not in kinds:
        raise UsageError(f"--stage {stage}: only {' and '.join(kinds)} can be planned")
    return kinds[stage](configs, world)


def _generator(configs: StageConfigs, world: int) -> Workload:
    section = configs.generator
    assert section is not None
    model, tokenizer = _known(section.model, NextScaleConfig), _known(configs.tokenizer_model, ImageFolderConfig)
    layout = tokenizer.layout
    rows = layout.positions - layout.groups[0]
    size = layout.positions * layout.folds * INT64 + rows * layout.folds * tokenizer.code_dim * FP32

    def activations(trainer: TrainerConfig, attention: Attention) -> Activations:
        return generator_activations(
            model,
            tokenizer,
            bf16=trainer.half,
            attention=attention,
            checkpointing=trainer.activation_checkpointing,
        )

    section.trainer.split_over(world)
    weights = generator_weights(model, tokenizer)
    flops = generator_flops(model, tokenizer)
    return Workload(section.trainer, weights, flops, frozen_quantizer(tokenizer), size, activations)


def _known(model: AnyModel, kind: type[Known]) -> Known:
    if not isinstance(model, kind):
        raise UsageError(f"kind {model.kind} cannot be planned yet: its operations were not counted")
    return model


def _tokenizer(configs: StageConfigs, world: int) -> Workload:
    section = configs.tokenizer
    assert section is not None
    model = _known(section.model, ImageFolderConfig)
    section.trainer.split_over(world)
    teacher = frozen_teacher(configs.teacher, section.loss)
    images = section.trainer.global_batch if section.loss.semantic else 0
    flops = tokenizer_flops(model, images).plus_frozen(teacher.flops)

    def activations(trainer: TrainerConfig, attention: Attention) -> Activations:  # noqa: ARG001 - a workload has it
        return tokenizer_activations(model, bf16=trainer.half, checkpointing=trainer.activation_checkpointing)

    size = 3 * model.image_size**2 * FP32
    return Workload(section.trainer, tokenizer_weights(model), flops, teacher, size, activations)
