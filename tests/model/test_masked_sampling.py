"""Sampling masked generators: published schedules, a slow loop by the specs beside ours, what is given, and batches."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from model.config import GuidanceSchedule
from model.config.masked import MaskedOptions, masked_share
from model.config.sampling import OrderOptions, guidance_of
from model.generators.choosing import draw
from model.generators.masked import MaskedGenerator
from model.layers.random_numbers import split_seed, uniform
from model.layout import TokenLayout
from model.protocols import SamplingPlan
from tests.model.test_masked import BERT, CLASSES, FLAT, FOLDED, UVIT, made

COUNTS: list[tuple[str, int, int, list[int]]] = [
    ("arccos", 32, 8, [29, 26, 24, 21, 18, 14, 10, 0]),
    ("arccos", 64, 8, [58, 53, 48, 42, 36, 29, 20, 0]),
    ("arccos", 128, 8, [117, 107, 96, 85, 72, 58, 41, 0]),
    ("cosine", 32, 8, [31, 29, 26, 22, 17, 12, 6, 0]),
    ("cosine", 256, 8, [251, 236, 212, 181, 142, 97, 49, 0]),
    ("linear", 10, 10, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
    ("arccos", 3, 6, [2, 1, 1, 1, 1, 0]),
    ("root", 4, 1, [0]),
]


def drawn(generator: MaskedGenerator, batch: int = 5, kept: Tensor | None = None, **how: Any) -> Tensor:
    layout = generator.layout
    options = MaskedOptions(**{name: how.pop(name) for name in list(how) if name in MaskedOptions.model_fields})
    numbers = torch.rand((batch, layout.positions, layout.folds), generator=torch.Generator().manual_seed(3))
    seed_B = torch.arange(batch) * 104729 + how.pop("first", 0)
    plan = SamplingPlan(torch.arange(batch) % CLASSES, numbers, seed_B=seed_B, kept_BLF=kept, order=options, **how)
    return generator.eval().sample(plan, None)


@pytest.mark.parametrize(("schedule", "positions", "steps", "left"), COUNTS)
def test_as_many_tokens_stay_masked_as_published(schedule: Any, positions: int, steps: int, left: list[int]) -> None:
    """TiTok's specs 2.1, MaskGIT's 4.2 of the baselines; ours where it says no paper."""
    options = MaskedOptions(steps=steps, mask_schedule=schedule)
    assert options.counts(positions) == [positions, *left]


def test_training_rounds_and_sampling_rounds_down() -> None:
    """arccos, TiTok's specs 7.18."""
    share = masked_share("arccos", 1 / 8)
    assert 32 * share == pytest.approx(29.45, abs=0.01)
    assert round(64 * share) == 59
    assert MaskedOptions().counts(64)[1] == 58


def spied(monkeypatch: pytest.MonkeyPatch, generator: MaskedGenerator) -> list[tuple[int, float, float, bool]]:
    """Of each call of the head: rows, guidance, temperature, and whether there is a pass without the class."""
    calls: list[tuple[int, float, float, bool]] = []
    draw_all = generator.head.draw

    def spy(read: Tensor, without: Tensor | None, guidance: float, choose: Any, temperature: float = 1.0) -> Any:
        calls.append((len(read), guidance, temperature, without is not None))
        return draw_all(read, without, guidance, choose, temperature)

    monkeypatch.setattr(generator.head, "draw", spy)
    return calls


def test_the_schedules_of_l_32_are_the_published_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = made(TokenLayout((32,), (13,)))
    calls = spied(monkeypatch, generator)
    noises: list[float] = []
    monkeypatch.setattr(
        "model.generators.masked_sampling.draw", lambda logits, _: noises.append(0) or logits.argmax(-1)
    )
    drawn(generator, 2, guidance=guidance_of("maskgit-linear", 4.5), choice_temperature=9.5)
    assert [round(temperature, 2) for _, _, temperature, _ in calls] == [1.2, 1.1, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5]
    assert [round(guidance, 3) for _, guidance, _, _ in calls] == [0, 0.562, 1.125, 1.688, 2.25, 2.812, 3.375, 3.938]
    assert [rows for rows, *_ in calls] == [2 * count for count in (32, 29, 26, 24, 21, 18, 14, 10)]
    assert [two for *_, two in calls] == [False] + [True] * 7, "linear guidance begins with the class alone"
    assert len(noises) == 7, "the last tokens are the likeliest"


def test_power_cosine_guidance_begins_at_exactly_the_class_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """S-128: w = 6.9 of the standard form, w_k = 1 + (w - 1) (1 - cos(pi (k / S)^3)) / 2."""
    generator = made(TokenLayout((128,), (13,)))
    calls = spied(monkeypatch, generator)
    schedule = GuidanceSchedule(kind="cosine", power=3)
    drawn(generator, 1, guidance=guidance_of("titok-cosine", 6.9), schedule=schedule, steps=64, choice_temperature=2.8)
    expected = [5.9 * 0.5 * (1 - math.cos(math.pi * (k / 64) ** 3)) for k in range(64)]
    assert [guidance for _, guidance, _, _ in calls] == pytest.approx(expected)
    assert calls[0][3] is False


