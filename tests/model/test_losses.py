"""What the stages minimize."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.layout import TokenLayout
from model.losses import contrastive_loss, folded_cross_entropy, loss_of_scales, token_cross_entropy


def _reference(student_NC: Tensor, teacher_NC: Tensor, factor: float) -> float:
    """Symmetric InfoNCE by its definition."""
    total = 0.0
    count = len(student_NC)
    for i in range(count):
        right = math.exp(factor * float(teacher_NC[i] @ student_NC[i]))
        row = sum(math.exp(factor * float(teacher_NC[i] @ student_NC[j])) for j in range(count))
        column = sum(math.exp(factor * float(teacher_NC[j] @ student_NC[i])) for j in range(count))
        total -= (math.log(right / row) + math.log(right / column)) / 2
    return total / count


def test_the_contrastive_loss_is_symmetric_infonce_on_raw_products() -> None:
    student, teacher = torch.randn(5, 3), torch.randn(5, 3)
    assert contrastive_loss(student, teacher).item() == pytest.approx(_reference(student, teacher, 1.0), rel=1e-5)


def test_normalization_and_temperature_are_applied_when_asked() -> None:
    student, teacher = torch.randn(5, 3), torch.randn(5, 3)
    unit = [side / side.norm(dim=1, keepdim=True) for side in (student, teacher)]
    actual = contrastive_loss(student, teacher, temperature=4.0, normalize=True).item()
    assert actual == pytest.approx(_reference(unit[0], unit[1], 4.0), rel=1e-5)


def test_matching_pairs_cost_less_than_shuffled_ones() -> None:
    student = 5 * torch.eye(6)
    assert contrastive_loss(student, student) < contrastive_loss(student, student.roll(1, 0))


def test_both_sides_get_a_gradient() -> None:
    student, teacher = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    contrastive_loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is not None


def test_the_contrastive_loss_is_computed_in_float32() -> None:
    side = torch.randn(4, 3).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert contrastive_loss(side, side).dtype == torch.float32


def test_sides_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        contrastive_loss(torch.ones(4, 3), torch.ones(3, 3))


def test_every_position_and_fold_weighs_the_same_in_the_generators_loss() -> None:
    logits_BLFV, tokens_BLF = torch.randn(3, 5, 2, 7), torch.randint(7, (3, 5, 2))
    loss, parts_LF = folded_cross_entropy(logits_BLFV, tokens_BLF)
    expected_BLF = -logits_BLFV.log_softmax(-1).gather(-1, tokens_BLF[..., None])[..., 0]
    torch.testing.assert_close(loss, expected_BLF.mean())
    torch.testing.assert_close(parts_LF, expected_BLF.mean(0))
    torch.testing.assert_close(token_cross_entropy(logits_BLFV, tokens_BLF), expected_BLF)


def test_what_is_logged_carries_no_gradient() -> None:
    logits_BLFV = torch.randn(1, 2, 2, 3, requires_grad=True)
    loss, parts_LF = folded_cross_entropy(logits_BLFV, torch.zeros(1, 2, 2, dtype=torch.int64))
    assert loss.requires_grad
    assert not parts_LF.requires_grad


def test_tokens_may_come_as_they_are_stored() -> None:
    logits_BLFV, tokens_BLF = torch.randn(1, 2, 2, 3), torch.tensor([[[0, 1], [2, 0]]])
    stored, plain = (folded_cross_entropy(logits_BLFV, tokens_BLF.to(kind))[0] for kind in (torch.int32, torch.int64))
    assert torch.equal(stored, plain)


def test_losses_of_scales_are_means_over_their_own_positions() -> None:
    layout = TokenLayout((1, 2), branches=2, codebook_size=4)
    loss_LF = torch.tensor([[9.0, 1.0], [0.0, 2.0], [2.0, 2.0], [4.0, 2.0], [6.0, 2.0]])
    assert loss_of_scales(loss_LF, layout).tolist() == [[9.0, 1.0], [3.0, 2.0]]
