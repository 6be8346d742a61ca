"""Masked generators in training: what is masked, what the loss is, and what follows from seeds; against plain torch."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ImageFolderConfig
from model.config.masked import BertConfig, MaskedConfig, UViTConfig, masked_share
from model.families import build_generator
from model.generators.masked import MaskedGenerator
from model.generators.masked_backbones import BertBlock, UViTBlock
from model.layers.dropout import keep_factors
from model.layers.random_numbers import split_seed, uniform
from model.layout import TokenLayout
from model.protocols import SamplingPlan

BERT: dict[str, Any] = {"kind": "bert", "depth": 2, "width": 24, "heads": 3, "dropout": 0.0, "attention_dropout": 0.0}
UVIT: dict[str, Any] = {"kind": "uvit", "depth": 2, "width": 24, "heads": 3}
FLAT, FOLDED = TokenLayout((16,), (13,)), TokenLayout((1, 4, 9), (13, 7))
CLASSES = 5


def made(layout: TokenLayout = FLAT, backbone: dict[str, Any] = BERT, **changes: Any) -> MaskedGenerator:
    torch.manual_seed(0)
    config = MaskedConfig.model_validate({"num_classes": CLASSES, "backbone": backbone} | changes)
    generator = MaskedGenerator(config, layout)
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if parameter.ndim > 1 or "bias" in name:
                parameter.normal_(std=0.3)
    return generator.train()


def batch(layout: TokenLayout, size: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    folds = [torch.randint(codes, (size, layout.positions), generator=generator) for codes in layout.vocabularies]
    seed_B = torch.randint(2**62, (size,), generator=generator)
    return torch.stack(folds, dim=-1), torch.arange(size) % (CLASSES + 1), seed_B


def terms(generator: MaskedGenerator, rows: slice = slice(None), given: Any = None) -> dict[str, Tensor]:
    tokens_BLF, label_B, seed_B = (each[rows] for each in batch(generator.layout))
    found = generator.training_terms(tokens_BLF, label_B, seed_B, None, given)
    return {name: value.detach() for name, value in found.items()}


@pytest.mark.parametrize(
    ("schedule", "mean"), [("arccos", 2 / math.pi), ("cosine", 2 / math.pi), ("linear", 1 / 2), ("root", 1 / 3)]
)
def test_each_mask_schedule_has_its_mean_and_its_ends(schedule: Any, mean: float) -> None:
    """Of arccos 0.63662 (TiTok's specs, 7)."""
    number_N = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    assert float(masked_share(schedule, number_N, torch).mean()) == pytest.approx(mean, abs=1e-5)
    assert masked_share(schedule, 0.0) == 1
    assert masked_share(schedule, 1.0) == pytest.approx(0, abs=1e-12)
    of_tensor = masked_share(schedule, torch.tensor([0.3], dtype=torch.float64), torch)
    assert of_tensor.item() == pytest.approx(masked_share(schedule, 0.3))


@pytest.mark.parametrize("schedule", ["arccos", "cosine", "linear", "root"])
def test_the_count_of_masks_is_rounded_and_at_least_one(schedule: Any) -> None:
    generator = made(mask_schedule=schedule)
    seed_B = torch.arange(500) * 7919
    numbers = uniform(split_seed(seed_B, 1)[0], 1)[0].double().tolist()
    expected = [max(1, round(16 * masked_share(schedule, number))) for number in numbers]
    assert generator.masked_positions(seed_B).sum(1).tolist() == expected
    assert set(expected) >= {1, 16}


def test_every_position_is_masked_as_often_and_apart_from_the_others() -> None:
    masked_BL = made().masked_positions(torch.arange(20_000) * 7919).float()
    assert masked_BL.mean(0).tolist() == pytest.approx([2 / math.pi] * 16, abs=0.015)
    assert len({tuple(row) for row in masked_BL[:200].tolist() if 4 < sum(row) < 12}) > 60


def test_a_position_is_masked_with_the_tokens_of_all_its_folds() -> None:
    generator = made(FOLDED)
    tokens_BLF, _, seed_B = batch(FOLDED)
    masked_BL = generator.masked_positions(seed_B)
    ids_BLF = generator.masked(tokens_BLF, masked_BL)
    assert (ids_BLF[masked_BL] == torch.tensor([13, 7])).all()
    assert torch.equal(ids_BLF[~masked_BL], tokens_BLF[~masked_BL])


def test_mask_classes_and_no_class_stand_behind_the_codes() -> None:
    """Published: N is the mask, N + 1 + y the class, N + 1001 none of 1,000."""
    generator = made()
    assert len(generator.token_embed.weight) == 13 + CLASSES + 2
    ids_BLF = torch.tensor([3] * 15 + [13])[None, :, None]
    for label, row in ((0, 14), (4, 18), (generator.null_class, 19)):
        generator.zero_grad()
        generator(ids_BLF, torch.tensor([label])).sum().backward()
        gradient = generator.token_embed.weight.grad
        assert gradient is not None
        assert set(gradient.abs().sum(1).nonzero().flatten().tolist()) == {3, 13, row}


def by_definition(generator: MaskedGenerator, masked_BL: Tensor) -> float:
    """The loss of titok.md 2.1, with one weight per position, from F.cross_entropy."""
    tokens_BLF, label_B, _ = batch(generator.layout)
    with torch.no_grad():
        logits = generator.logits(generator.masked(tokens_BLF, masked_BL), label_B)
    losses_BLF = torch.stack(
        [
            F.cross_entropy(logits_BLV.mT, tokens_BLF[..., fold], reduction="none", label_smoothing=0.1)
            for fold, logits_BLV in enumerate(logits)
        ],
        dim=-1,
    )
    weight_BL = torch.where(masked_BL, 1.0, generator.config.unmasked_weight)
    return float((losses_BLF.mean(-1) * weight_BL).sum() / weight_BL.sum())


@pytest.mark.parametrize("layout", [FLAT, FOLDED], ids=["flat", "folded"])
@pytest.mark.parametrize("backbone", [BERT, UVIT], ids=["bert", "uvit"])
@pytest.mark.parametrize("unmasked", [0.1, 0.0])
def test_the_loss_is_the_published_one(layout: TokenLayout, backbone: dict[str, Any], unmasked: float) -> None:
    generator = made(layout, backbone, unmasked_weight=unmasked)
    expected = by_definition(generator, generator.masked_positions(batch(layout)[2]))
    assert float(terms(generator)["loss"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("layout", [FLAT, FOLDED], ids=["flat", "folded"])
def test_what_is_logged_is_of_masked_tokens_alone(layout: TokenLayout) -> None:
    generator = made(layout)
    tokens_BLF, label_B, seed_B = batch(layout)
    masked_BL = generator.masked_positions(seed_B)
    with torch.no_grad():
        logits = generator.logits(generator.masked(tokens_BLF, masked_BL), label_B)
    losses = [F.cross_entropy(each.mT, tokens_BLF[..., f], reduction="none") for f, each in enumerate(logits)]
    hits = [(each.argmax(-1) == tokens_BLF[..., f]).float() for f, each in enumerate(logits)]
    found = terms(generator)
    for group in range(len(layout.groups)):
        for fold in range(layout.folds):
            here_BL = torch.zeros_like(masked_BL)
            here_BL[:, layout.span(group)] = masked_BL[:, layout.span(group)]
            for name, values in (("loss", losses), ("accuracy", hits)):
                value = float(found[f"{name}_group{group}_fold{fold}"])
                assert value == pytest.approx(float(values[fold][here_BL].mean()), rel=1e-5)
    assert float(found["masked_loss"]) == pytest.approx(float(torch.stack(losses)[:, masked_BL].mean()), rel=1e-5)
    assert float(found["accuracy"]) == pytest.approx(float(torch.stack(hits)[:, masked_BL].mean()), rel=1e-5)
    assert float(found["chance"]) == pytest.approx(sum(1 / v for v in layout.vocabularies) / layout.folds)


@pytest.mark.parametrize("layout", [FLAT, FOLDED], ids=["flat", "folded"])
@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_of_a_step_have_the_mean_of_the_whole_step(layout: TokenLayout, parts: int) -> None:
    """Each part alone has another sum of weights."""
    generator = made(layout)
    given = generator.of_step(3, batch(layout)[2])
    size = 8 // parts
    pieces = [terms(generator, slice(i * size, (i + 1) * size), given) for i in range(parts)]
    apart = [terms(generator, slice(i * size, (i + 1) * size))["loss"] for i in range(parts)]
    for name, whole in terms(generator).items():
        assert float(sum(piece[name] for piece in pieces) / parts) == pytest.approx(float(whole), rel=1e-5), name
    assert float(sum(apart) / parts) != pytest.approx(float(terms(generator)["loss"]), rel=1e-5)


def test_a_held_out_loss_is_a_mean_over_samples() -> None:
    generator = made(FOLDED, BERT | {"dropout": 0.3, "attention_dropout": 0.3}).eval()
    whole, again = terms(generator), terms(generator)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    pieces = [terms(generator, slice(i, i + 1)) for i in range(8)]
    for name in whole:
        assert float(sum(piece[name] for piece in pieces) / 8) == pytest.approx(float(whole[name]), rel=1e-5), name
    assert float(whole["loss"]) == pytest.approx(float(whole["masked_loss"]), rel=1e-5), "of masked tokens, unsmoothed"


def test_over_many_samples_the_usual_sums_are_those_of_the_samples() -> None:
    generator = made(mask_schedule="root")
    share = generator.masked_positions(torch.arange(20_000)).float().mean()
    assert generator._usual_share == pytest.approx(float(share), abs=0.005)


def test_dropout_follows_from_the_seeds_and_torchs_generator_is_left_alone() -> None:
    generator = made(FLAT, BERT | {"dropout": 0.2, "attention_dropout": 0.2})
    tokens_BLF, label_B, seed_B = batch(FLAT)
    ids_BLF = generator.masked(tokens_BLF, generator.masked_positions(seed_B))
    before = torch.get_rng_state()
    first, again, other = (generator(ids_BLF, label_B, seeds) for seeds in (seed_B, seed_B, seed_B + 1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.isclose(first, other).all(-1).any()
    torch.testing.assert_close(generator(ids_BLF[2:4], label_B[2:4], seed_B[2:4]), first[2:4])


@pytest.mark.parametrize("dropped", ["dropout", "attention_dropout"])
def test_each_dropout_keeps_the_mean_and_needs_seeds(dropped: str) -> None:
    generator = made(FLAT, BERT | {"depth": 1, dropped: 0.2})
    block = generator.backbone.blocks[0]
    assert isinstance(block, BertBlock)
    x_BLC = torch.randn(1, 5, 24, generator=torch.Generator().manual_seed(0)).expand(20_000, -1, -1)
    seed_B = torch.arange(20_000)

    def added(x_BLC: Tensor) -> Tensor:
        if dropped == "attention_dropout":
            return block.attention(x_BLC, seed_B[: len(x_BLC)])
        return block.sum(torch.zeros_like(x_BLC), block.mlp(x_BLC), seed_B[: len(x_BLC)])

    with torch.no_grad():
        thinned = added(x_BLC)
        block.eval()
        expected = added(x_BLC[:1])[0]
    torch.testing.assert_close(thinned.mean(0), expected, atol=0.1, rtol=0.1)
    assert float(thinned.std(0).mean()) > 0.01
    with pytest.raises(ValueError, match="needs seed_B"):
        generator.train()(*batch(FLAT)[:2])


@pytest.mark.parametrize("backbone", [BERT, UVIT], ids=["bert", "uvit"])
def test_each_of_the_three_dropouts_of_a_block_has_numbers_of_its_own(
    backbone: dict[str, Any],
) -> None:
    block = made(FLAT, backbone | {"dropout": 0.25, "attention_dropout": 0.4}).backbone.blocks[0]
    assert isinstance(block, BertBlock | UViTBlock)
    x_BLC, seeds_3B = torch.randn(4, 5, 24, generator=torch.Generator().manual_seed(3)), torch.arange(12).view(3, 4)
    of_attention, of_mlp = (keep_factors(x_BLC.shape[1:], seed_B, 0.25) for seed_B in seeds_3B[1:])
    with torch.no_grad():
        if isinstance(block, BertBlock):
            middle_BLC = block.norm1(x_BLC + of_attention * block.attention(x_BLC, seeds_3B[0]))
            expected = block.norm2(middle_BLC + of_mlp * block.mlp(middle_BLC))
        else:
            middle_BLC = x_BLC + of_attention * block.attention(block.norm1(x_BLC), seeds_3B[0])
            expected = middle_BLC + of_mlp * block.mlp(block.norm2(middle_BLC))
        torch.testing.assert_close(block(x_BLC, tuple(seeds_3B)), expected)


def test_a_block_of_bert_is_torchs_encoder_layer_with_norms_behind_the_sums() -> None:
    block = made().backbone.blocks[0]
    assert isinstance(block, BertBlock)
    theirs = nn.TransformerEncoderLayer(24, 3, 96, 0.0, "gelu", layer_norm_eps=1e-12, batch_first=True)
    _close_to_torchs(block, theirs)


def test_a_block_of_uvit_is_torchs_encoder_layer_with_norms_before_the_sums() -> None:
    blocks = made(FLAT, UVIT).backbone.blocks
    assert isinstance(blocks[1], UViTBlock)
    theirs = nn.TransformerEncoderLayer(24, 3, 96, 0.0, "gelu", layer_norm_eps=1e-5, batch_first=True, norm_first=True)
    _close_to_torchs(blocks[1], theirs)


def _close_to_torchs(block: BertBlock | UViTBlock, theirs: nn.TransformerEncoderLayer) -> None:
    pairs = {
        "self_attn.in_proj_weight": block.qkv.weight,
        "self_attn.in_proj_bias": torch.zeros(72) if block.qkv.bias is None else block.qkv.bias,
        "self_attn.out_proj.weight": block.proj.weight,
        "self_attn.out_proj.bias": block.proj.bias,
        "linear1.weight": block.fc1.weight,
        "linear1.bias": block.fc1.bias,
        "linear2.weight": block.fc2.weight,
        "linear2.bias": block.fc2.bias,
        "norm1.weight": block.norm1.weight,
        "norm1.bias": block.norm1.bias,
        "norm2.weight": block.norm2.weight,
        "norm2.bias": block.norm2.bias,
    }
    theirs.load_state_dict(pairs)
    x_BLC = torch.randn(2, 7, 24)
    torch.testing.assert_close(block(x_BLC, (None, None, None)), theirs(x_BLC), atol=1e-5, rtol=1e-5)


def test_long_skips_go_from_each_block_to_the_one_as_far_behind_the_middle() -> None:
    generator = made(FLAT, UVIT | {"depth": 4})
    seen: list[tuple[Tensor, Tensor | None, Tensor]] = []
    for block in generator.backbone.blocks:
        block.register_forward_hook(lambda _, args, out: seen.append((args[0], args[2], out)))
    generator(batch(FLAT)[0], batch(FLAT)[1])
    assert [skipped is None for _, skipped, _ in seen] == [True, True, True, False, False]
    assert seen[3][1] is seen[1][2]
    assert seen[4][1] is seen[0][2]


def test_every_position_sees_every_other_one() -> None:
    generator = made(FOLDED).eval()
    tokens_BLF, label_B, _ = batch(FOLDED, 1)
    with torch.no_grad():
        before = generator(tokens_BLF, label_B)
        for position in range(FOLDED.positions):
            other_BLF = tokens_BLF.clone()
            other_BLF[:, position] = torch.tensor(generator.mask_ids)
            assert ((generator(other_BLF, label_B) - before).abs().amax(-1) > 1e-6).all()


def test_only_asked_rows_are_read_and_they_are_the_same() -> None:
    generator = made(FLAT, UVIT).eval()
    tokens_BLF, label_B, _ = batch(FLAT)
    row_BM = torch.randint(16, (8, 3))
    with torch.no_grad():
        expected = generator(tokens_BLF, label_B).gather(1, row_BM[..., None].expand(-1, -1, 24))
        torch.testing.assert_close(generator(tokens_BLF, label_B, row_BM=row_BM), expected)


def test_tables_and_vectors_do_not_decay() -> None:
    generator = made(FLAT, UVIT)
    decayed = {name for name, _ in generator.named_parameters()} - generator.no_decay_parameters()
    assert {name for name in decayed if not name.startswith("backbone.blocks")} == {"head.weight"}
    assert {name.split(".")[-2] for name in decayed} == {"qkv", "proj", "fc1", "fc2", "skip", "head"}


def test_any_layout_is_taken_multi_scale_ones_too() -> None:
    """ImageFolder's ten scales of two branches, in one step of a draw; the tokenizer's sums are of no use here."""
    layout = ImageFolderConfig().layout
    config = MaskedConfig(num_classes=2, backbone=BertConfig(depth=1, width=8, heads=2))
    generator = cast("MaskedGenerator", build_generator(config, layout, 64)).eval()
    plan = SamplingPlan(torch.zeros(1, dtype=torch.int64), torch.zeros(1, layout.positions, layout.folds))
    tokens_BLF = generator.sample(plan)
    assert tokens_BLF.shape == (1, layout.positions, layout.folds)
    found = generator.training_terms(tokens_BLF, plan.condition_B, torch.arange(1))
    assert f"loss_group{len(layout.groups) - 1}_fold{layout.folds - 1}" in found


def test_training_without_seeds_is_refused() -> None:
    generator = made()
    with pytest.raises(ValueError, match="needs seed_B"):
        generator.training_terms(*batch(FLAT)[:2], None, None)


@pytest.mark.parametrize(
    ("backbone", "reason"),
    [
        (BertConfig.model_construct, None),
        ({"kind": "uvit", "depth": 3}, "depth 3 is odd"),
        ({"kind": "bert", "width": 10, "heads": 3}, "no multiple of heads"),
        ({"kind": "vit"}, "does not match any"),
    ],
)
def test_backbones_that_cannot_be_are_refused(backbone: Any, reason: str | None) -> None:
    if reason is None:
        assert isinstance(MaskedConfig(num_classes=1).backbone, BertConfig)
        assert isinstance(MaskedConfig.model_validate({"backbone": {"kind": "uvit"}}).backbone, UViTConfig)
        return
    with pytest.raises(ValueError, match=reason):
        MaskedConfig.model_validate({"num_classes": 1, "backbone": backbone})


def test_new_weights_have_the_published_spread() -> None:
    torch.manual_seed(0)
    config = MaskedConfig(num_classes=1000, backbone=BertConfig(depth=1, width=192, heads=4))
    generator = MaskedGenerator(config, FLAT)
    for name, parameter in generator.named_parameters():
        if parameter.ndim > 1:
            assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.05), name
        else:
            assert set(parameter.tolist()) <= {0.0, 1.0}, name
