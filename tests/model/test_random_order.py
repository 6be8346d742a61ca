"""RAR: which orders are learned when, what a position sees, and that sampling computes what training did."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.config.random_order import RandomOrderConfig, RandomOrderOptions
from model.config.sampling import GuidanceSchedule
from model.families import build_generator
from model.generators.choosing import choose
from model.generators.random_order import SHARE, Block, RandomOrderGenerator
from model.generators.random_order_sampling import Slots
from model.generators.scans import random_orders
from model.layers.dropout import keep_factors
from model.layers.visibility import GroupCausal
from model.layout import TokenLayout
from model.protocols import SamplingPlan

SQUARE = TokenLayout((9,), (11,))
FOLDED = TokenLayout((9,), (11, 7))
SCALES = TokenLayout((1, 4, 4), (5, 5))
LATENTS = TokenLayout((32,), (11,))
SMALL: dict[str, Any] = {"num_classes": 5, "depth": 2, "width": 24, "heads": 3}
SEED_B = torch.tensor([3, 1 << 50, -8])
LABEL_B = torch.tensor([1, 4, 0])


def make(layout: TokenLayout = SQUARE, **options: Any) -> RandomOrderGenerator:
    """A small generator whose every part shows in the logits."""
    torch.manual_seed(0)
    config = RandomOrderConfig.model_validate(SMALL | options).with_steps(100)
    generator = RandomOrderGenerator(config, layout)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.normal_(std=0.3)
    return generator.eval()


def tokens(layout: TokenLayout, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    folds = [torch.randint(size, (batch, layout.positions), generator=generator) for size in layout.vocabularies]
    return torch.stack(folds, dim=2)


def uniforms(layout: TokenLayout, batch: int = 3) -> Tensor:
    return torch.rand(batch, layout.positions, layout.folds, generator=torch.Generator().manual_seed(3))


def in_order(tokens_BLF: Tensor, order_BL: Tensor) -> Tensor:
    return tokens_BLF.gather(1, order_BL[..., None].expand_as(tokens_BLF))


# ------------------------------------------------------------------------------------------------------------- orders


def test_the_share_of_random_orders_is_one_then_falls_on_a_line_to_none() -> None:
    published = RandomOrderConfig().with_steps(250_000)
    assert (published.random_until, published.scan_from) == (125_000, 187_500)
    steps = (0, 124_999, 125_000, 140_625, 156_250, 187_499, 187_500, 249_999)
    expected = (1, 1, 1, 0.75, 0.5, 1 / 62_500, 0, 0)
    assert [published.random_share(step) for step in steps] == pytest.approx(expected)
    assert RandomOrderConfig(random_until=0, scan_from=0).random_share(0) == 0
    assert RandomOrderConfig(random_until=50, scan_from=50).random_share(49) == 1
    with pytest.raises(ValueError, match="random_until 9 comes after scan_from 5"):
        RandomOrderConfig(random_until=9, scan_from=5)


def test_shares_of_the_training_move_with_its_steps() -> None:
    config = RandomOrderConfig.model_validate({"random_until": {"share": 0.25}, "scan_from": {"share": 1}})
    assert config.with_steps(1000).random_share(250) == 1.0
    assert config.with_steps(1000).random_share(625) == 0.5
    assert config.with_steps(10).random_share(8) == pytest.approx(2 / 8)
    mixed = RandomOrderConfig.model_validate({"random_until": 30, "scan_from": {"share": 0.5}})
    assert mixed.with_steps(80).random_share(35) == 0.5
    with pytest.raises(ValueError, match="random_until 30 comes after scan_from 10"):
        mixed.with_steps(20)
    with pytest.raises(ValueError, match=r"random_until 0.5 comes after scan_from 0.25"):
        RandomOrderConfig.model_validate({"scan_from": {"share": 0.25}})
    with pytest.raises(ValueError, match="no step yet"):
        config.random_share(3)
    steps = RandomOrderConfig(random_until=1, scan_from=2)
    assert steps.with_steps(1000) is steps


@pytest.mark.parametrize(
    "wrong",
    [{"random_until": -1}, {"scan_from": 10**9 + 1}, {"random_until": {"share": -0.1}}, {"scan_from": {"share": 1.1}}],
    ids=str,
)
def test_a_step_is_none_before_the_first_and_a_share_no_more_than_all(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"(greater|less) than or equal to"):
        RandomOrderConfig.model_validate(wrong)


def test_each_sample_has_an_order_of_its_own_or_the_scan_by_its_seed_alone() -> None:
    generator = make(scan="alternate").train()
    seed_B, share = torch.arange(4000) * 104_729, torch.tensor(0.3)
    order_BL = generator.orders(4000, seed_B, share)
    own_B = (order_BL != generator.scan_L).any(1)
    assert 0.27 < float(own_B.float().mean()) < 0.33  # the standard deviation is 0.007
    assert len(order_BL[own_B].unique(dim=0)) > 1100, "orders of samples are one another's"
    assert torch.equal(generator.orders(2, seed_B[50:52], share), order_BL[50:52])
    assert torch.equal(order_BL[0].sort().values, torch.arange(9))
    assert generator.scan_L.tolist() == [0, 1, 2, 5, 4, 3, 6, 7, 8]


@pytest.mark.parametrize(("share", "expected"), [(1.0, 1.0), (0.0, 0.0)])
def test_the_step_says_how_many_orders_are_random(share: float, expected: float) -> None:
    generator = make(random_until=10, scan_from=20, dropout=0, attention_dropout=0).train()
    told = generator.of_step(9 if share else 20, SEED_B)
    assert told[SHARE] == share
    terms = generator.training_terms(tokens(SQUARE), LABEL_B, SEED_B, None, told)
    assert terms[SHARE] == expected


def test_in_eval_mode_every_order_is_the_scan_and_nothing_is_random() -> None:
    generator = make(scan="spiral-in")
    given = (tokens(SQUARE), LABEL_B)
    terms = generator.training_terms(*given, None, None, generator.of_step(0, SEED_B))
    assert terms[SHARE] == 0
    assert torch.equal(terms["loss"], generator.training_terms(*given, SEED_B, None)["loss"])


@pytest.mark.parametrize("options", [{}, {"dropout": 0}, {"attention_dropout": 0}], ids=["both", "attention", "other"])
def test_training_is_the_same_in_any_micro_batch_and_needs_seeds(options: dict[str, Any]) -> None:
    generator = make(**options).train()
    given = (tokens(SQUARE), LABEL_B, SEED_B)
    whole = generator.training_terms(*given, None)["loss"]
    alone = [generator.training_terms(*(each[i : i + 1] for each in given), None)["loss"] for i in range(3)]
    torch.testing.assert_close(torch.stack(alone).mean(), whole)
    again = generator.training_terms(*given[:2], SEED_B + 1, None)["loss"]
    assert abs(float((again - whole).detach())) > 1e-3, "the seeds decide nothing"
    with pytest.raises(ValueError, match="need seed_B"):
        generator.training_terms(*given[:2], None, None)


@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_dropout_takes_what_attention_gives_by_numbers_of_its_own(rate: float) -> None:
    """By hand, where the MLP gives nothing: x + gate * keep(attention(scale * norm(x) + shift))."""
    block = make(attention_dropout=0.0, dropout=rate).train().blocks[0]
    assert isinstance(block, Block)
    groups, seeds_4B = GroupCausal.next_token(3), torch.arange(12).view(4, 3)
    with torch.no_grad():
        block.fc2.weight.zero_(), block.fc2.bias.zero_()
        x_BSC, condition_BSC = torch.randn(2, 3, 3, 24, generator=torch.Generator().manual_seed(5)).unbind()
        shift, scale, gate, *_ = block.modulation(condition_BSC)
        normed = F.layer_norm(x_BSC, (24,), block.norm1.weight, block.norm1.bias, 1e-6) * scale + shift
        expected = x_BSC + gate * block.attention(normed, groups) * keep_factors(x_BSC.shape[1:], seeds_4B[1], rate)
        found = block(x_BSC, condition_BSC, groups, seeds_NB=seeds_4B)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("modulated", [True, False])
def test_dropout_takes_the_hidden_channels_of_the_mlp_too(modulated: bool) -> None:
    """By hand, where attention gives nothing: x + gate * keep(fc2(keep(gelu(fc1(scale * norm(x) + shift)))))."""
    block = make(attention_dropout=0.0, dropout=0.25).train().blocks[0]
    assert isinstance(block, Block)
    with torch.no_grad():
        block.attention.proj.weight.zero_(), block.attention.proj.bias.zero_()
        x_BSC, condition_BSC = torch.randn(2, 3, 3, 24, generator=torch.Generator().manual_seed(5)).unbind()
        seeds_4B = torch.arange(12).view(4, 3)
        _, _, _, shift, scale, gate = block.modulation(condition_BSC)
        hidden = F.gelu(
            block.fc1(F.layer_norm(x_BSC, (24,), block.norm2.weight, block.norm2.bias, 1e-6) * scale + shift)
        )
        hidden = hidden * keep_factors(hidden.shape[1:], seeds_4B[2], 0.25)
        made = block.fc2(hidden)
        expected = x_BSC + gate * made * keep_factors(made.shape[1:], seeds_4B[3], 0.25)
        given = block.modulation(condition_BSC) if modulated else condition_BSC
        found = block(x_BSC, given, GroupCausal.next_token(3), seeds_NB=seeds_4B)
    torch.testing.assert_close(found, expected)


# ------------------------------------------------------------------------------------------------------- what is seen


@pytest.mark.parametrize("layout", [SQUARE, FOLDED, SCALES, LATENTS], ids=str)
@pytest.mark.parametrize("orders", ["scan", "random"])
def test_slots_with_a_cache_give_what_training_reads(layout: TokenLayout, orders: str) -> None:
    generator, tokens_BLF = make(layout), tokens(layout)
    order_BL = generator.orders(3, None, None) if orders == "scan" else random_orders(SEED_B, layout.positions)
    ordered_BLF = in_order(tokens_BLF, order_BL)
    with torch.no_grad():
        trained_BLC = generator.read(LABEL_B, ordered_BLF[:, :-1], order_BL)
        slots = Slots(generator, LABEL_B, order_BL, guided=False)
        given = [None, *ordered_BLF[:, :-1].unbind(1)]
        stepwise_BLC = torch.stack([slots.read(tokens_BF) for tokens_BF in given], dim=1)
        pairs = (
            generator.head.logits(each.flatten(0, 1), ordered_BLF.flatten(0, 1)) for each in (trained_BLC, stepwise_BLC)
        )
        for trained, stepwise in zip(*pairs, strict=True):
            torch.testing.assert_close(stepwise, trained, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("place", [0, 4, 7])
def test_a_token_changes_what_comes_after_it_and_nothing_before(place: int) -> None:
    generator, order_BL = make(), random_orders(SEED_B, 9)
    ordered_BLF = in_order(tokens(SQUARE), order_BL)
    changed_BLF = ordered_BLF.clone()
    changed_BLF[:, place] = (changed_BLF[:, place] + 1) % 11
    before, after = (generator.read(LABEL_B, each[:, :-1], order_BL) for each in (ordered_BLF, changed_BLF))
    assert torch.equal(after[:, : place + 1], before[:, : place + 1])
    assert (after - before)[:, place + 1 :].abs().amax(-1).gt(1e-4).all()


def test_permuting_what_comes_later_changes_nothing_earlier() -> None:
    """But for the slot before it, which is told where the next token belongs."""
    generator, order_BL = make(), random_orders(SEED_B, 9)
    later_BL = torch.cat((order_BL[:, :5], order_BL[:, 5:].flip(1)), dim=1)
    read, other = (
        generator.read(LABEL_B, in_order(tokens(SQUARE), each)[:, :-1], each) for each in (order_BL, later_BL)
    )
    assert torch.equal(read[:, :5], other[:, :5])
    assert (read - other)[:, 5:].abs().amax(-1).gt(1e-4).all()


def test_a_slot_is_told_where_the_next_token_belongs() -> None:
    generator = make()
    order_BL = torch.arange(9).expand(3, -1)
    swapped_BL = order_BL[:, [0, 1, 2, 4, 3, 5, 6, 7, 8]]
    given_BMF = tokens(SQUARE)[:, :3]
    read, other = (generator.read(LABEL_B, given_BMF, each) for each in (order_BL, swapped_BL))
    assert torch.equal(read[:, :3], other[:, :3])
    assert (read - other)[:, 3].abs().amax(-1).gt(1e-4).all()


def test_losses_of_groups_are_those_of_the_positions_whatever_the_order() -> None:
    generator = make(SCALES, dropout=0, attention_dropout=0).train()
    tokens_BLF = tokens(SCALES)
    terms = generator.training_terms(tokens_BLF, LABEL_B, SEED_B, None)
    order_BL = generator.orders(3, SEED_B, None)
    found = generator(LABEL_B, in_order(tokens_BLF, order_BL), order_BL, SEED_B)
    first = [float(found.losses_NF[b, order_BL[b].tolist().index(0), 1]) for b in range(3)]
    assert float(terms["loss_group0_fold1"]) == pytest.approx(sum(first) / 3)
    means = [terms[f"loss_group{group}_fold{fold}"] * size for fold in (0, 1) for group, size in enumerate((1, 4, 4))]
    assert float(torch.stack(means).sum()) / 18 == pytest.approx(terms["loss"].item())
    assert 0 <= float(terms["accuracy_group2_fold0"]) <= 1


def test_gradients_reach_every_parameter() -> None:
    generator = make(FOLDED).train()
    generator.training_terms(tokens(FOLDED), LABEL_B, SEED_B, None)["loss"].backward()
    without = [name for name, parameter in generator.named_parameters() if not parameter.grad.any()]  # type: ignore[union-attr]
    assert without == []


# ----------------------------------------------------------------------------------------------------------- sampling


def test_samples_follow_the_definition_one_position_after_the_other() -> None:
    """All of the sequence again for each position, both passes by themselves, and the published guidance."""
    generator = make(FOLDED, scan="spiral-out")
    plan = SamplingPlan(
        LABEL_B, uniforms(FOLDED), guidance=3.0, schedule=GuidanceSchedule(kind="cosine", power=1.5), temperature=1.02
    )
    expected = torch.zeros_like(tokens(FOLDED))
    order = generator.scan_L.tolist()
    order_BL = generator.scan_L.expand(3, -1)
    null_B = torch.full_like(LABEL_B, generator.null_class)
    with torch.no_grad():
        for number, position in enumerate(order):
            given = in_order(expected, order_BL)[:, :number]
            conditional, unconditional = (
                generator.head.logits(generator.read(label_B, given, order_BL)[:, -1]) for label_B in (LABEL_B, null_B)
            )
            scale = 1 + (4.0 - 1) * 0.5 * (1 - torch.cos(torch.tensor(torch.pi * (number / 9) ** 1.5)))
            for fold, (with_class, without) in enumerate(zip(conditional, unconditional, strict=True)):
                logits = without + scale * (with_class - without)
                expected[:, position, fold] = choose(logits, plan, plan.uniform_BLF[:, position, fold])
    assert torch.equal(generator.sample(plan), expected)


def test_guidance_is_a_cosine_of_a_power_as_published() -> None:
    shares = [RandomOrderConfig.guidance_schedule.share(n / 256) for n in (0, 128, 255)]
    expected = [0.5 * (1 - torch.cos(torch.tensor(torch.pi * (n / 256) ** 2.75)).item()) for n in (0, 128, 255)]
    assert shares == pytest.approx(expected)
    assert GuidanceSchedule(kind="cosine", power=0).share(0) == 1, "0 ** 0 is 1: constant guidance"


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_an_image_depends_on_its_own_row_of_the_plan(guidance: float) -> None:
    generator, uniform_BLF = make(), uniforms(SQUARE)
    together = generator.sample(SamplingPlan(LABEL_B, uniform_BLF, guidance))
    alone = [generator.sample(SamplingPlan(LABEL_B[i : i + 1], uniform_BLF[i : i + 1], guidance)) for i in range(3)]
    assert torch.equal(torch.cat(alone), together)


def test_kept_tokens_stay_and_are_seen_by_what_comes_later() -> None:
    generator = make(FOLDED)
    uniform_BLF, free = uniforms(FOLDED), None
    free = generator.sample(SamplingPlan(LABEL_B, uniform_BLF))
    kept_BLF = torch.full_like(free, -1)
    kept_BLF[:, 4] = (free[:, 4] + 1) % 7
    kept_BLF[0, 6, 1] = 2
    drawn = generator.sample(SamplingPlan(LABEL_B, uniform_BLF, kept_BLF=kept_BLF))
    assert torch.equal(drawn[kept_BLF >= 0], kept_BLF[kept_BLF >= 0])
    assert torch.equal(drawn[:, :4], free[:, :4])
    assert not torch.equal(drawn[:, 5:], free[:, 5:])
    given = generator.sample(SamplingPlan(LABEL_B, uniform_BLF, kept_BLF=drawn))
    assert torch.equal(given, drawn)


def test_random_orders_can_be_sampled_and_follow_from_the_images_seeds() -> None:
    generator = make()
    options = RandomOrderOptions(positions="random")
    plan = SamplingPlan(LABEL_B, uniforms(SQUARE), seed_B=SEED_B, order=options)
    drawn = generator.sample(plan)
    assert not torch.equal(drawn, generator.sample(SamplingPlan(LABEL_B, uniforms(SQUARE))))
    alone = SamplingPlan(LABEL_B[1:2], uniforms(SQUARE)[1:2], seed_B=SEED_B[1:2], order=options)
    assert torch.equal(generator.sample(alone), drawn[1:2])
    with pytest.raises(ValueError, match="random orders need a seed for each image"):
        generator.sample(SamplingPlan(LABEL_B, uniforms(SQUARE), order=options))


def test_plans_that_do_not_fit_are_refused() -> None:
    generator = make()
    with pytest.raises(ValueError, match=r"uniform numbers are \[3, 8, 1\], but this needs \[3, 9, 1\]"):
        generator.sample(SamplingPlan(LABEL_B, uniforms(SQUARE)[:, :8]))
    with pytest.raises(ValueError, match=r"kept tokens are \[3, 9\], but"):
        generator.sample(SamplingPlan(LABEL_B, uniforms(SQUARE), kept_BLF=tokens(SQUARE)[..., 0]))
    with pytest.raises(ValueError, match=r"training mode: call eval\(\)"):
        generator.train().sample(SamplingPlan(LABEL_B, uniforms(SQUARE)))


# ----------------------------------------------------------------------------------------------------- sizes, weights

PUBLISHED = {"b": (24, 768, None, 260.92e6), "l": (24, 1024, None, 461.67e6)}
PUBLISHED |= {"xl": (32, 1280, None, 955.43e6), "xxl": (40, 1408, 6144, 1498.52e6)}


@pytest.mark.parametrize("size", PUBLISHED)
def test_sizes_have_the_published_numbers_of_parameters(size: str) -> None:
    depth, width, hidden, expected = PUBLISHED[size]
    config = RandomOrderConfig(
        num_classes=1000, depth=depth, width=width, mlp_width=hidden, spare_positions=1022, spare_steps=98
    )
    with torch.device("meta"):
        generator = build_generator(config, TokenLayout((256,), (1024,)), None)
    count = sum(parameter.numel() for parameter in generator.parameters())  # type: ignore[attr-defined]
    assert count == pytest.approx(expected, rel=1e-4)


def test_weights_begin_as_published() -> None:
    torch.manual_seed(0)
    generator = RandomOrderGenerator(RandomOrderConfig(num_classes=50, depth=2, width=128, heads=4), LATENTS)
    zero = {name for name, parameter in generator.named_parameters() if not parameter.any()}
    biases = {name for name, _ in generator.named_parameters() if name.endswith("bias")}
    modulations = {"final_adaln.weight", "blocks.0.adaln.weight", "blocks.1.adaln.weight"}
    assert zero == biases | modulations | {"start"}
    for name in ("position_embed", "step_embed", "head.weight", "blocks.1.fc2.weight", "class_embed.weight"):
        assert float(generator.get_parameter(name).std()) == pytest.approx(0.02, rel=0.05), name


def test_what_is_not_decayed_is_as_published() -> None:
    generator = make()
    free = generator.no_decay_parameters()
    decayed = {name for name, _ in generator.named_parameters()} - free
    block = ("attention.qkv", "attention.proj", "fc1", "fc2", "adaln")
    expected = {f"blocks.{number}.{part}.weight" for number in (0, 1) for part in block}
    assert decayed == expected | {"head.weight", "start"}


@pytest.mark.slow
@pytest.mark.parametrize("layout", [FOLDED, SCALES], ids=str)
def test_it_learns_what_it_is_shown(layout: TokenLayout) -> None:
    """Two samples, told apart by their class, in random orders."""
    torch.manual_seed(0)
    config = RandomOrderConfig.model_validate(SMALL | {"width": 48, "dropout": 0, "attention_dropout": 0})
    generator = RandomOrderGenerator(config, layout).train()
    optimizer = torch.optim.AdamW(generator.parameters(), lr=3e-3)
    given = (tokens(layout, 2), LABEL_B[:2])
    for step in range(150):
        loss = generator.training_terms(*given, SEED_B[:2] + step, None)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = generator.eval().sample(SamplingPlan(LABEL_B[:2], uniforms(layout, 2)))
    assert (drawn == given[0]).float().mean() > 0.95
