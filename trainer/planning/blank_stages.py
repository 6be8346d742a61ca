"""Stages with the networks of a config, but without weights and data: what a plan traces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn

from data_pipeline.config import ReadingConfig, TokensConfig
from data_pipeline.errors import UsageError
from data_pipeline.shards import weights
from data_pipeline.shards.tokenizers import tokenizer_config
from model.config import ClassifierConfig, TokenizerConfig
from model.families import build_forcing, build_generator, build_tokenizer
from model.layers.weight_files import without_weights
from trainer.config import (
    ClassifierStageConfig,
    GeneratorStageConfig,
    TeacherConfig,
    TokenizerStageConfig,
    TrainerConfig,
)
from trainer.planning.fake_device import FakeDevice
from trainer.registry import TRAINING
from trainer.stages.stage import Stage


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
    judge: ClassifierStageConfig | None = None
    proxy: TokenizerConfig | None = None
    """The frozen one whose codes the tokenizer learns; None without one, or where it is not known (nothing is counted
    for it then)."""

    @property
    def tokenizer_model(self) -> TokenizerConfig:
        """The tokenizer whose tokens a generator speaks."""
        if self.given_tokenizer is not None:
            return self.given_tokenizer
        assert self.tokenizer is not None, "a config has the section, or names a tokenizer"
        return self.tokenizer.model

    def section(self, stage: str) -> ClassifierStageConfig | TokenizerStageConfig | GeneratorStageConfig:
        """Of a stage, by its command.

        Raises:
            UsageError: if the stage trains nothing, or the config has no such section.
        """
        sections = {each.command: getattr(self, each.folder) for each in TRAINING}
        if stage not in sections:
            raise UsageError(f"--stage {stage}: only {', '.join(sections)} can be planned")
        found: ClassifierStageConfig | TokenizerStageConfig | GeneratorStageConfig | None = sections[stage]
        if found is None or (isinstance(found, TeacherConfig) and found.timm is not None):
            raise UsageError(f"--stage {stage}: this config trains no {stage.removeprefix('train-')}")
        return found


def tokenizer_at(uri: str) -> TokenizerConfig:
    """The tokenizer of an export, by its card."""
    return tokenizer_config(uri, weights.read_card(uri, "tokenizer"))


def teacher_at(uri: str) -> TeacherConfig:
    """The teacher of an export, by its card. It is not trained."""
    model = weights.read_config(uri, weights.read_card(uri, "teacher"), ClassifierConfig)
    return TeacherConfig(model=model, trainer=TrainerConfig(steps=1, global_batch=1))


@dataclass(frozen=True)
class BlankStage:
    """A stage on a fake device, and the networks that it runs without training them."""

    stage: Stage
    frozen: tuple[nn.Module, ...] = ()


def blank_stage(stage: str, configs: StageConfigs, fake: FakeDevice) -> BlankStage:
    """Build a stage as it would train; call inside of `fake_device`.

    Raises:
        UsageError: as `StageConfigs.section`.
        ValueError: if the config names a backbone that there is not.
    """
    section = configs.section(stage)
    if isinstance(section, TokenizerStageConfig):
        return _tokenizer(section, configs.teacher, fake, configs.proxy)
    if isinstance(section, GeneratorStageConfig):
        return _generator(section, configs, fake)
    from model.classifier import Classifier
    from trainer.stages.classifier import ClassifierStage

    with torch.device("meta"):
        network = Classifier(section.model)
    fake.fill(network)
    return BlankStage(ClassifierStage.without_data(section, network, fake.device))


def _tokenizer(
    section: TokenizerStageConfig, config: TeacherConfig | None, fake: FakeDevice, speaks: TokenizerConfig | None
) -> BlankStage:
    from trainer.stages.judges import build_judges
    from trainer.stages.tokenizer import TokenizerStage

    teacher = _teacher(config, fake) if config is not None and section.loss.needs_teacher else None
    with torch.device("meta"):
        network = build_tokenizer(section.model.without_pretraining())
    fake.fill(network)
    proxy = None
    if speaks is not None and section.model.needs_proxy:
        with torch.device("meta"):
            proxy = cast("Any", build_tokenizer(speaks.without_pretraining()))
        fake.fill(proxy)
        proxy.eval().requires_grad_(requires_grad=False)
    guides = _guides(section, teacher, fake)
    with torch.device("meta"), without_weights():
        judges = build_judges(section, teacher, torch.device("meta"))
    for module in judges.modules:  # and the frozen networks inside, which move with them
        fake.fill(module)
    stage = TokenizerStage.without_data(section, network, guides, fake.device, proxy, judges)
    return BlankStage(stage, stage.frozen if proxy is None else (*stage.frozen, proxy))


def _guides(section: TokenizerStageConfig, teacher: Any, fake: FakeDevice) -> Any:
    """The teachers of a loss, those of its own among them."""
    from trainer.evaluation.networks.teacher import TimmTeacher
    from trainer.stages.guides import Guides

    own, detail = {}, section.loss.detail
    if detail is not None and detail.teacher is not None:
        with torch.device("meta"):
            network = TimmTeacher(detail.teacher, pretrained=False)
        fake.fill(network)
        own["detail"] = network.eval().requires_grad_(requires_grad=False)
    return Guides(section.loss, teacher, own)


def _teacher(config: TeacherConfig, fake: FakeDevice) -> Any:
    from model.classifier import Classifier
    from trainer.evaluation.networks.teacher import TimmTeacher

    with torch.device("meta"):
        if config.network is None:
            network: nn.Module = Classifier(config.model)
        else:
            network = TimmTeacher(config.network, pretrained=False)
    fake.fill(network)
    return network.eval().requires_grad_(requires_grad=False)


def _generator(section: GeneratorStageConfig, configs: StageConfigs, fake: FakeDevice) -> BlankStage:
    from trainer.stages.generator import GeneratorStage

    tokenizer = configs.tokenizer_model
    with torch.device("meta"):
        forcing = build_forcing(tokenizer)
        width = None if forcing is None else forcing.width
        network = build_generator(section.network, tokenizer.layout, width)
    fake.fill(network)
    frozen: list[nn.Module] = []
    if forcing is not None:
        fake.fill(forcing)
        frozen.append(cast("nn.Module", forcing).eval().requires_grad_(requires_grad=False))
    stage = GeneratorStage.without_data(section, network, forcing, fake.device)
    return BlankStage(stage, tuple(frozen))


@contextmanager
def one_rank() -> Iterator[None]:
    """A process group of one rank that communicates with nobody, unless there is a group already."""
    if dist.is_initialized():
        yield
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
