"""The folded generator: what it sees, that sampling step by step computes what training did, and its sizes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.config import ImageFolderConfig, NextScaleConfig
from model.generators import next_scale
from model.generators.next_scale import FoldedGenerator
from model.layers.random_numbers import split_seed, uniform
from model.layout import TokenLayout
from model.losses.tokens import folded_cross_entropy

SCALES = (1, 2, 3)
GROUPS = tuple(side**2 for side in SCALES)
CODE_DIM = 4


def make(folds: int = 2, seed: int = 0, **sizes: object) -> FoldedGenerator:
    """A small generator whose gates are open, so that every part of it shows in the logits."""
    torch.manual_seed(seed)
    given: dict[str, object] = {"num_classes": 5, "depth": 3, "width": 24, "heads": 3, **sizes}
    generator = FoldedGenerator(
        NextScaleConfig.model_validate(given), TokenLayout(GROUPS, (11,) * folds), folds * CODE_DIM
    )
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.normal_(std=0.3)
    return generator.eval()


def inputs(folds: int = 2, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.tensor([1, 4] * batch)[:batch], torch.randn(batch, 4 + 9, folds * CODE_DIM, generator=generator)


def stepwise(generator: FoldedGenerator, label_B: Tensor, input_BMC: Tensor) -> Tensor:
    """All logits by sampling's steps, with the same inputs."""
    state = generator.start(label_B)
    with torch.no_grad():
        parts = [None, *input_BMC.split([side**2 for side in SCALES[1:]], dim=1)]
        reads = [generator.step(state, part) for part in parts]
        return torch.cat(
            [torch.stack(generator.head.logits(read.flatten(0, 1)), 1).unflatten(0, read.shape[:2]) for read in reads],
            dim=1,
        )


@pytest.mark.parametrize("folds", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"qk_norm": False}, {"shared_adaln": True}], ids=["norm", "plain", "shared"])
def test_steps_with_a_cache_give_the_logits_of_training(folds: int, options: dict[str, object]) -> None:
    generator = make(folds, **options)
    label_B, input_BMC = inputs(folds)
    trained = generator(label_B, input_BMC)
    assert trained.shape == (2, 14, folds, 11)
    torch.testing.assert_close(stepwise(generator, label_B, input_BMC), trained, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scale", [1, 2])
def test_the_input_of_a_scale_changes_that_scale_and_nothing_before(scale: int) -> None:
    generator, (label_B, input_BMC) = make(), inputs()
    span = generator.layout.span(scale)
    changed = input_BMC.clone()
    changed[:, span.start - 1 : span.stop - 1] = changed[:, span.start - 1 : span.stop - 1].flip(1) + 1
    before, after = generator(label_B, input_BMC), generator(label_B, changed)
    torch.testing.assert_close(after[:, : span.start], before[:, : span.start], atol=1e-6, rtol=0)
    assert (after[:, span] - before[:, span]).abs().amax(dim=(2, 3)).gt(1e-3).all()


def test_positions_of_one_scale_see_one_another() -> None:
    generator, (label_B, input_BMC) = make(), inputs()
    changed = input_BMC.clone()
    changed[:, 3] += 1  # the last position of the second scale
    moved = (generator(label_B, changed) - generator(label_B, input_BMC)).abs().amax(dim=(0, 2, 3))
    assert moved[1:].gt(1e-5).all()
    assert moved[0] == 0


def test_the_class_and_the_null_class_reach_every_position() -> None:
    generator, (label_B, input_BMC) = make(), inputs()
    assert generator.null_class == 5
    null = generator(torch.full_like(label_B, generator.null_class), input_BMC)
    assert (generator(label_B, input_BMC) - null).abs().amax(dim=(2, 3)).gt(1e-5).all()


def test_the_head_holds_the_branches_one_after_the_other() -> None:
    generator, (label_B, input_BMC) = make(), inputs()
    before = generator(label_B, input_BMC)
    with torch.no_grad():
        generator.head.bias[11:] += 1
    torch.testing.assert_close(generator(label_B, input_BMC)[:, :, 1], before[:, :, 1] + 1)
    torch.testing.assert_close(generator(label_B, input_BMC)[:, :, 0], before[:, :, 0])


def test_keys_have_no_bias() -> None:
    generator = make()
    assert not [name for name, _ in generator.named_parameters() if name.endswith("k_bias")]
    assert generator.get_parameter("blocks.0.attention.qkv.weight").shape == (72, 24)


@pytest.mark.parametrize("way", ["autocast", "bf16 weights"])
def test_half_precision_gives_float32_logits_near_those_of_float32(way: str) -> None:
    generator, (label_B, input_BMC) = make(), inputs()
    exact = generator(label_B, input_BMC)
    if way == "bf16 weights":
        generator.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        logits, steps = generator(label_B, input_BMC), stepwise(generator, label_B, input_BMC)
    assert logits.dtype == steps.dtype == torch.float32
    for half in (logits, steps):
        assert (half - exact).norm() / exact.norm() < 0.03
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in generator.parameters())


