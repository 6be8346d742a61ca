"""Differentiable augmentation: what it does to an image, and what that depends on."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.config import AugmentConfig
from model.discriminators.augmentation import KINDS, augment, blur_strength, blurred
from model.layers.random_numbers import uniform

CONFIG = AugmentConfig()
SIDE = 16
IMAGE = torch.rand(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
SEED = torch.arange(8) * 1_000_003
DRAWN = uniform(SEED, 7)


def only(*kinds: str) -> Tensor:
    return torch.tensor([kind in kinds for kind in KINDS])


def test_nothing_is_done_where_nothing_fires() -> None:
    torch.testing.assert_close(augment(IMAGE, SEED, only(), CONFIG), IMAGE)


def test_images_are_shifted_by_whole_pixels_and_zeros_come_in() -> None:
    found = augment(IMAGE, SEED, only("translation"), CONFIG)
    for i in range(8):
        down, right = (2 - int(DRAWN[k, i] * 5) for k in (0, 1))
        expected = torch.zeros(3, SIDE, SIDE)
        for y in range(SIDE):
            for x in range(SIDE):
                if 0 <= y - down < SIDE and 0 <= x - right < SIDE:
                    expected[:, y, x] = IMAGE[i, :, y - down, x - right]
        torch.testing.assert_close(found[i], expected)


def test_shifts_reach_an_eighth_of_the_side_either_way() -> None:
    seed = torch.arange(200)
    middle = torch.zeros(200, 1, SIDE, SIDE)
    middle[:, 0, 8, 8] = 1
    at = augment(middle, seed, only("translation"), CONFIG).flatten(1).argmax(1)
    assert set((at // SIDE).tolist()) == set((at % SIDE).tolist()) == {6, 7, 8, 9, 10}


def test_brightness_saturation_and_contrast_are_drawn_for_each_image() -> None:
    found = augment(IMAGE, SEED, only("colour"), CONFIG)
    for i in range(8):
        x = IMAGE[i] + (DRAWN[2, i] - 0.5)
        grey = x.mean(0, keepdim=True)
        x = (x - grey) * (DRAWN[3, i] * 2) + grey
        x = (x - x.mean()) * (DRAWN[4, i] + 0.5) + x.mean()
        torch.testing.assert_close(found[i], x)


def test_a_square_of_a_fifth_of_the_side_is_cut_out() -> None:
    found = augment(torch.ones(300, 1, 20, 20), torch.arange(300), only("cutout"), CONFIG)
    drawn = uniform(torch.arange(300), 7)
    for i in range(300):
        top, left = (int(drawn[k, i] * 21) - 2 for k in (5, 6))
        expected = torch.ones(20, 20)
        expected[max(top, 0) : top + 4, max(left, 0) : left + 4] = 0
        torch.testing.assert_close(found[i, 0], expected)
    assert int((found == 0).sum((1, 2, 3)).min()) >= 4


def test_a_square_of_odd_side_stays_inside_with_its_middle() -> None:
    found = augment(torch.ones(300, 1, 15, 15), torch.arange(300), only("cutout"), CONFIG)
    holes = (found == 0).sum((1, 2, 3))
    assert (int(holes.min()), int(holes.max())) == (4, 9)


@pytest.mark.parametrize(
    "off", [{"translation": 0.0}, {"colour": False}, {"cutout": 0.0}], ids=["translation", "colour", "cutout"]
)
def test_each_kind_can_be_left_out(off: dict[str, object]) -> None:
    kind = next(iter(off))
    config = AugmentConfig.model_validate(off)
    torch.testing.assert_close(augment(IMAGE, SEED, only(kind), config), IMAGE)


def test_an_image_is_treated_alike_in_any_micro_batch() -> None:
    fires = only(*KINDS)
    whole = augment(IMAGE, SEED, fires, CONFIG, blur=0.5)
    parts = [augment(IMAGE[i : i + 2], SEED[i : i + 2], fires, CONFIG, blur=0.5) for i in range(0, 8, 2)]
    torch.testing.assert_close(whole, torch.cat(parts))


def test_other_seeds_give_other_images() -> None:
    fires = only(*KINDS)
    assert not torch.allclose(augment(IMAGE, SEED, fires, CONFIG), augment(IMAGE, SEED + 1, fires, CONFIG))


def test_gradients_go_through_all_of_it_in_float32() -> None:
    image = IMAGE.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = augment(image, SEED, only(*KINDS), CONFIG, blur=0.3)
    assert found.dtype == torch.float32
    found.sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0


@pytest.mark.parametrize(("step", "steps", "expected"), [(0, 0, 0), (0, 4, 1), (1, 4, 0.75), (4, 4, 0), (9, 4, 0)])
def test_the_blur_fades_on_a_line(step: int, steps: int, expected: float) -> None:
    assert blur_strength(step, steps) == pytest.approx(expected)


def test_the_blur_is_gaussian_to_the_base_two() -> None:
    """sigma = sqrt(16 / 2) / 2 = 1.414, so it reaches 4 pixels far, and falls to a half at 1.414 pixels."""
    image = torch.zeros(1, 1, SIDE, SIDE)
    image[0, 0, 8, 8] = 1
    found = blurred(image, 0.5)[0, 0]
    sigma = math.sqrt(8) / 2
    row = torch.tensor([2 ** -((x / sigma) ** 2) if abs(x) <= 4 else 0.0 for x in range(-8, 8)])
    row = row / row.sum()
    torch.testing.assert_close(found, row[:, None] * row)


def test_the_blur_mirrors_borders_and_keeps_what_is_even() -> None:
    torch.testing.assert_close(blurred(torch.ones(1, 3, SIDE, SIDE), 1.0), torch.ones(1, 3, SIDE, SIDE))
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    sigma, margin = math.sqrt(2), 3  # not 4: a mirror of 4 pixels shows 3
    weight = torch.tensor([2 ** -((x / sigma) ** 2) for x in range(-margin, margin + 1)])
    mirrored = torch.tensor([3.0, 2, 1, 0, 1, 2, 3, 2, 1, 0])
    expected = torch.stack([(mirrored[i : i + 7] * weight).sum() for i in range(4)]) / weight.sum()
    torch.testing.assert_close(blurred(ramp, 1.0)[0, 0, 0], expected)


def test_no_blur_is_the_image_itself() -> None:
    assert blurred(IMAGE, 0.0) is IMAGE
