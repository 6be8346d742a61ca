"""The contrastive loss with images left out, its temperature, and which branches it is of."""

from __future__ import annotations

import pytest
import torch

from model.config import SemanticConfig
from model.losses.contrastive import contrastive_gradients, contrastive_loss, temperature_at

KEPT = torch.tensor([True, False, True, True, False])


def test_images_that_are_left_out_are_no_negatives_either() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 3).unbind()
    expected = contrastive_loss(student[KEPT], teacher[KEPT], 2.0, normalize=True)
    torch.testing.assert_close(contrastive_loss(student, teacher, 2.0, normalize=True, kept_N=KEPT), expected)


def test_they_get_no_gradient_and_the_others_what_they_would_alone() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 3).unbind()
    loss, of_student, of_teacher = contrastive_gradients(student, teacher, 3.0, kept_N=KEPT)
    alone = contrastive_gradients(student[KEPT], teacher[KEPT], 3.0)
    torch.testing.assert_close((loss, of_student[KEPT], of_teacher[KEPT]), alone)
    assert not of_student[~KEPT].any()
    assert not of_teacher[~KEPT].any()


def test_no_image_at_all_costs_nothing() -> None:
    side = torch.randn(3, 2, requires_grad=True)
    loss = contrastive_loss(side, side, kept_N=torch.zeros(3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert side.grad is not None
    assert not side.grad.any()


def test_with_every_image_it_is_the_same_as_without_a_choice() -> None:
    student, teacher = torch.randn(2, 4, 3).unbind()
    kept = torch.ones(4, dtype=torch.bool)
    torch.testing.assert_close(contrastive_loss(student, teacher, kept_N=kept), contrastive_loss(student, teacher))


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0, 1), (0.999, 1), (1, 1.495), (100, 50.5), (199.5, 99.505), (200, 100)]
)
def test_the_published_temperature(epoch: float, expected: float) -> None:
    assert temperature_at(epoch / 200, 1.0, 100.0, stairs=200) == pytest.approx(expected)


def test_temperature_on_a_line_or_not_at_all() -> None:
    assert temperature_at(0.25, 1.0, 3.0) == pytest.approx(1.5)
    assert temperature_at(2.0, 1.0, 3.0) == 3.0
    assert temperature_at(0.7, 4.0) == 4.0


@pytest.mark.parametrize(
    ("branches", "expected"), [("last", (2,)), ("first", (0,)), ("all", (0, 1, 2)), ((1, 2), (1, 2))]
)
def test_branches_that_are_compared(branches: object, expected: tuple[int, ...]) -> None:
    assert SemanticConfig.model_validate({"branches": branches}).branch_numbers(3) == expected


@pytest.mark.parametrize("branches", [(3,), (-1,), (0, 0)])
def test_branches_that_are_not_there_or_twice_are_refused(branches: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="branches 0 to 2"):
        SemanticConfig(branches=branches).branch_numbers(3)
