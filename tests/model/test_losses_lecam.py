"""LeCam regularization in both published forms, against arithmetic."""

from __future__ import annotations

import pytest
import torch

from model.losses.lecam import averages_of_step, lecam_loss


def test_each_logit_is_held_to_the_other_sides_average() -> None:
    """Averages 0.5 and -1: a real logit of 2 is 3 above -1, one of -2 is not above; made ones of 0 and 1: 0.5, none."""
    real, made = torch.tensor([[2.0], [-2.0]]), torch.tensor([[0.0], [1.0]])
    loss = lecam_loss(real, made, torch.tensor([0.5, -1.0]))
    assert loss.item() == pytest.approx((9 + 0) / 2 + (0.25 + 0) / 2)


def test_means_are_held_as_they_are() -> None:
    loss = lecam_loss(torch.tensor(2.0), torch.tensor(-0.5), torch.tensor([0.25, 1.0]))
    assert loss.item() == pytest.approx(1.0 + 0.75**2)


def test_the_square_of_a_mean_is_not_the_mean_of_squares() -> None:
    logits, averages = torch.tensor([[3.0], [-3.0]]), torch.zeros(2)
    assert lecam_loss(logits, logits, averages).item() == pytest.approx(9.0)
    assert lecam_loss(logits.mean(), logits.mean(), averages).item() == 0


@pytest.mark.parametrize(("update", "used"), [("before", [0.1 * 2 + 0.9, -0.3]), ("after", [1.0, 0.0])])
def test_averages_move_before_they_are_used_or_after(update: str, used: list[float]) -> None:
    begin, mean = torch.tensor([1.0, 0.0]), torch.tensor([2.0, -3.0])
    found, left = averages_of_step(begin, mean, decay=0.9, update=update)  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.tensor(used))
    torch.testing.assert_close(left, torch.tensor([1.1, -0.3]))
    torch.testing.assert_close(begin, torch.tensor([1.0, 0.0]))


def test_a_mean_that_is_not_finite_leaves_the_averages() -> None:
    begin = torch.tensor([1.0, 2.0])
    for found in averages_of_step(begin, torch.tensor([float("nan"), 0.0])):
        torch.testing.assert_close(found, begin)


def test_averages_carry_no_gradient_and_logits_do() -> None:
    mean = torch.tensor([1.0, -1.0], requires_grad=True)
    used, _ = averages_of_step(torch.zeros(2), mean)
    assert not used.requires_grad
    lecam_loss(mean[0], mean[1], used).backward()
    assert mean.grad is not None
    # d/dreal of (real - average of made)^2, whose average is -0.001; made is below the real ones' average of 0.001
    torch.testing.assert_close(mean.grad, torch.tensor([2 * 1.001, -2 * 1.001]))


def test_half_precision_logits_give_a_float32_loss() -> None:
    logits = torch.ones(2, 2, dtype=torch.bfloat16)
    assert lecam_loss(logits, logits, torch.zeros(2)).dtype == torch.float32
