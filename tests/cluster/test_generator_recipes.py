"""The generators' recipes have the sizes, tokens and schedules of what was published, and each can be planned."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from cluster.config.loading import load_config
from cluster.config.run import RunConfig
from model.config import GuidanceSchedule, NextScaleConfig, guidance_of
from model.config.random_order import RandomOrderConfig
from model.families import build_generator
from trainer.config import GeneratorStageConfig, TrainerConfig
from trainer.engine.schedule import learning_rate, weight_decay
from trainer.planning.blank_stages import StageConfigs
from trainer.planning.workload import workload

FOLDER = Path(str(resources.files("configs")))
RECIPES = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.glob("generator/*.yaml"))
RECIPES += sorted(str(path.relative_to(FOLDER)) for path in FOLDER.glob("imagefolder/generator-*.yaml"))


@cache
def recipe(name: str) -> RunConfig:
    return load_config(FOLDER / name)


def stage(name: str) -> GeneratorStageConfig:
    found = recipe(name).generator
    assert found is not None
    return found


def configs(name: str, trainer: TrainerConfig | None = None) -> StageConfigs:
    """What a plan looks at; the tokenizer is that of the config, whose export is somewhere else."""
    config, section = recipe(name), stage(name)
    section = section.model_copy(update={"trainer": trainer}) if trainer else section
    return StageConfigs(config.tokenizer, section, None, config.tokens, config.data.reading)


@cache
def parameters(name: str) -> int:
    tokenizer = configs(name).tokenizer_model
    with torch.device("meta"):
        network = cast("nn.Module", build_generator(stage(name).model, tokenizer.layout, tokenizer.forcing_width))
    return sum(weight.numel() for weight in network.parameters())


PUBLISHED = {
    "generator/rar-b.yaml": 260.92e6,
    "generator/rar-l.yaml": 461.67e6,
    "generator/rar-xl.yaml": 955.43e6,
    "generator/rar-xxl.yaml": 1498.52e6,
    "imagefolder/generator-d16.yaml": 314.1e6,
    "imagefolder/generator-d17.yaml": 375.3e6,
    "imagefolder/generator-d20.yaml": 605.7e6,
}
"""Parameters, to 0.1 %."""
EXACT = {
    "generator/var-d16.yaml": 310_283_520,
    "generator/var-d20.yaml": 600_917_136,
    "generator/var-d24.yaml": 1_033_399_360,
    "generator/var-d30.yaml": 2_010_020_356,
    "generator/var-d36-s-512.yaml": 2_353_893_904,
}
"""Parameters, to the last."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_has_the_published_number_of_parameters(name: str) -> None:
    assert parameters(name) == pytest.approx(PUBLISHED[name], rel=1e-3)


@pytest.mark.parametrize("name", EXACT)
def test_vars_recipes_have_the_published_parameters_to_the_last(name: str) -> None:
    assert parameters(name) == EXACT[name]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_its_tokens_and_its_workers(name: str) -> None:
    section, config = stage(name), recipe(name)
    tokenizer = configs(name).tokenizer_model
    section.model.check_layout(tokenizer.layout, tokenizer.forcing_width)
    micro, accumulation = section.trainer.split_over(config.cluster.most_workers)
    assert micro * accumulation * config.cluster.most_workers == section.trainer.global_batch
    assert config.sampling.samples_per_class * 1000 == config.evaluation.samples == 50_000


def kinds() -> dict[str, str]:
    """A recipe for each sort of network: the smallest, as sizes make no difference to what a trace goes through."""
    found: dict[str, str] = {}
    for name in RECIPES:
        dumped: dict[str, Any] = stage(name).model.model_dump(mode="json")
        sorts = (dumped["kind"], dumped.get("shared_adaln"), (dumped.get("backbone") or {}).get("kind"))
        found.setdefault(str((*sorts, configs(name).tokenizer_model.layout.folds)), name)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", kinds().values())
def test_a_recipe_of_each_sort_can_be_planned(name: str) -> None:
    trainer = stage(name).trainer.model_copy(update={"global_batch": 4, "micro_batch": 2})
    plan = workload("train-generator", configs(name, trainer), 2, "cuda")
    assert plan.parameters == parameters(name)
    positions = configs(name).tokenizer_model.layout.positions
    # Two operations of each weight and position forward, four backward, at most; tables are looked up, and AdaLN
    # weights may be used once a sample.
    assert 0.4 * 6 * positions < plan.exact_flops() / parameters(name) < 1.3 * 6 * positions
    assert sum(plan.memory(trainer).device.values()) > 12 * parameters(name)  # weights, halves of master and moments


# ---------------------------------------------------------------------------------------------------------------- VAR

VAR = {
    "d16": (200, 1669, 768, 3e-4, 0.1, 0.05, 1e-3),
    "d20": (250, 1669, 768, 3e-4, 0.1, 0.05, 1e-3),
    "d24": (350, 1669, 768, 2.4e-4, 0.01, 0.05, 1e-4),
    "d30": (350, 1252, 1024, 3.2e-4, 0.01, 0.08, 1e-5),
    "d36-s-512": (350, 1669, 768, 2.4e-4, 0.01, 0.08, 5e-6),
}
"""Epochs, steps of one, batch, peak and last share of the rate, last weight decay, gates at the start."""


