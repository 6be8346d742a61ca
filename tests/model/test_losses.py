"""What the stages minimize."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.layout import TokenLayout
from model.losses.contrastive import contrastive_loss
from model.losses.tokens import (
    folded_cross_entropy,
    linear_cross_entropy,
    logits_cross_entropy,
    loss_of_groups,
    terms_of_groups,
    token_cross_entropy,
)


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
    layout = TokenLayout((1, 4), (4, 4))
    loss_LF = torch.tensor([[9.0, 1.0], [0.0, 2.0], [2.0, 2.0], [4.0, 2.0], [6.0, 2.0]])
    assert loss_of_groups(loss_LF, layout).tolist() == [[9.0, 1.0], [3.0, 2.0]]


def _head(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((13, 6), (2 * 7, 6), (2 * 7,)))
    tokens_NF = torch.randint(7, (13, 2), generator=generator)
    return x.to(dtype).requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), tokens_NF


@pytest.mark.parametrize("logits_at_once", [1, 4 * 14, 5 * 14, 1000], ids=["a row", "4 rows", "5 rows", "all"])
def test_a_head_in_parts_has_the_losses_and_gradients_of_one_in_one_piece(logits_at_once: int) -> None:
    x, weight, bias, tokens_NF = _head()
    loss, losses_NF, _ = linear_cross_entropy(x, weight, bias, tokens_NF, logits_at_once=logits_at_once)
    logits = torch.nn.functional.linear(x, weight, bias).view(13, 2, 7)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens_NF.flatten())
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(losses_NF, token_cross_entropy(logits[None], tokens_NF[None])[0])
    assert not losses_NF.requires_grad
    for actual, wanted in zip(
        torch.autograd.grad(3 * loss, (x, weight, bias)),
        torch.autograd.grad(3 * expected, (x, weight, bias)),
        strict=True,
    ):
        torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_head_in_half_precision_gives_float32_losses_and_gradients_like_its_inputs(dtype: torch.dtype) -> None:
    x, weight, bias, tokens_NF = _head(dtype)
    loss, losses_NF, _ = linear_cross_entropy(x, weight, bias, tokens_NF, logits_at_once=4 * 14)
    assert loss.dtype == losses_NF.dtype == torch.float32
    exact = linear_cross_entropy(x.float(), weight, bias, tokens_NF).mean
    assert loss.item() == pytest.approx(exact.item(), rel=0.01)
    scale = 2.0**16  # fp16's loss scale, which backward starts with
    found = torch.autograd.grad(loss * scale, (x, weight, bias))
    for actual, leaf, wanted in zip(
        found, (x, weight, bias), torch.autograd.grad(exact, (x, weight, bias)), strict=True
    ):
        assert actual.dtype == leaf.dtype
        assert (actual.float() / scale - wanted.float()).norm() < 0.02 * wanted.float().norm()


def test_the_sum_of_many_rows_does_not_leave_fp16() -> None:
    """All rows miss one code alike: its gradient is a sum of 20,000 equal numbers near one."""
    x = torch.full((20_000, 4), 6.0, dtype=torch.float16)
    weight = torch.zeros(2, 4)
    weight[1] = 9
    weight.requires_grad_()
    loss, _, _ = linear_cross_entropy(x, weight, None, torch.zeros(20_000, 1, dtype=torch.int64))
    (gradient,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(gradient[1], torch.full((4,), 6.0))


def test_a_head_without_gradients_computes_none() -> None:
    x, weight, bias, tokens_NF = _head()
    with torch.no_grad():
        loss, losses_NF, _ = linear_cross_entropy(x, weight, bias, tokens_NF)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, losses_NF.mean())


@pytest.mark.parametrize("vocabularies", [(7, 7), (3, 11)], ids=["alike", "different"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("logits_at_once", [4 * 14, 1000])
def test_a_head_weighs_rows_and_smooths_labels_as_torch_does_for_folds_of_any_vocabularies(
    vocabularies: tuple[int, int], smoothing: float, weighed: bool, logits_at_once: int
) -> None:
    x, weight, bias, _ = _head()
    tokens_NF = torch.stack([torch.arange(13) % codes for codes in vocabularies], dim=1)
    weight_N = torch.tensor([3.0, 0.0] * 6 + [0.5]) if weighed else None
    found = linear_cross_entropy(
        x,
        weight,
        bias,
        tokens_NF,
        vocabularies=vocabularies,
        weight_N=weight_N,
        smoothing=smoothing,
        logits_at_once=logits_at_once,
    )
    parts = torch.nn.functional.linear(x, weight, bias).split(vocabularies, dim=1)
    plain = torch.nn.functional.cross_entropy
    smooth_NF = torch.stack(
        [
            plain(part, t, reduction="none", label_smoothing=smoothing)
            for part, t in zip(parts, tokens_NF.T, strict=True)
        ],
        dim=1,
    )
    losses_NF = torch.stack([plain(part, t, reduction="none") for part, t in zip(parts, tokens_NF.T, strict=True)], 1)
    rows_N = torch.ones(13) if weight_N is None else weight_N
    expected = (smooth_NF * rows_N[:, None]).sum() / (2 * rows_N.sum())
    torch.testing.assert_close(found.mean, expected)
    torch.testing.assert_close(found.losses_NF, losses_NF)
    hits_NF = torch.stack([part.argmax(1) == t for part, t in zip(parts, tokens_NF.T, strict=True)], dim=1)
    assert torch.equal(found.hits_NF, hits_NF)
    assert 0 < int(hits_NF.sum()) < 26
    for actual, wanted in zip(
        torch.autograd.grad(3 * found.mean, (x, weight, bias)),
        torch.autograd.grad(3 * expected, (x, weight, bias)),
        strict=True,
    ):
        torch.testing.assert_close(actual, wanted)


def test_rows_that_all_weigh_nothing_have_no_loss_and_no_gradient() -> None:
    x, weight, bias, tokens_NF = _head()
    found = linear_cross_entropy(x, weight, bias, tokens_NF, weight_N=torch.zeros(13))
    assert found.mean.item() == 0
    assert not torch.autograd.grad(found.mean, x)[0].any()


def test_of_equal_logits_none_is_right() -> None:
    """A head that starts at zero has learned nothing."""
    found = linear_cross_entropy(torch.ones(5, 3), torch.zeros(8, 3), None, torch.zeros(5, 2, dtype=torch.int64))
    assert not found.hits_NF.any()
    torch.testing.assert_close(found.mean, torch.tensor(4.0).log())


def test_a_head_that_does_not_fit_its_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match=r"8 outputs and 2 tokens does not fit \(3, 4\)"):
        linear_cross_entropy(
            torch.ones(1, 3), torch.zeros(8, 3), None, torch.zeros(1, 2, dtype=torch.int64), vocabularies=(3, 4)
        )


def test_metrics_are_named_by_group_and_fold_also_of_unfolded_tokens() -> None:
    layout = TokenLayout((1, 2), (4, 4))
    loss_LF, hits_LF = (
        torch.tensor([[9.0, 1.0], [0.0, 2.0], [2.0, 4.0]]),
        torch.tensor([[1.0, 0.0], [0.5, 0.0], [0, 1]]),
    )
    wanted = {"loss_group0_fold0": 9.0, "loss_group0_fold1": 1.0, "loss_group1_fold0": 1.0, "loss_group1_fold1": 3.0}
    shares = [1.0, 0.0, 0.25, 0.5]
    wanted |= {name.replace("loss", "accuracy"): share for name, share in zip(list(wanted), shares, strict=True)}
    assert {name: float(term) for name, term in terms_of_groups(loss_LF, layout, hits_LF).items()} == wanted
    unfolded = terms_of_groups(loss_LF.view(6, 1), layout.unfolded(), hits_LF.view(6, 1))
    assert {name: float(term) for name, term in unfolded.items()} == wanted
    assert set(terms_of_groups(loss_LF, layout)) == {name for name in wanted if name.startswith("loss")}


@pytest.mark.parametrize("at_once", [1, 21, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_of_logits_is_torchs_in_parts(at_once: int, dtype: torch.dtype) -> None:
    logits = torch.randn(10, 7).to(dtype).requires_grad_()
    reference = logits.detach().float().requires_grad_()
    tokens = torch.randint(7, (10,))
    loss = logits_cross_entropy(logits, tokens.to(torch.int32), at_once)
    expected = torch.nn.functional.cross_entropy(reference, tokens)
    torch.testing.assert_close(loss, expected)
    (3 * loss).backward()
    (3 * expected).backward()
    assert logits.grad is not None
    assert logits.grad.dtype == dtype
    torch.testing.assert_close(
        logits.grad.float(), reference.grad, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-4
    )
