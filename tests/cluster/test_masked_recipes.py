"""The recipes of masked generators have the sizes, schedules and samplers of what was published."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import nn

from cluster.config.loading import load_config
from cluster.config.run import RunConfig
from model.config.masked import MaskedConfig, MaskedOptions
from model.config.sampling import GuidanceSchedule, guidance_of
from model.families import build_generator
from trainer.config import GeneratorStageConfig
from trainer.engine.schedule import learning_rate
from trainer.planning.blank_stages import StageConfigs, blank_stage, one_rank
from trainer.planning.fake_device import fake_device

FOLDER = Path(str(resources.files("configs"))) / "generator"
TITOK = ["l-32", "b-64", "s-128", "s-128-8-steps", "512-l-64", "512-b-128"]
NAMES = [*(f"maskgit-titok-{name}" for name in TITOK), "maskgit-vqgan-256"]
BERT, UVIT, GRID = 177.2e6, 294.99e6, 172_652_800
"""Published parameters; of the last by arithmetic (specs of the baselines, 4.1), with the type of tokens that it is
without: two rows."""


@cache
def recipe(name: str) -> RunConfig:
    return load_config(FOLDER / f"{name}.yaml")


def stage(name: str) -> GeneratorStageConfig:
    found = recipe(name).generator
    assert found is not None
    return found


def configs(name: str) -> StageConfigs:
    """What a plan looks at, with the tokenizer of the config: its export lies on an object storage of somebody's."""
    config = recipe(name)
    assert config.tokenizer is not None
    given = config.tokenizer.model
    return StageConfigs(config.tokenizer, config.generator, config.teacher, config.tokens, config.data.reading, given)


def test_every_masked_recipe_is_tested() -> None:
    assert {path.stem for path in FOLDER.glob("maskgit-*.yaml")} == set(NAMES)


@pytest.mark.parametrize(
    ("name", "layout", "parameters"),
    [
        ("maskgit-titok-l-32", (32, 4096), BERT),
        ("maskgit-titok-b-64", (64, 4096), BERT),
        ("maskgit-titok-s-128", (128, 4096), UVIT),
        ("maskgit-titok-s-128-8-steps", (128, 4096), UVIT),
        ("maskgit-titok-512-l-64", (64, 4096), BERT),
        ("maskgit-titok-512-b-128", (128, 4096), BERT),
        ("maskgit-vqgan-256", (256, 1024), GRID),
    ],
)
def test_a_recipe_has_the_published_tokens_and_parameters(
    name: str, layout: tuple[int, int], parameters: float
) -> None:
    tokenizer = recipe(name).tokenizer
    assert tokenizer is not None
    of_tokens = tokenizer.model.layout
    assert (of_tokens.groups, of_tokens.vocabularies) == ((layout[0],), (layout[1],))
    with torch.device("meta"):
        network = cast("nn.Module", build_generator(stage(name).model, of_tokens, None))
    found = sum(weight.numel() for weight in network.parameters())
    assert found == pytest.approx(parameters, rel=1e-3)
    if parameters == GRID:
        assert found == GRID - 2 * 768


@pytest.mark.parametrize("name", [f"maskgit-titok-{name}" for name in TITOK])
def test_titoks_generators_are_trained_as_published(name: str) -> None:
    section = stage(name)
    model, trainer = section.model, section.trainer
    assert isinstance(model, MaskedConfig)
    assert (model.mask_schedule, model.unmasked_weight, model.label_smoothing) == ("arccos", 0.1, 0.1)
    assert (model.label_dropout, model.num_classes) == (0.1, 1000)
    assert (trainer.global_batch, trainer.steps, trainer.betas) == (2048, 500_000, (0.9, 0.96))
    assert (trainer.weight_decay, trainer.gradient_clipping, trainer.ema_decay) == (0.03, 1.0, 0.999)
    assert trainer.ema_warmup
    assert trainer.precision == "bf16"
    rates = [learning_rate(trainer, step) for step in (5_000, 10_000, 255_000, 499_999)]
    assert rates == pytest.approx([1e-4, 2e-4, (2e-4 + 1e-5) / 2, 1e-5], rel=1e-3)


@pytest.mark.parametrize(
    ("name", "guidance", "schedule", "options"),
    [
        ("l-32", guidance_of("maskgit-linear", 4.5), GuidanceSchedule(kind="linear"), {"choice_temperature": 9.5}),
        ("b-64", guidance_of("maskgit-linear", 3.0), GuidanceSchedule(kind="linear"), {"choice_temperature": 11.0}),
        (
            "s-128",
            guidance_of("titok-cosine", 6.9),
            GuidanceSchedule(kind="cosine", power=3),
            {"choice_temperature": 2.8, "steps": 64},
        ),
        (
            "s-128-8-steps",
            guidance_of("titok-cosine", 6.9),
            GuidanceSchedule(kind="cosine", power=3),
            {"choice_temperature": 2.8},
        ),
    ],
)
def test_titoks_samplers_are_those_of_the_releases(
    name: str, guidance: float, schedule: GuidanceSchedule, options: dict[str, float]
) -> None:
    sampling = recipe(f"maskgit-titok-{name}").sampling
    assert sampling.guidance == pytest.approx(guidance)
    assert sampling.guidance_schedule == schedule
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.samples_per_class) == (1.0, 0, 1.0, 50)
    found = sampling.order_of(stage(f"maskgit-titok-{name}").model)
    assert found == MaskedOptions(**{"steps": 8, **options})
    assert isinstance(found, MaskedOptions)
    assert (found.mask_schedule, found.noisy_tokens, found.softmax_annealing) == ("arccos", True, True)
    assert found.confidence == "logit"


def test_maskgits_own_sampler_draws_at_temperature_one_and_is_sure_by_probability() -> None:
    """Baselines, 4.2."""
    sampling, section = recipe("maskgit-vqgan-256").sampling, stage("maskgit-vqgan-256")
    found = sampling.order_of(section.model)
    assert isinstance(found, MaskedOptions)
    assert sampling.guidance == 0
    assert (found.steps, found.choice_temperature, found.mask_schedule) == (8, 4.5, "cosine")
    assert (found.noisy_tokens, found.softmax_annealing, found.confidence) == (False, False, "log-probability")
    assert found.counts(256) == [256, 251, 236, 212, 181, 142, 97, 49, 0]
    model, trainer = section.model, section.trainer
    assert isinstance(model, MaskedConfig)
    assert (model.mask_schedule, model.unmasked_weight, model.label_smoothing) == ("cosine", 0.0, 0.1)
    assert (trainer.global_batch, trainer.steps, trainer.weight_decay) == (256, 2_000_000, 0.045)
    assert [learning_rate(trainer, step) for step in (5_000, 1_999_999)] == pytest.approx([1e-4, 1e-4])


@pytest.mark.parametrize("name", ["maskgit-titok-l-32", "maskgit-titok-s-128"])
def test_a_recipe_is_planned(name: str) -> None:
    with one_rank(), fake_device("cuda", torch.bfloat16) as fake:
        built = blank_stage("train-generator", configs(name), fake).stage
        found = sum(weight.numel() for weight in built.trainables["generator"].module.parameters())
    assert found == pytest.approx(BERT if name.endswith("32") else UVIT, rel=1e-3)