def test_a_fresh_generator_gates_its_blocks_and_starts_near_even_odds() -> None:
    torch.manual_seed(0)
    config = NextScaleConfig(num_classes=5, depth=2, width=96, heads=3, adaln_gamma_init=1e-3)
    generator = FoldedGenerator(config, TokenLayout(GROUPS, (64, 64)), 2 * CODE_DIM)
    std = math.sqrt(1 / (3 * 96))
    expected = {
        "class_embed.weight": std,
        "position_embed": std,
        "level_embed": std,
        "input.weight": std,
        "blocks.1.attention.qkv.weight": std,
        "blocks.1.attention.proj.weight": std / 2,
        "blocks.1.fc1.weight": std,
        "blocks.1.fc2.weight": std / 2,
        "head_adaln.weight": std / 2,
        "head.weight": std * 0.02,
    }
    for name, value in expected.items():
        assert generator.get_parameter(name).std().item() == pytest.approx(value, rel=0.15), name
    adaln = generator.get_parameter("blocks.0.adaln.weight")
    assert adaln[:192].std().item() == pytest.approx(std * 1e-3, rel=0.1)
    assert adaln[192:].std().item() == pytest.approx(std * 0.5, rel=0.1)
    assert generator.get_parameter("blocks.0.attention.log_temperature").tolist() == pytest.approx([math.log(4)] * 3)
    logits = generator(*inputs())
    assert logits.softmax(-1).max() < 2 / 64


def test_a_shared_projection_starts_plain_and_the_gates_of_offsets_small() -> None:
    torch.manual_seed(0)
    config = NextScaleConfig(num_classes=5, depth=2, width=96, heads=3, shared_adaln=True, adaln_gamma_init=1e-3)
    generator = FoldedGenerator(config, TokenLayout(GROUPS, (8, 8)), 2 * CODE_DIM)
    shared = generator.get_parameter("shared_adaln.weight")
    for rows in (shared[:192], shared[192:]):
        assert rows.std().item() == pytest.approx(math.sqrt(1 / (3 * 96)), rel=0.1)
    offset = generator.get_parameter("blocks.0.adaln_offset")
    assert offset[:2].std().item() == pytest.approx(96**-0.5 * 1e-3, rel=0.2)
    assert offset[2:].std().item() == pytest.approx(96**-0.5 * 0.5, rel=0.2)


@pytest.mark.parametrize(("width", "depth", "millions"), [(1024, 16, 314.1), (1088, 17, 375.3)])
def test_the_published_sizes_have_the_published_number_of_parameters(width: int, depth: int, millions: float) -> None:
    with torch.device("meta"):
        config = NextScaleConfig(num_classes=1000, width=width, depth=depth, heads=depth)
        generator = FoldedGenerator(config, ImageFolderConfig().layout, 64)
    assert sum(p.numel() for p in generator.parameters()) / 1e6 == pytest.approx(millions, rel=1e-3)


