"""The next-token order: what it sees, that sampling step by step computes what training did, its sizes and draws."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import GuidanceSchedule, NextTokenConfig
from model.families import build_generator
from model.generators.next_token import Block, NextTokenGenerator
from model.generators.next_token_sampling import Slots
from model.layers.dropout import keep_factors
from model.layers.visibility import GroupCausal
from model.layout import TokenLayout
from model.protocols import SamplingPlan

GRID = TokenLayout((9,), (11, 11))
SMALL: dict[str, Any] = {"num_classes": 5, "depth": 2, "width": 24, "heads": 3, "mlp_width": 32}
PLAIN: dict[str, Any] = {"dropout": 0.0, "token_dropout": 0.0}
DEPTH_HEAD = {"kind": "depth", "depth": 1, "width": 8, "heads": 2}
LAYOUTS: dict[str, tuple[TokenLayout, dict[str, Any]]] = {
    "a grid": (TokenLayout((9,), (11,)), {}),
    "a folded grid": (GRID, {}),
    "folds of two vocabularies": (TokenLayout((9,), (11, 4)), {"head": DEPTH_HEAD}),
    "latents": (TokenLayout((7,), (11,)), {"rotary": "line"}),
    "scales": (TokenLayout((1, 4, 9), (11, 11)), {"rotary": "none", "learned_positions": True}),
    "unfolded": (GRID.unfolded(), {"head": DEPTH_HEAD}),
}


def make(layout: TokenLayout = GRID, **options: Any) -> NextTokenGenerator:
    """A small generator whose head is open, so that every part of it shows in the logits."""
    torch.manual_seed(0)
    generator = NextTokenGenerator(NextTokenConfig.model_validate(SMALL | PLAIN | options), layout)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.normal_(std=0.3)
    return generator.eval()


def tokens_of(layout: TokenLayout, batch: int = 2, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, layout.positions)
    return torch.stack([torch.randint(codes, shape, generator=generator) for codes in layout.vocabularies], dim=-1)


LABEL_B = torch.tensor([1, 4])


@pytest.mark.parametrize("name", LAYOUTS)
def test_steps_with_a_cache_give_the_logits_of_training(name: str) -> None:
    layout, options = LAYOUTS[name]
    generator, tokens_BLF = make(layout, **options), tokens_of(layout)
    with torch.no_grad():
        trained = generator.read(LABEL_B, tokens_BLF[:, :-1])
        slots = Slots(generator, LABEL_B, guided=True)
        steps = [slots.read(tokens_BLF[:, i - 1] if i else None) for i in range(layout.positions)]
        null = generator.read(torch.full_like(LABEL_B, 5), tokens_BLF[:, :-1])
        stepped = torch.stack(steps, dim=1)
        for found, wanted in ((stepped[:2], trained), (stepped[2:], null)):
            logits = [generator.head.logits(x.flatten(0, 1), tokens_BLF.flatten(0, 1)) for x in (found, wanted)]
            for actual, expected in zip(*logits, strict=True):
                torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    assert (trained - null).abs().amax(-1).gt(1e-4).all()


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("position", [2, 5])
def test_a_token_changes_what_comes_after_it_and_nothing_before(name: str, position: int) -> None:
    layout, options = LAYOUTS[name]
    generator, tokens_BLF = make(layout, **options), tokens_of(layout)
    changed = tokens_BLF.clone()
    changed[:, position:] = changed[:, position:].flip(1)
    changed[:, position] = (tokens_BLF[:, position] + 1) % 4
    with torch.no_grad():
        before, after = (generator(LABEL_B, each).losses_NF for each in (tokens_BLF, changed))
    torch.testing.assert_close(after[:, :position], before[:, :position], atol=1e-6, rtol=0)
    assert (after[:, position + 1 :] != before[:, position + 1 :]).any(2).all()


def test_positions_of_equal_tokens_are_told_apart_by_row_and_column() -> None:
    generator = make(TokenLayout((9,), (11,)))
    with torch.no_grad():
        losses = generator(LABEL_B[:1], torch.full((1, 9, 1), 3)).losses_NF[0, :, 0]
    assert len({round(float(loss), 4) for loss in losses}) == 9


def test_the_class_is_turned_by_zero_and_the_first_cell_not_at_all() -> None:
    """A query of the class sees itself alone, and its key has the logit 0 for all others."""
    turns = make().rotation(9, torch.device("cpu"))
    assert turns is not None
    assert turns.shape == (9, 4, 2)
    assert not turns[0].any()
    assert turns[1].tolist() == [[1.0, 0.0]] * 4
    assert turns[2, :2].tolist() == [[1.0, 0.0]] * 2  # row 0
    assert turns[2, 2].tolist() == pytest.approx([math.cos(1), math.sin(1)])  # column 1
    assert turns[4, 0].tolist() == pytest.approx([math.cos(1), math.sin(1)])  # row 1, after three columns


def test_unfolded_tokens_of_one_place_share_its_row_and_column() -> None:
    folded = make(TokenLayout((9,), (11,))).rotation(9, torch.device("cpu"))
    unfolded = make(GRID.unfolded()).rotation(18, torch.device("cpu"))
    assert folded is not None
    assert unfolded is not None
    assert torch.equal(unfolded[1:17], folded[1:].repeat_interleave(2, dim=0))


SIZES = {
    "B": (12, 768, 12, 110_888_448),
    "L": (24, 1024, 16, 342_910_976),
    "XL": (36, 1280, 20, 774_699_520),
    "XXL": (48, 1536, 24, 1_410_972_672),
    "3B": (24, 3200, 32, 3_096_659_200),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side", [16, 24])
def test_the_published_sizes_have_the_published_number_of_parameters(size: str, side: int) -> None:
    depth, width, heads, count = SIZES[size]
    config = NextTokenConfig(num_classes=1000, depth=depth, width=width, heads=heads)
    with torch.device("meta"):
        generator = NextTokenGenerator(config, TokenLayout((side**2,), (16384,)))
    assert sum(parameter.numel() for parameter in generator.parameters()) == count


def test_stochastic_depth_grows_from_nothing_at_the_first_block_to_all_at_the_last() -> None:
    generator = make(depth=5, drop_path=0.2, dropout=0.0)
    assert [block.drop_path for block in generator._blocks()] == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])


def test_a_fresh_generator_starts_at_even_odds_and_has_published_widths() -> None:
    torch.manual_seed(0)
    config = NextTokenConfig.model_validate(SMALL | {"width": 96})
    generator = NextTokenGenerator(config, TokenLayout((9,), (16384,))).eval()
    found = generator(LABEL_B, torch.zeros(2, 9, 1, dtype=torch.int64))
    assert found.mean.item() == pytest.approx(9.704, abs=1e-3)
    assert not found.hits_NF.any()
    for name in ("token_embed.weight", "class_embed.weight", "blocks.1.attention.qkv.weight", "blocks.0.fc2.weight"):
        assert generator.get_parameter(name).std().item() == pytest.approx(0.02, rel=0.1), name
    assert generator.get_parameter("blocks.0.norm1.weight").unique().tolist() == [1]


def test_weight_decay_takes_tables_of_tokens_and_spares_norms() -> None:
    generator = make(GRID.unfolded(), learned_positions=True)
    spared = generator.no_decay_parameters()
    decayed = {name for name, _ in generator.named_parameters()} - spared
    assert {"norm.weight", "blocks.0.norm1.weight", "position_embed", "fold_embed"} <= spared
    assert {"class_embed.weight", "token_embed.weight", "head.weight", "blocks.0.fc1.weight"} <= decayed


RANDOM = {"dropout": {"dropout": 0.4}, "tokens": {"token_dropout": 0.4}, "depth": {"drop_path": 0.6}}


@pytest.mark.parametrize("name", RANDOM)
def test_what_is_dropped_follows_from_each_samples_seed_and_in_training_alone(name: str) -> None:
    generator = make(**RANDOM[name])
    tokens_BLF, label_B, seed_B = tokens_of(GRID, 8), torch.arange(8) % 5, torch.arange(8)
    with torch.no_grad():
        assert torch.equal(generator(label_B, tokens_BLF, seed_B)[1], generator(label_B, tokens_BLF)[1])
        generator.train()
        whole = generator(label_B, tokens_BLF, seed_B).losses_NF
        assert torch.equal(whole, generator(label_B, tokens_BLF, seed_B).losses_NF)
        assert (whole != generator(label_B, tokens_BLF, seed_B + 8).losses_NF).any()
        for part in (slice(0, 3), slice(3, 8)):
            alone = generator(label_B[part], tokens_BLF[part], seed_B[part]).losses_NF
            torch.testing.assert_close(alone, whole[part], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="needs seed_B"):
        generator(label_B, tokens_BLF)


@pytest.mark.parametrize("name", ["nothing", "dropout", "drop_path"])
def test_a_block_adds_attention_and_mlp_each_thinned_by_numbers_of_its_own(name: str) -> None:
    """By hand: y = x + keep * attention(norm(x)), then y + keep * mlp(norm(y)); a half is kept, twice as large."""
    block = make(**({} if name == "nothing" else {name: 0.5})).train().blocks[-1]
    assert isinstance(block, Block)
    groups, x_BLC = GroupCausal.next_token(9), torch.randn(3, 9, 24, generator=torch.Generator().manual_seed(2))
    seed_2B, chance_2B = torch.arange(6).view(2, 3), torch.tensor([[0.1, 0.9, 0.7], [0.8, 0.2, 0.6]])
    keep_of_attention = keep_of_mlp = torch.ones(())
    if name == "dropout":
        keep_of_attention, keep_of_mlp = (keep_factors(x_BLC.shape[1:], seed_B, 0.5) for seed_B in seed_2B)
    elif name == "drop_path":
        keep_of_attention, keep_of_mlp = torch.tensor([[0.0, 2.0, 2.0], [2.0, 0.0, 2.0]])[..., None, None]
    with torch.no_grad():
        mixed_BLC = block.attention(block.norm1(x_BLC, torch.float32), groups, rotation_LD2=None)
        expected = x_BLC + keep_of_attention * mixed_BLC
        gate, up = block.fc1(block.norm2(expected, torch.float32)).chunk(2, dim=-1)
        expected = expected + keep_of_mlp * block.fc2(F.silu(gate) * up)
        found = block(x_BLC, groups, None, seed_2B=seed_2B, chance_2B=chance_2B)
    torch.testing.assert_close(found, expected)


def test_terms_have_the_loss_and_those_of_each_fold_and_smoothing_is_for_training() -> None:
    generator, tokens_BLF = make(label_smoothing=0.3), tokens_of(GRID)
    terms = generator.training_terms(tokens_BLF, LABEL_B, None)
    assert set(terms) == {"loss", *(f"{kind}_group0_fold{fold}" for kind in ("loss", "accuracy") for fold in (0, 1))}
    both = (terms["loss_group0_fold0"] + terms["loss_group0_fold1"]) / 2
    torch.testing.assert_close(terms["loss"], both)
    trained = generator.train().training_terms(tokens_BLF, LABEL_B, None)
    torch.testing.assert_close(trained["loss_group0_fold0"], terms["loss_group0_fold0"])
    assert abs(float((trained["loss"] - both).detach())) > 1e-3


@pytest.mark.parametrize("way", ["autocast", "bf16 weights"])
def test_half_precision_is_near_float32_and_reaches_every_parameter(way: str) -> None:
    generator, tokens_BLF = make(), tokens_of(GRID)
    exact = generator(LABEL_B, tokens_BLF).losses_NF
    if way == "bf16 weights":
        generator.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        found = generator(LABEL_B, tokens_BLF)
    assert found.mean.dtype == found.losses_NF.dtype == torch.float32
    assert (found.losses_NF - exact).norm() / exact.norm() < 0.03
    found.mean.backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in generator.parameters())


# ------------------------------------------------------------------------------------------------------------ sampling


def plan_of(layout: TokenLayout, batch: int = 3, **options: Any) -> SamplingPlan:
    generator = torch.Generator().manual_seed(5)
    uniform = torch.rand(batch, layout.positions, layout.folds, generator=generator)
    return SamplingPlan(torch.arange(batch) % 5, uniform, **options)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize(("guidance", "schedule"), [(0.0, None), (1.5, None), (40.0, GuidanceSchedule(kind="linear"))])
def test_tokens_are_drawn_from_the_guided_logits_of_training(
    name: str, guidance: float, schedule: GuidanceSchedule | None
) -> None:
    """As published guidance is all there from the first token on; linear, it grows to all of it at the last."""
    layout, options = LAYOUTS[name]
    generator = make(layout, **options)
    plan = plan_of(layout, guidance=guidance, temperature=0.8, schedule=schedule)
    drawn = generator.sample(plan)
    share_L = torch.linspace(0, 1, layout.positions) if schedule else torch.ones(layout.positions)
    guidance_N1 = guidance * share_L.repeat(len(drawn))[:, None]
    with torch.no_grad():
        reads = [generator.read(label, drawn[:, :-1]) for label in (plan.condition_B, torch.full((3,), 5))]
        logits = [generator.head.logits(read.flatten(0, 1), drawn.flatten(0, 1)) for read in reads]
    for fold, (c, u) in enumerate(zip(*logits, strict=True)):
        odds = ((c + guidance_N1 * (c - u)) / 0.8).softmax(-1).double().cumsum(-1)
        number, token = plan.uniform_BLF[..., fold].reshape(-1, 1).double(), drawn[..., fold].reshape(-1, 1)
        ends = torch.cat((torch.zeros_like(odds[:, :1]), odds), dim=1)
        assert (ends.gather(1, token) <= number + 1e-4).all()
        assert (number - 1e-4 <= ends.gather(1, token + 1)).all()


def test_an_image_does_not_depend_on_its_batch() -> None:
    generator, plan = make(), plan_of(GRID, 5, guidance=2.0, top_k=5)
    alone = SamplingPlan(plan.condition_B[3:4], plan.uniform_BLF[3:4], guidance=2.0, top_k=5)
    assert torch.equal(generator.sample(plan)[3:4], generator.sample(alone))


@pytest.mark.parametrize("head", [{"kind": "independent"}, DEPTH_HEAD], ids=["independent", "depth"])
def test_kept_tokens_stay_and_what_comes_after_knows_them(head: dict[str, Any]) -> None:
    generator, plan = make(head=head), plan_of(GRID, 40)
    drawn = generator.sample(plan)
    kept = torch.full_like(drawn, -1)
    kept[:, 2, 0] = (drawn[:, 2, 0] + 1) % 11
    again = generator.sample(replace(plan, kept_BLF=kept))
    assert torch.equal(again[:, 2, 0], kept[:, 2, 0])
    assert torch.equal(again[:, :2], drawn[:, :2])
    assert not torch.equal(again[:, 3:], drawn[:, 3:])
    assert torch.equal(generator.sample(replace(plan, kept_BLF=drawn)), drawn)


def test_sampling_refuses_training_mode_and_other_shapes() -> None:
    generator, plan = make(), plan_of(GRID)
    with pytest.raises(ValueError, match=r"uniform numbers are \[3, 8, 2\], but this needs \[3, 9, 2\]"):
        generator.sample(replace(plan, uniform_BLF=plan.uniform_BLF[:, 1:]))
    with pytest.raises(ValueError, match="call eval"):
        generator.train().sample(plan)


# ------------------------------------------------------------------------------------------------------------- layouts

REFUSED: dict[str, tuple[TokenLayout, dict[str, Any]]] = {
    "not one square grid": (TokenLayout((8,), (11,)), {}),
    "36 positions in 2 groups": (TokenLayout((18, 18), (11,)), {}),
    "which folds of .11, 4. codes cannot share": (TokenLayout((9,), (11, 4)), {"unfold": True}),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_layouts_that_have_no_rows_and_columns_are_refused_with_the_reason(reason: str) -> None:
    layout, options = REFUSED[reason]
    with pytest.raises(ValueError, match=reason):
        build_generator(NextTokenConfig.model_validate(SMALL | options), layout, None)


WRONG: dict[str, dict[str, Any]] = {
    "multiple of 4: rotary is grid": {"width": 30, "heads": 5},
    "multiple of 1: rotary is none": {"width": 30, "heads": 4, "rotary": "none", "learned_positions": True},
    "drop_path takes the place of dropout": {"drop_path": 0.1, "dropout": 0.1},
    "no position is told from another": {"rotary": "none"},
}


@pytest.mark.parametrize("reason", WRONG)
def test_options_that_do_not_go_together_are_refused(reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        NextTokenConfig.model_validate(SMALL | WRONG[reason])
