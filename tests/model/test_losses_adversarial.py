"""What tokenizer and discriminator minimize of each other, against arithmetic."""

from __future__ import annotations

import math

import pytest
import torch

from model.losses.adversarial import (
    AdversarialLoss,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from model.losses.pixels import pixel_loss

REAL, MADE = torch.tensor([[2.0, 0.5], [-1.0, 1.0]]), torch.tensor([[-3.0, 0.0], [1.0, -0.5]])


def test_hinge_of_the_discriminator() -> None:
    real = (0 + 0.5 + 2 + 0) / 4
    made = (0 + 1 + 2 + 0.5) / 4
    assert discriminator_loss(REAL, MADE).item() == pytest.approx((real + made) / 2)


def test_cross_entropy_of_the_discriminator() -> None:
    real = sum(math.log(1 + math.exp(-x)) for x in (2, 0.5, -1, 1)) / 4
    made = sum(math.log(1 + math.exp(x)) for x in (-3, 0, 1, -0.5)) / 4
    assert discriminator_loss(REAL, MADE, "non-saturating").item() == pytest.approx((real + made) / 2)


def test_the_tokenizers_side() -> None:
    assert generator_loss(MADE).item() == pytest.approx(2.5 / 4)
    expected = sum(math.log(1 + math.exp(-x)) for x in (-3, 0, 1, -0.5)) / 4
    assert generator_loss(MADE, "non-saturating").item() == pytest.approx(expected)


@pytest.mark.parametrize("loss", ["hinge", "non-saturating"])
def test_losses_are_float32_of_half_precision_logits(loss: AdversarialLoss) -> None:
    assert discriminator_loss(REAL.bfloat16(), MADE.bfloat16(), loss).dtype == torch.float32
    assert generator_loss(MADE.bfloat16(), loss).dtype == torch.float32


@pytest.mark.parametrize(
    ("reference", "adversarial", "expected"),
    [(2.0, 0.5, 2 / 0.5001), (1.0, 0.0, 1e4), (3.0, 1e-5, 1e4), (0.0, 1.0, 0.0), (math.inf, 1.0, 1e4)],
)
def test_the_adaptive_weight_is_the_ratio_of_norms(reference: float, adversarial: float, expected: float) -> None:
    weight = adaptive_weight(torch.tensor(reference), torch.tensor(adversarial))
    assert weight.item() == pytest.approx(expected)


def test_the_adaptive_weights_bounds_can_be_set() -> None:
    assert adaptive_weight(torch.tensor(9.0), torch.tensor(1.0), most=3.0).item() == 3
    assert adaptive_weight(torch.tensor(9.0), torch.tensor(1.0), eps=2.0).item() == pytest.approx(3)


def test_the_adaptive_weight_carries_no_gradient_and_hides_no_nan() -> None:
    norms = torch.tensor(2.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    assert not adaptive_weight(*norms).requires_grad
    assert adaptive_weight(torch.tensor(math.nan), torch.tensor(1.0)).isnan()


def test_the_gradient_penalty_is_the_mean_squared_norm_over_images() -> None:
    """Logits w·x and 3 w·x have the mean gradient 2 w."""
    image = torch.randn(2, 1, 2, 2, requires_grad=True)
    weight = torch.randn(2, 1, 2, 2, requires_grad=True)
    one_B = (image * weight).sum((1, 2, 3))
    penalty = gradient_penalty(torch.stack([one_B, 3 * one_B], dim=1), image)
    torch.testing.assert_close(penalty, (2 * weight).square().sum() / 2)
    penalty.backward()
    torch.testing.assert_close(weight.grad, 4 * weight)


def test_errors_of_pixels() -> None:
    image, made = torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0, -3.0]]]]).bfloat16()
    assert pixel_loss(made, image).item() == 5
    assert pixel_loss(made, image, "l1").item() == 2
    assert pixel_loss(made, image).dtype == torch.float32
