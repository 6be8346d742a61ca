"""LlamaGen's recipes have the sizes, tokens and schedules of what was published, and folded ones the same."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cluster.config.loading import load_config
from cluster.config.run import RunConfig
from model.config import NextTokenConfig, guidance_of
from model.families import build_generator
from model.layout import TokenLayout
from trainer.engine.schedule import learning_rate

FOLDER = Path(str(resources.files("configs"))) / "generator"
RECIPES = sorted(path.stem for path in FOLDER.glob("llamagen-*.yaml"))
PUBLISHED = {
    "b": 110_888_448,
    "l": 342_910_976,
    "xl": 774_699_520,
    "xxl": 1_410_972_672,
    "3b": 3_096_659_200,
}
"""Parameters; positions have none, so that they are the same at 384 pixels."""


@cache
def recipe(name: str) -> RunConfig:
    return load_config(FOLDER / f"{name}.yaml")


def count(name: str, **changes: Any) -> int:
    """Parameters of the recipe's generator over the tokens of its tokenizer."""
    config = recipe(name)
    assert config.tokenizer is not None
    assert config.generator is not None
    model = config.generator.model.model_copy(update=changes)
    with torch.device("meta"):
        network: Any = build_generator(model, config.tokenizer.model.layout, config.tokenizer.model.forcing_width)
    assert isinstance(network, nn.Module)
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("size", PUBLISHED)
@pytest.mark.parametrize("pixels", ["", "-384"])
def test_a_size_has_the_published_number_of_parameters(size: str, pixels: str) -> None:
    assert count(f"llamagen-{size}{pixels}") == PUBLISHED[size]


@pytest.mark.parametrize("size", ["b", "l"])
def test_a_folded_one_has_a_table_and_a_head_for_each_fold_of_4096_codes(size: str) -> None:
    width = {"b": 768, "l": 1024}[size]
    assert count(f"llamagen-{size}-vp2") == PUBLISHED[size] + 2 * (2 * 4096 - 16384) * width


def test_every_recipe_is_of_256_or_576_tokens_of_its_size() -> None:
    assert len(RECIPES) == 12
    for name in RECIPES:
        config = recipe(name)
        assert config.tokenizer is not None
        wanted = TokenLayout((576 if name.endswith("384") else 256,), (4096, 4096) if "vp2" in name else (16384,))
        assert config.tokenizer.model.layout == wanted
        assert config.tokens.views == tuple(f"ten_crop_{crop}" for crop in range(10))


@pytest.mark.parametrize("name", RECIPES)
def test_the_rate_is_constant_and_decay_and_batch_are_the_authors(name: str) -> None:
    section = recipe(name).generator
    assert section is not None
    trainer, model = section.trainer, section.model
    large, huge = "xl" in name or "3b" in name, "xxl" in name or "3b" in name
    rates = {learning_rate(trainer, step) for step in (0, 1000, trainer.steps // 2, trainer.steps - 1)}
    assert rates == {2e-4 if large else 1e-4}
    assert (trainer.steps, trainer.global_batch) == ((750_600, 512) if huge else (1_501_200, 256))
    assert (trainer.weight_decay, trainer.betas, trainer.gradient_clipping) == (0.05, (0.9, 0.95), 1.0)
    assert isinstance(model, NextTokenConfig)
    assert (model.dropout, model.token_dropout, model.label_dropout, model.drop_path) == (0.1, 0.1, 0.1, 0.0)
    assert model.label_smoothing == 0


@pytest.mark.parametrize(("size", "scale"), [("b", 2.0), ("l", 2.0), ("xl", 1.75), ("xxl", 1.75), ("3b", 1.65)])
def test_guidance_is_the_published_scale_in_our_form(size: str, scale: float) -> None:
    sampling = recipe(f"llamagen-{size}-384").sampling
    assert sampling.guidance == pytest.approx(guidance_of("llamagen", scale))
    assert (sampling.top_k, sampling.top_p, sampling.temperature) == (0, 1.0, 1.0)
