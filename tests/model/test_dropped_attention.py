"""Attention whose probabilities are dropped: against its definition, with autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.layers.attention import attend
from model.layers.dropout import keep_factors
from model.layers.dropped_attention import attend_with_dropout
from model.layers.visibility import GroupCausal

B, L, H, D = 3, 7, 2, 4
SEED_B = torch.tensor([5, -9, 2**40])
GROUPS = {"causal": GroupCausal.next_token(L), "all": None, "blocks": GroupCausal((2, 5))}


def heads(seed: int) -> list[Tensor]:
    torch.manual_seed(seed)
    return [torch.randn(B, L, H, D, dtype=torch.float64, requires_grad=True) for _ in range(3)]


def defined(q: Tensor, k: Tensor, v: Tensor, groups: GroupCausal | None, rate: float) -> Tensor:
    logits_BHLM = torch.einsum("blhd,bmhd->bhlm", q, k) / math.sqrt(D)
    if groups is not None:
        logits_BHLM = logits_BHLM.masked_fill(~groups.mask(q.device), float("-inf"))
    dropped = logits_BHLM.softmax(-1) * keep_factors(torch.Size((H, L, L)), SEED_B, rate)
    return torch.einsum("bhlm,bmhd->blhd", dropped, v)


@pytest.mark.parametrize("name", GROUPS)
def test_output_and_gradients_are_those_of_the_definition(name: str) -> None:
    groups, ours, plain = GROUPS[name], heads(0), heads(0)
    out = attend_with_dropout(*ours, groups, SEED_B, 0.3)
    expected = defined(*plain, groups, 0.3)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)  # the softmax is float32
    weight = torch.randn_like(expected)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    for own, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=0, atol=1e-6)


def test_nothing_dropped_is_ordinary_attention() -> None:
    q, k, v = (each.float() for each in heads(1))
    out = attend_with_dropout(q, k, v, GROUPS["causal"], SEED_B, 0.0)
    torch.testing.assert_close(out, attend(q, k, v, GROUPS["causal"]), rtol=0, atol=1e-6)


def test_a_sample_is_treated_alike_in_any_batch() -> None:
    q, k, v = heads(2)
    whole = attend_with_dropout(q, k, v, None, SEED_B, 0.5)
    alone = attend_with_dropout(q[1:2], k[1:2], v[1:2], None, SEED_B[1:2], 0.5)
    torch.testing.assert_close(alone, whole[1:2])
    assert not torch.allclose(attend_with_dropout(q[1:2], k[1:2], v[1:2], None, SEED_B[:1], 0.5), alone)


def test_without_a_seed_it_is_refused() -> None:
    with pytest.raises(ValueError, match="needs seed_B"):
        attend_with_dropout(*heads(3), None, None, 0.1)
