"""Folded tokens as positions of one fold."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from model.config import GeneratorConfig, NextScaleConfig, NextTokenConfig
from model.config.masked import BertConfig, MaskedConfig
from model.config.random_order import RandomOrderConfig
from model.families import build_generator
from model.generators.unfold import Unfolded
from model.layout import TokenLayout
from model.protocols import SamplingPlan

LAYOUT = TokenLayout((4,), (7, 7))
SMALL: dict[str, Any] = {"num_classes": 3, "depth": 1, "width": 16, "heads": 2, "dropout": 0.0}
CONFIGS: dict[str, GeneratorConfig] = {
    "next-token": NextTokenConfig(**SMALL, unfold=True, token_dropout=0.0),
    "random": RandomOrderConfig(**SMALL, unfold=True, attention_dropout=0.0),
    "masked": MaskedConfig(num_classes=3, backbone=BertConfig(depth=1, width=16, heads=2), unfold=True),
}


def make(kind: str, layout: TokenLayout = LAYOUT) -> Unfolded:
    torch.manual_seed(0)
    generator = cast("Unfolded", build_generator(CONFIGS[kind], layout, None))
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return generator.eval()


@pytest.mark.parametrize("kind", CONFIGS)
def test_to_everyone_else_it_is_of_the_stored_layout(kind: str) -> None:
    generator = make(kind)
    assert generator.layout == LAYOUT
    assert generator.config is CONFIGS[kind]
    assert generator.null_class == 3
    names = {name for name, _ in generator.named_parameters()}
    assert generator.no_decay_parameters() < names


@pytest.mark.parametrize("kind", CONFIGS)
def test_its_terms_are_those_of_one_fold_and_still_told_by_fold(kind: str) -> None:
    generator = make(kind)
    tokens_BLF, label_B = torch.randint(7, (3, 4, 2), generator=torch.Generator().manual_seed(1)), torch.arange(3)
    terms = generator.training_terms(tokens_BLF, label_B, torch.arange(3))
    inner = cast("Any", generator.inner)
    assert inner.layout == TokenLayout((8,), (7,), 2)
    alone = inner.training_terms(tokens_BLF.reshape(3, 8, 1), label_B, torch.arange(3))
    torch.testing.assert_close(terms["loss"], alone["loss"])
    folds = [terms[f"loss_group0_fold{fold}"] for fold in (0, 1)]
    torch.testing.assert_close(torch.stack(folds).mean(), terms["loss"])
    assert "accuracy_group0_fold1" in terms


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_fold_sees_the_folds_before_it_at_its_own_position(kind: str) -> None:
    generator = make(kind)
    tokens_BLF, label_B = torch.zeros(1, 4, 2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    changed = tokens_BLF.clone()
    changed[:, 3, 0] = 5
    before, after = (generator.training_terms(each, label_B, torch.arange(1)) for each in (tokens_BLF, changed))
    assert abs(float(before["loss_group0_fold1"] - after["loss_group0_fold1"])) > 1e-4


@pytest.mark.parametrize("kind", CONFIGS)
def test_samples_are_the_inner_ones_folded_and_keep_what_is_given(kind: str) -> None:
    generator = make(kind)
    uniform_BLF = torch.rand(2, 4, 2, generator=torch.Generator().manual_seed(2))
    plan = SamplingPlan(torch.tensor([0, 2]), uniform_BLF, guidance=1.0)
    drawn = generator.sample(plan)
    inner = cast("Any", generator.inner)
    alone = inner.sample(SamplingPlan(plan.condition_B, uniform_BLF.reshape(2, 8, 1), guidance=1.0))
    assert torch.equal(drawn, alone.view(2, 4, 2))
    kept = torch.full_like(drawn, -1)
    kept[:, 1, 1] = 6
    again = generator.sample(SamplingPlan(plan.condition_B, uniform_BLF, guidance=1.0, kept_BLF=kept))
    assert again[:, 1, 1].tolist() == [6, 6]
    if kind != "masked":  # whose tokens all follow what is given
        assert torch.equal(again[:, 0], drawn[:, 0])


@pytest.mark.parametrize("kind", CONFIGS)
def test_one_fold_unfolded_is_the_same_as_folded(kind: str) -> None:
    layout = TokenLayout((4,), (7,))
    unfolded, folded = (
        make(kind, layout),
        build_generator(CONFIGS[kind].model_copy(update={"unfold": False}), layout, None),
    )
    cast("torch.nn.Module", folded).load_state_dict(cast("torch.nn.Module", unfolded.inner).state_dict())
    cast("torch.nn.Module", folded).eval()
    tokens_BLF, label_B = torch.arange(8).view(2, 4, 1) % 7, torch.tensor([0, 2])
    terms = [each.training_terms(tokens_BLF, label_B, torch.arange(2), None) for each in (unfolded, folded)]
    assert terms[0].keys() == terms[1].keys()
    assert all(torch.equal(terms[0][name], terms[1][name]) for name in terms[0])
    plan = SamplingPlan(label_B, torch.rand(2, 4, 1, generator=torch.Generator().manual_seed(3)), guidance=1.5)
    assert torch.equal(unfolded.sample(plan), folded.sample(plan, None))


def test_next_scale_says_why_it_has_nothing_to_unfold() -> None:
    config = NextScaleConfig(num_classes=2, depth=1, width=8, heads=1, unfold=True)
    with pytest.raises(
        ValueError, match="kind next-scale predicts from sums over all folds, so there is nothing to unfold"
    ):
        build_generator(config, TokenLayout((1, 4), (8, 8)), 8)