def test_weight_decay_spares_vectors_and_the_tables_of_places() -> None:
    spared = make(shared_adaln=True).no_decay_parameters()
    assert {"start_embed", "position_embed", "level_embed", "blocks.0.adaln_offset", "head.bias"} <= spared
    assert {"blocks.2.attention.log_temperature", "blocks.2.attention.q_bias", "input.bias"} <= spared
    decayed = {name for name, _ in make(shared_adaln=True).named_parameters()} - spared
    assert {"class_embed.weight", "input.weight", "head.weight", "blocks.0.attention.qkv.weight"} <= decayed


def test_drop_path_leaves_whole_branches_out_in_training_only() -> None:
    generator = make(drop_path=0.9)
    label_B, input_BMC = inputs(batch=16)
    seed_B = torch.arange(16)
    torch.testing.assert_close(generator(label_B, input_BMC, seed_B), generator(label_B, input_BMC))
    generator.train()
    whole_BLFV = generator(label_B, input_BMC, seed_B)
    assert (whole_BLFV - generator(label_B, input_BMC, seed_B + 16)).abs().max() > 1e-3
    assert torch.equal(whole_BLFV, generator(label_B, input_BMC, seed_B))


def test_which_branches_a_sample_misses_is_not_a_matter_of_its_batch() -> None:
    generator = make(drop_path=0.5).train()
    label_B, input_BMC = inputs(batch=16)
    seed_B = torch.arange(16)
    parts = [generator(label_B[i::4], input_BMC[i::4], seed_B[i::4]) for i in range(4)]
    whole_BLFV = generator(label_B, input_BMC, seed_B)
    for i, part_BLFV in enumerate(parts):
        torch.testing.assert_close(part_BLFV, whole_BLFV[i::4])


def test_drop_path_in_training_asks_for_seeds() -> None:
    with pytest.raises(ValueError, match="stochastic depth in training needs seed_B"):
        make(drop_path=0.5).train()(*inputs())


MASKED = {"input_mask": 0.8, "input_mask_until": 100, "drop_path": 0.0}


def test_masked_inputs_are_the_empty_vector_by_each_samples_numbers_in_training_only() -> None:
    """Token-mask augmentation (p_drop of ImageFolder's generator); never of the first scale."""
    generator, (label_B, input_BMC) = make(**MASKED), inputs(batch=4)
    seed_B, share = torch.arange(4) * 7919, torch.tensor(0.4)
    assert generator.empty_embed is not None
    chances = uniform(split_seed(seed_B, 2 * 3 + 1)[6], 13).T
    is_masked_BM = chances < 0.4
    assert 0.2 < is_masked_BM.float().mean() < 0.6
    rows_BMC = torch.where(is_masked_BM[..., None], generator.empty_embed, generator.input(input_BMC))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(next_scale, "linear_fp32", lambda _, given_BMC: given_BMC)
        patch.setattr(generator.input, "in_features", 24)
        expected = generator(label_B, rows_BMC)
    plain = generator(label_B, input_BMC)
    assert torch.equal(generator(label_B, input_BMC, seed_B, mask_share=share), plain), "in eval mode"
    found = generator.train()(label_B, input_BMC, seed_B, mask_share=share)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found[:, 0], plain[:, 0])
    assert (found - plain).abs().max() > 1e-2


def test_the_share_of_masked_inputs_is_drawn_evenly_below_a_line_that_falls_to_nothing() -> None:
    generator = make(**MASKED)
    for step, most in ((0, 0.8), (50, 0.4), (75, 0.2), (100, 0.0), (1000, 0.0)):
        shares = torch.stack([generator.of_step(step, torch.tensor([seed, 1]))["input_mask"] for seed in range(500)])
        assert float(shares.mean()) == pytest.approx(most / 2, abs=0.03)
        assert 0.98 * most <= float(shares.max()) <= most