def test_guidance_is_one_stacked_pass() -> None:
    generator = made(FLAT)
    batches: list[int] = []
    generator.backbone.register_forward_hook(lambda _, args, out: batches.append(len(out)))
    drawn(generator, 3, guidance=2.0, schedule=GuidanceSchedule(kind="constant"), steps=4)
    drawn(generator, 3, steps=4)
    assert batches == [6] * 4 + [3] * 4


def slowly(generator: MaskedGenerator, batch: int, guidance: float, options: MaskedOptions) -> Tensor:
    """The specs' loop for one fold: all logits in two passes, each image by itself, with the same random numbers."""
    count, steps = generator.layout.positions, options.steps
    images = []
    for image in range(batch):
        seeds = split_seed(torch.tensor([image * 104729]), steps)
        ids, mask = torch.full((1, count, 1), 13), 13
        for step in range(steps):
            numbers, ratio = uniform(seeds[step], 2 * count)[:, 0], (step + 1) / steps
            label = torch.tensor([image % CLASSES])
            with torch.no_grad():
                c = generator.logits(ids, label)[0][0]
                u = generator.logits(ids, torch.tensor([generator.null_class]))[0][0]
            scale = guidance * step / steps
            logits = c + scale * (c - u)
            if options.softmax_annealing:
                logits = logits / (0.5 + 0.8 * (1 - ratio))
            noise = options.choice_temperature * (1 - ratio)
            if not options.noisy_tokens:
                tokens = draw(logits, numbers[count:])
            else:
                tokens = draw(logits / noise, numbers[count:]) if noise else logits.argmax(-1)
            scores = logits if options.confidence == "logit" else logits.log_softmax(-1)
            is_masked = ids[0, :, 0] == mask
            tokens = torch.where(is_masked, tokens, ids[0, :, 0])
            sure = torch.where(is_masked, scores.gather(1, tokens[:, None])[:, 0], torch.inf)
            sure = sure + noise * -torch.log(-torch.log(numbers[:count] + 2.0**-25))
            left = math.floor(count * masked_share(options.mask_schedule, ratio) + 1e-9)
            left = max(1, min(int(is_masked.sum()) - 1, left))
            again = sure.argsort()[:left]
            if step < steps - 1:
                tokens[again] = mask
            ids = tokens[None, :, None]
        images.append(ids)
    return torch.cat(images)


@pytest.mark.parametrize(
    "options",
    [
        MaskedOptions(steps=5, choice_temperature=2.0),
        MaskedOptions(steps=3, choice_temperature=0.0, softmax_annealing=False),
        MaskedOptions(steps=6, mask_schedule="cosine", noisy_tokens=False, confidence="log-probability"),
        MaskedOptions(steps=20, mask_schedule="root", softmax_annealing=False, confidence="log-probability"),
        MaskedOptions(steps=1),
    ],
    ids=["titok", "quiet", "maskgit", "more steps than tokens", "one step"],
)
@pytest.mark.parametrize("backbone", [BERT, UVIT], ids=["bert", "uvit"])
def test_samples_are_those_of_the_loop_of_the_specs(options: MaskedOptions, backbone: dict[str, Any]) -> None:
    generator = made(FLAT, backbone).eval()
    ours = drawn(generator, 4, guidance=1.5, **options.model_dump())
    assert torch.equal(ours, slowly(generator, 4, 1.5, options))
    assert ours.max() < 13


@pytest.mark.parametrize("layout", [FLAT, FOLDED], ids=["flat", "folded"])
@pytest.mark.parametrize("head", ["independent", "depth"])
@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_a_sample_does_not_depend_on_its_batch(layout: TokenLayout, head: str, guidance: float) -> None:
    sizes = {"depth": 1, "width": 8, "heads": 2} if head == "depth" else {}
    generator = made(layout, head={"kind": head, **sizes})
    together = drawn(generator, 5, guidance=guidance, top_k=9, top_p=0.95)
    for image in range(5):
        labels, numbers = torch.tensor([image % CLASSES]), torch.zeros(1, layout.positions, layout.folds)
        how: dict[str, Any] = {"guidance": guidance, "top_k": 9, "top_p": 0.95}
        plan = SamplingPlan(labels, numbers, seed_B=torch.tensor([image * 104729]), order=MaskedOptions(), **how)
        assert torch.equal(generator.sample(plan, None)[0], together[image])
    assert all((together[..., fold] < codes).all() for fold, codes in enumerate(layout.vocabularies))