@pytest.mark.parametrize("size", VAR)
def test_vars_recipes_are_optimized_as_published(size: str) -> None:
    epochs, steps, batch, rate, last, decay, gates = VAR[size]
    section = stage(f"generator/var-{size}.yaml")
    trainer, model = section.trainer, section.model
    assert isinstance(model, NextScaleConfig)
    total, warmup = epochs * steps, epochs // 50 * steps
    assert (trainer.steps, trainer.warmup_steps, trainer.global_batch) == (total, warmup, batch)
    assert learning_rate(trainer, 0) == pytest.approx(0.005 * rate)
    assert learning_rate(trainer, warmup) == pytest.approx(rate)
    assert learning_rate(trainer, total - 1) == pytest.approx(last * rate)
    assert [weight_decay(trainer, step) for step in (0, total - 1)] == pytest.approx([0.05, decay])
    assert (trainer.betas, trainer.gradient_clipping, trainer.ema_decay) == ((0.9, 0.95), 2.0, 0)
    depth = int(size[1:3])
    assert (model.depth, model.width, model.heads) == (depth, 64 * depth, depth)
    assert model.drop_path == pytest.approx(0.1 * depth / 24, abs=5e-5)
    assert (model.adaln_gamma_init, model.shared_adaln, model.qk_norm) == (gates, size.startswith("d36"), True)


def test_rates_and_decays_of_var_at_single_steps() -> None:
    d16, d30 = (stage(f"generator/var-{size}.yaml").trainer for size in ("d16", "d30"))
    rates = [learning_rate(d16, step) for step in (0, 6676, 22_676, 166_900, d16.steps - 1)]
    assert rates == pytest.approx([1.5e-6, 3e-4, 3e-4, 1.75e-4, 3e-5], rel=1e-4)
    assert learning_rate(d30, 219_100) == pytest.approx(1.7334e-4, rel=1e-4)
    assert weight_decay(d30, 219_100) == pytest.approx(0.065, abs=5e-5)


@pytest.mark.parametrize("size", ["d16", "d20", "d30"])
def test_folded_recipes_of_vars_sizes_are_optimized_as_vars(size: str) -> None:
    folded, plain = (stage(name) for name in (f"imagefolder/generator-{size}.yaml", f"generator/var-{size}.yaml"))
    assert folded.model == plain.model
    for step in (0, 10_000, plain.trainer.steps - 1):
        assert learning_rate(folded.trainer, step) == pytest.approx(learning_rate(plain.trainer, step))
        assert weight_decay(folded.trainer, step) == pytest.approx(weight_decay(plain.trainer, step))


def test_imagefolders_own_generator_has_its_published_recipe() -> None:
    section = stage("imagefolder/generator-d17.yaml")
    trainer, model = section.trainer, section.model
    assert isinstance(model, NextScaleConfig)
    assert (model.depth, model.width, model.heads, model.adaln_gamma_init) == (17, 1088, 17, 1e-4)
    assert (trainer.steps, trainer.warmup_steps) == (350 * 1669, 7 * 1669)
    assert [learning_rate(trainer, step) for step in (trainer.warmup_steps, trainer.steps - 1)] == pytest.approx(
        [2.4e-4, 2.4e-6]
    )
    assert weight_decay(trainer, trainer.steps - 1) == 0.05
    sampling = recipe("imagefolder/generator-d17.yaml").sampling
    assert (sampling.guidance, sampling.top_k, sampling.top_p) == (3.25, 750, 0.95)


# ---------------------------------------------------------------------------------------------------------------- RAR

RAR = {"b": (16.0, 2.75, 1.0), "l": (15.5, 2.5, 1.02), "xl": (6.9, 1.5, 1.02), "xxl": (8.0, 1.2, 1.02)}
RAR |= {"b-vp2": RAR["b"]}
"""Published guidance scales, powers and temperatures; those of product tokens are B's."""


@pytest.mark.parametrize("size", RAR)
def test_rars_recipes_are_optimized_and_sampled_as_published(size: str) -> None:
    name = f"generator/rar-{size}.yaml"
    section, sampling = stage(name), recipe(name).sampling
    trainer, model = section.trainer, section.network
    assert isinstance(model, RandomOrderConfig)
    assert (trainer.steps, trainer.global_batch) == (250_000, 2048)
    assert [learning_rate(trainer, step) for step in (62_500, 249_999)] == pytest.approx([4e-4, 1e-5])
    assert (trainer.betas, trainer.weight_decay, trainer.gradient_clipping) == ((0.9, 0.96), 0.03, 1.0)
    assert [model.random_share(step) for step in (124_999, 156_250, 187_500)] == [1.0, 0.5, 0.0]
    assert (model.dropout, model.attention_dropout, model.label_dropout, trainer.ema_decay) == (0.1, 0.1, 0.1, 0)
    assert recipe(name).tokens.views == tuple(f"ten_crop_{number}" for number in range(10))
    scale, power, temperature = RAR[size]
    assert sampling.guidance == pytest.approx(guidance_of("rar", scale))
    assert sampling.guidance_schedule == GuidanceSchedule(kind="cosine", power=power)
    assert sampling.temperature == temperature
    assert (sampling.top_k, sampling.top_p) == (0, 1.0)
