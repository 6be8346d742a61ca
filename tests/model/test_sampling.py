"""Sampling: truncation and draws against a slow reference, guidance, and samples that do not depend on their batch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from model.config import GuidanceSchedule, ImageFolderConfig, NextScaleConfig, VectorConfig, guidance_of
from model.generators.choosing import draw, truncate
from model.generators.next_scale import FoldedGenerator
from model.generators.sampling import guidance_shares
from model.protocols import SamplingPlan
from model.quantizers.multi_scale import FoldedQuantizer

LOGITS = st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=12, unique=True)


def pair(folds: int = 2, scales: tuple[int, ...] = (1, 2, 3)) -> tuple[FoldedGenerator, FoldedQuantizer]:
    """A generator and a quantizer of one layout, with weights large enough that every input matters."""
    torch.manual_seed(0)
    config = ImageFolderConfig(
        branches=folds, scales=scales, quantizer=VectorConfig(codebook_size=13, code_dim=4), dropout_min_scales=1
    )
    generator = FoldedGenerator(
        NextScaleConfig(num_classes=5, depth=2, width=24, heads=3), config.layout, config.forcing_width
    )
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.normal_(std=0.3)
    return generator.eval(), FoldedQuantizer(config).eval()


def uniforms(generator: FoldedGenerator, batch: int, seed: int = 3) -> Tensor:
    shape = (batch, generator.layout.positions, generator.layout.folds)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def generate(
    generator: FoldedGenerator, quantizer: FoldedQuantizer, label_B: Tensor, uniform_BLF: Tensor, *args: Any, **how: Any
) -> Tensor:
    return generator.sample(SamplingPlan(label_B, uniform_BLF, *args, **how), quantizer)


def kept_by_definition(logits: list[float], top_k: int, top_p: float) -> set[int]:
    """Top-k, then top-p, one token after the other."""
    order = sorted(range(len(logits)), key=lambda i: logits[i])
    if top_k:
        order = order[-top_k:]
    weights = [math.exp(logits[i]) for i in order]
    dropped = 0.0
    kept = set(order)
    for token, weight in list(zip(order, weights, strict=True))[:-1]:
        dropped += weight / sum(weights)
        assume(abs(dropped - (1 - top_p)) > 1e-9)
        if top_p < 1 and dropped <= 1 - top_p:
            kept.discard(token)
    return kept


@given(LOGITS, st.integers(0, 14), st.floats(0.05, 1))
def test_truncation_keeps_what_the_definition_keeps(logits: list[float], top_k: int, top_p: float) -> None:
    exact = torch.tensor(logits, dtype=torch.float64)
    kept = set(truncate(exact, top_k, top_p).isfinite().nonzero().flatten().tolist())
    assert kept == kept_by_definition(logits, top_k, top_p)


def test_the_likeliest_token_is_always_kept() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    assert truncate(logits, top_k=1).isfinite().tolist() == [[False, True, False]]
    assert truncate(logits, top_p=1e-6).isfinite().tolist() == [[False, True, False]]


def test_truncation_leaves_the_kept_logits_alone() -> None:
    logits = torch.tensor([0.5, 3.0, 1.0])
    assert torch.equal(truncate(logits, top_k=2)[1:], logits[1:])
    assert torch.equal(truncate(logits, top_k=0, top_p=1.0), logits)
    assert torch.equal(truncate(logits, top_k=3), logits)


@given(LOGITS, st.floats(0, 1, exclude_max=True, width=32))
def test_a_draw_is_where_the_cumulative_probability_passes_the_number(logits: list[float], uniform: float) -> None:
    probabilities = torch.tensor(logits).softmax(0).tolist()
    total, passed = 0.0, len(logits) - 1
    for token, probability in enumerate(probabilities):
        total += probability
        if total > uniform * sum(probabilities):
            passed = token
            break
    drawn = int(draw(torch.tensor(logits), torch.tensor(uniform)))
    edge = abs(sum(probabilities[: min(drawn, passed) + 1]) - uniform * sum(probabilities))
    assert drawn == passed or edge < 1e-9


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24])
def test_a_token_without_probability_is_never_drawn(uniform: float) -> None:
    logits = torch.full((7,), float("-inf"))
    logits[2], logits[4] = 0.1, 1.0
    assert int(draw(logits, torch.tensor(uniform))) in (2, 4)


def test_draws_have_the_probabilities_of_the_logits() -> None:
    probabilities = torch.tensor([0.1, 0.0, 0.6, 0.3])
    evenly = (torch.arange(10_000) + 0.5) / 10_000
    counts = draw(probabilities.log().expand(10_000, 4), evenly).bincount(minlength=4)
    assert (counts / 10_000 - probabilities).abs().max() < 1e-3


def test_guidance_grows_from_nothing_at_the_first_scale_to_all_at_the_last() -> None:
    assert guidance_shares(None, 4) == [0.0, 1 / 3, 2 / 3, 1.0]
    assert guidance_shares(None, 1) == [1.0]


def test_each_schedule_of_guidance_is_the_published_one() -> None:
    """RAR-B's power 2.75, and the cosine that is constant at power 0, as 0 ** 0 is 1 (TiTok's specs, 2.2)."""
    assert [GuidanceSchedule(kind="constant").share(done) for done in (0.0, 0.4)] == [1.0, 1.0]
    assert [GuidanceSchedule(kind="linear").share(done) for done in (0.0, 0.25)] == [0.0, 0.25]
    cosine = GuidanceSchedule(kind="cosine", power=2.75)
    assert cosine.share(0.0) == 0.0
    assert cosine.share(0.5) == pytest.approx(0.5 * (1 - math.cos(math.pi * 0.14865)), rel=1e-4)
    assert GuidanceSchedule(kind="cosine", power=0).share(0.0) == 1.0


@pytest.mark.parametrize(("form", "scale", "ours"), [("var", 1.5, 1.5), ("llamagen", 2.0, 1.0), ("rar", 16.0, 15.0)])
def test_published_guidance_is_converted_by_name(form: str, scale: float, ours: float) -> None:
    """Equal logits: theirs from their own formula, ours from c + g (c - u)."""
    with_class, without = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)).double()
    theirs = (1 + scale) * with_class - scale * without if form == "var" else without + scale * (with_class - without)
    guidance = guidance_of(form, scale)
    assert guidance == ours
    assert torch.allclose(with_class + guidance * (with_class - without), theirs)


def test_an_unknown_form_of_guidance_is_refused() -> None:
    with pytest.raises(ValueError, match="no form of guidance is called dalle: there are var"):
        guidance_of("dalle", 2.0)


def test_temperature_divides_the_logits_before_anything_is_left_out() -> None:
    generator, quantizer = pair()
    label_B, uniform_BLF = torch.arange(5), uniforms(generator, 5)
    cold = generate(generator, quantizer, label_B, uniform_BLF, temperature=1e-3)
    assert torch.equal(cold, generate(generator, quantizer, label_B, uniform_BLF, top_k=1))
    hot = generate(generator, quantizer, label_B, uniform_BLF, temperature=2.0, top_p=0.9)
    inputs_BMC = quantizer.generator_input(hot)
    with torch.no_grad():
        logits_BLFV = generator(label_B, inputs_BMC)
    assert torch.equal(hot, draw(truncate(logits_BLFV / 2, 0, 0.9), uniform_BLF))


@pytest.mark.parametrize("folds", [1, 2])
def test_samples_are_drawn_from_the_logits_of_training(folds: int) -> None:
    generator, quantizer = pair(folds)
    label_B, uniform_BLF = torch.tensor([0, 3, 3]), uniforms(generator, 3)
    tokens_BLF = generate(generator, quantizer, label_B, uniform_BLF, guidance=1.5, top_k=6, top_p=0.9)
    assert tokens_BLF.shape == uniform_BLF.shape
    inputs_BMC = quantizer.generator_input(tokens_BLF)
    with torch.no_grad():
        conditional = generator(label_B, inputs_BMC)
        unconditional = generator(torch.full_like(label_B, generator.null_class), inputs_BMC)
    ramp_L = torch.tensor([0.0] + [0.75] * 4 + [1.5] * 9)[:, None, None]
    logits_BLFV = (1 + ramp_L) * conditional - ramp_L * unconditional
    assert torch.equal(tokens_BLF, draw(truncate(logits_BLFV, 6, 0.9), uniform_BLF))


def test_without_guidance_the_unconditional_half_is_left_out() -> None:
    generator, quantizer = pair()
    batches: list[int] = []
    generator.blocks[0].register_forward_hook(lambda module, args, output: batches.append(len(output)))
    label_B, uniform_BLF = torch.tensor([0, 3, 1]), uniforms(generator, 3)
    plain = generate(generator, quantizer, label_B, uniform_BLF)
    assert batches == [3, 3, 3]
    barely = generate(generator, quantizer, label_B, uniform_BLF, guidance=1e-12)
    assert batches[3:] == [6, 6, 6]
    assert torch.equal(plain, barely)


def test_guidance_changes_the_samples() -> None:
    generator, quantizer = pair()
    label_B, uniform_BLF = torch.arange(5), uniforms(generator, 5)
    plain, guided = (generate(generator, quantizer, label_B, uniform_BLF, guidance=g) for g in (0.0, 4.0))
    assert torch.equal(plain[:, 0], guided[:, 0])
    assert not torch.equal(plain, guided)


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_a_sample_does_not_depend_on_its_batch(guidance: float) -> None:
    generator, quantizer = pair()
    label_B, uniform_BLF = torch.tensor([0, 4, 2, 2, 1]), uniforms(generator, 5)
    together = generate(generator, quantizer, label_B, uniform_BLF, guidance, top_k=9, top_p=0.95)
    for i in range(5):
        alone = generate(generator, quantizer, label_B[[i]], uniform_BLF[[i]], guidance, top_k=9, top_p=0.95)
        assert torch.equal(alone[0], together[i])


def test_one_scale_alone_can_be_sampled() -> None:
    generator, quantizer = pair(scales=(3,))
    tokens_BLF = generate(generator, quantizer, torch.tensor([1]), uniforms(generator, 1), guidance=2.0)
    assert tokens_BLF.shape == (1, 9, 2)


def test_kept_tokens_stay_and_the_others_follow_them() -> None:
    generator, quantizer = pair()
    label_B, uniform_BLF = torch.arange(5), uniforms(generator, 5)
    free = generate(generator, quantizer, label_B, uniform_BLF)
    kept = torch.full_like(free, -1)
    kept[:, :5] = (free[:, :5] + 1) % 13
    bound = generate(generator, quantizer, label_B, uniform_BLF, kept_BLF=kept)
    assert torch.equal(bound[:, :5], kept[:, :5])
    assert not torch.equal(bound[:, 5:], free[:, 5:])
    assert torch.equal(generate(generator, quantizer, label_B, uniform_BLF, kept_BLF=torch.full_like(free, -1)), free)


def test_sampling_records_no_gradients_and_leaves_the_weights_trainable() -> None:
    generator, quantizer = pair()
    tokens_BLF = generate(generator, quantizer, torch.tensor([1]), uniforms(generator, 1))
    generator(torch.tensor([1]), quantizer.generator_input(tokens_BLF)).sum().backward()
    assert all(parameter.grad is not None for parameter in generator.parameters())


def test_a_generator_in_training_mode_is_refused() -> None:
    generator, quantizer = pair()
    with pytest.raises(ValueError, match=r"call eval\(\)"):
        generate(generator.train(), quantizer, torch.tensor([1]), uniforms(generator, 1))


def test_a_quantizer_of_another_layout_is_refused() -> None:
    generator, _ = pair()
    _, other = pair(scales=(1, 3))
    with pytest.raises(ValueError, match="and the generator's 14 positions"):
        generate(generator, other, torch.tensor([1]), uniforms(generator, 1))


def test_too_few_random_numbers_are_refused() -> None:
    generator, quantizer = pair()
    with pytest.raises(ValueError, match=r"\[1, 13, 2\], but this needs \[1, 14, 2\]"):
        generate(generator, quantizer, torch.tensor([1]), uniforms(generator, 1)[:, 1:])


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.6), (3, 0.9), (5, 0.6), (20, 0.95), (7, 0.0)])
def test_top_k_with_top_p_is_top_p_of_what_top_k_leaves_where_logits_are_equal(top_k: int, top_p: float) -> None:
    """Whole numbers, as bf16 gives: many are equal to the k-th largest, stay, and count as probability."""
    logits = torch.randn(50, 20, generator=torch.Generator().manual_seed(top_k)).mul(2).round()
    left = truncate(logits, top_k)
    ascending = left.sort(-1).values
    dropped = (ascending.softmax(-1).cumsum(-1) <= 1 - top_p).sum(-1, keepdim=True).clamp(max=19)
    expected = left.masked_fill(left < ascending.gather(-1, dropped), float("-inf"))
    assert torch.equal(truncate(logits, top_k, top_p), expected)