def test_without_seeds_the_uniform_numbers_decide() -> None:
    generator = made(FLAT).eval()
    numbers = torch.rand((4, 16, 1), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    label_B = torch.zeros(4, dtype=torch.int64)
    first, again = (generator.sample(SamplingPlan(label_B, numbers), None) for _ in range(2))
    assert torch.equal(first, again)
    assert len({tuple(tokens.flatten().tolist()) for tokens in first}) == 4


@pytest.mark.parametrize("layout", [FLAT, FOLDED], ids=["flat", "folded"])
def test_given_tokens_stay_and_are_never_masked(layout: TokenLayout) -> None:
    generator = made(layout)
    free = drawn(generator)
    kept = torch.full_like(free, -1)
    kept[0], kept[1, :5], kept[2, 2:, 0] = free[0], (free[1, :5] + 1) % 7, (free[2, 2:, 0] + 2) % 7
    seen: list[Tensor] = []
    generator.token_embed.register_forward_hook(lambda _, args, out: seen.append(args[0][:, 1:].clone()))
    bound = drawn(generator, kept=kept)
    assert torch.equal(torch.where(kept >= 0, bound, kept), kept)
    assert all(torch.equal(torch.where(kept >= 0, ids, kept), kept) for ids in seen)
    assert all((bound[..., fold] < codes).all() for fold, codes in enumerate(layout.vocabularies))
    assert torch.equal(bound[3:], free[3:]), "of an image without given tokens nothing changes"
    assert torch.equal(drawn(generator, kept=torch.full_like(free, -1)), free)


@pytest.mark.parametrize("steps", [8, 64], ids=["fewer steps than tokens", "more steps than tokens"])
def test_of_what_is_not_given_as_many_stay_masked_as_of_that_alone(steps: int) -> None:
    generator = made(TokenLayout((32,), (13,)))
    kept = torch.full((3, 32, 1), -1)
    kept[0, :16], kept[1, :31] = 5, 5
    seen: list[list[int]] = []
    generator.token_embed.register_forward_hook(
        lambda _, args, out: seen.append((args[0][:, 1:, 0] == 13).sum(1).tolist())
    )
    options = MaskedOptions(steps=steps)
    drawn(generator, 3, kept=kept, steps=steps)
    # A step at which no image of the whole number has fewer left is none.
    counts = [options.counts(count) for count in (16, 1, 32)]
    steps_taken = [i for i in range(steps) if counts[2][i] > counts[2][i + 1]]
    assert seen == [[each[i] for each in counts] for i in steps_taken]
    assert steps != 8 or [row[2] for row in seen] == [32, 29, 26, 24, 21, 18, 14, 10]


def test_the_others_follow_what_is_given() -> None:
    generator = made(FLAT)
    free = drawn(generator)
    kept = torch.full_like(free, -1)
    kept[:, :8] = (free[:, :8] + 1) % 13
    assert not torch.equal(drawn(generator, kept=kept)[:, 8:], free[:, 8:])


def test_temperature_and_noise_change_the_samples() -> None:
    generator = made(FLAT)
    plain = drawn(generator)
    others = [{"temperature": 3.0}, {"choice_temperature": 40.0}, {"guidance": 3.0}, {"first": 1}, {"steps": 4}]
    assert not any(torch.equal(drawn(generator, **other), plain) for other in others)
    cold = drawn(generator, temperature=1e-4, choice_temperature=1e-4)
    assert torch.equal(cold, drawn(generator, first=9, temperature=1e-4, choice_temperature=1e-4))


def test_tokens_have_the_probabilities_of_the_tempered_logits() -> None:
    """One step of two: what is drawn first, of a network that says the same everywhere."""
    generator = made(TokenLayout((1,), (3,)))
    with torch.no_grad():
        generator.head.weight.zero_()
        assert generator.head.bias is not None
        generator.head.bias.copy_(torch.tensor([0.0, 1.0, 2.0]))
    options: dict[str, Any] = {"steps": 1, "noisy_tokens": False, "softmax_annealing": False}
    counts = drawn(generator, 4000, temperature=2.0, **options).flatten().bincount(minlength=3) / 4000
    expected = torch.tensor([0.0, 0.5, 1.0]).softmax(0)
    assert counts.tolist() == pytest.approx(expected.tolist(), abs=0.03)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"uniform_BLF": torch.zeros(5, 15, 1)}, r"\[5, 15, 1\], but this needs \[5, 16, 1\]"),
        ({"kept_BLF": torch.zeros(5, 16, 2)}, r"kept tokens are \[5, 16, 2\]"),
        ({"seed_B": torch.zeros(4, dtype=torch.int64)}, r"seeds are \[4\], but this needs \[5\]"),
        ({"order": OrderOptions()}, "OrderOptions is of another order"),
    ],
)
def test_plans_that_do_not_fit_are_refused(changed: dict[str, Any], reason: str) -> None:
    plan: dict[str, Any] = {"condition_B": torch.zeros(5, dtype=torch.int64), "uniform_BLF": torch.zeros(5, 16, 1)}
    with pytest.raises(ValueError, match=reason):
        made(FLAT).eval().sample(SamplingPlan(**(plan | changed)), None)


def test_a_generator_in_training_mode_is_refused() -> None:
    plan = SamplingPlan(torch.zeros(1, dtype=torch.int64), torch.zeros(1, 16, 1))
    with pytest.raises(ValueError, match=r"call eval\(\)"):
        made(FLAT).sample(plan, None)