def test_masked_inputs_may_end_with_a_share_of_the_training() -> None:
    config = NextScaleConfig.model_validate({"input_mask": 0.8, "input_mask_until": {"share": 0.5}})
    found = [config.with_steps(200).largest_input_mask(step) for step in (0, 50, 100, 199)]
    assert found == pytest.approx([0.8, 0.4, 0.0, 0.0])
    none = NextScaleConfig.model_validate({"input_mask": 0.8, "input_mask_until": 0})
    assert none.largest_input_mask(0) == 0.0


def test_masked_inputs_want_the_step_at_which_they_end() -> None:
    with pytest.raises(ValueError, match="give that step"):
        NextScaleConfig(input_mask=0.1)


def test_an_input_of_another_layout_is_refused() -> None:
    generator, (label_B, input_BMC) = make(), inputs()
    with pytest.raises(ValueError, match=r"\[2, 12, 8\], but this layout needs \[2, 13, 8\]"):
        generator(label_B, input_BMC[:, 1:])


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_guided_logits_are_those_of_both_halves_put_together(guidance: float) -> None:
    generator, (label_B, _) = make(), inputs()
    both_B = torch.cat((label_B, torch.full_like(label_B, generator.null_class)))
    with torch.no_grad():
        read_BKC = generator.step(generator.start(both_B), None)
        seen: dict[int, Tensor] = {}

        def choose(logits_NV: Tensor, fold: int) -> Tensor:
            seen[fold] = logits_NV
            return logits_NV.argmax(-1)

        tokens_BKF = generator.draw(read_BKC, guidance, choose)
        halves = [generator.head.logits(half.flatten(0, 1)) for half in read_BKC.chunk(2)]
    assert tokens_BKF.shape == (2, 1, 2)
    for fold, (conditional, unconditional) in enumerate(zip(*halves, strict=True)):
        expected = (1 + guidance) * conditional - guidance * unconditional
        torch.testing.assert_close(seen[fold], expected, atol=1e-5, rtol=1e-5)


def test_steps_out_of_turn_are_refused() -> None:
    generator, (label_B, input_BMC) = make(), inputs()
    state = generator.start(label_B)
    with pytest.raises(ValueError, match="scale 0 takes no input"):
        generator.step(state, input_BMC[:, :4])
    with torch.no_grad():
        for part in (None, input_BMC[:, :4], input_BMC[:, 4:]):
            generator.step(state, part)
    with pytest.raises(ValueError, match="all 3 scales"):
        generator.step(state, input_BMC[:, 4:])


@pytest.mark.parametrize("autocast", [False, True])
def test_with_tokens_the_loss_comes_in_place_of_the_logits(autocast: bool) -> None:
    generator, (label_B, input_BMC) = make(), inputs()
    tokens_BLF = torch.randint(11, (2, 14, 2), generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected, expected_LF = folded_cross_entropy(generator(label_B, input_BMC), tokens_BLF)
        logits_BLFV = generator(label_B, input_BMC)
        loss, losses_BLF, hits_BLF = generator(label_B, input_BMC, None, tokens_BLF)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(losses_BLF.mean(0), expected_LF)
    assert torch.equal(hits_BLF, logits_BLFV.argmax(-1) == tokens_BLF) or autocast
    names, parameters = zip(*generator.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters)
    for name, actual, wanted in zip(names, found, torch.autograd.grad(expected, parameters), strict=True):
        tolerance = 0.05 if autocast else 1e-4
        assert (actual - wanted).norm() <= tolerance * wanted.norm() + 1e-6, name


def test_the_stream_has_the_dtype_of_the_products_in_training_and_is_float32_in_sampling() -> None:
    """As published VAR has them: half in training, float32 while sampling."""
    generator, (label_B, input_BMC) = make(), inputs()
    seen: list[torch.dtype] = []
    generator.blocks[-1].register_forward_hook(lambda _, args, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        generator(label_B, input_BMC)
        generator.step(generator.start(label_B), None)
    assert seen == [torch.bfloat16, torch.float32]
