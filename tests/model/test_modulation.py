"""The written-out backward passes of a block's elementwise part, against autograd on the plain formulas."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.layers.modulation import cached_heads, gated_sum, modulated_norm, normalized_heads


def randn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def gradients(function: Callable[..., Tensor], arguments: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The result, and the gradient of a weighted sum of it to each argument."""
    leaves = [argument.clone().requires_grad_() for argument in arguments]
    out = function(*leaves)
    weight = randn(*out.shape, dtype=out.dtype)
    return (out, *torch.autograd.grad((out * weight).sum(), leaves))


def plain_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * scale + shift


def plain_heads(qkv: Tensor, temperature: Tensor) -> Tensor:
    q, k, v = qkv.unbind(2)
    return torch.stack((F.normalize(q, dim=-1) * temperature[:, None], F.normalize(k, dim=-1), v))


def heads(qkv: Tensor, temperature: Tensor) -> Tensor:
    return torch.stack(normalized_heads(qkv, temperature))


CASES = {
    "norm": (modulated_norm, plain_norm, ((2, 5, 8), (2, 1, 8), (2, 1, 8))),
    "gate": (gated_sum, lambda x, gate, y: x + gate * y, ((2, 5, 8), (2, 1, 8), (2, 5, 8))),
    "heads": (heads, plain_heads, ((2, 5, 3, 4, 8), (4,))),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_plain_formula(case: str) -> None:
    ours, plain, shapes = CASES[case]
    arguments = [randn(*shape, dtype=torch.float32) + (3 if len(shape) == 1 else 0) for shape in shapes]
    for actual, expected in zip(gradients(ours, arguments), gradients(plain, arguments), strict=True):
        torch.testing.assert_close(actual, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_without_gradients_the_values_are_the_same(case: str) -> None:
    ours, _, shapes = CASES[case]
    arguments = [randn(*shape, dtype=torch.float32) for shape in shapes]
    trained = ours(*(argument.requires_grad_() for argument in arguments))
    with torch.no_grad():
        torch.testing.assert_close(ours(*arguments), trained)


@pytest.mark.parametrize("case", CASES)
def test_half_precision_stays_half_and_near(case: str) -> None:
    ours, plain, shapes = CASES[case]
    exact = [randn(*shape, dtype=torch.float32) for shape in shapes]
    half = [tensor if tensor.ndim == 1 else tensor.bfloat16() for tensor in exact]  # the temperature is float32
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(ours, half)
    for actual, argument in zip(found[1:], half, strict=True):
        assert actual.dtype == argument.dtype
    assert found[0].dtype == torch.bfloat16
    for actual, expected in zip(found, gradients(plain, exact), strict=True):
        assert (actual.float() - expected).norm() < 0.02 * expected.norm()


def test_a_query_of_length_zero_stays_zero() -> None:
    q, k, v = normalized_heads(torch.zeros(1, 2, 3, 2, 4, requires_grad=True), torch.ones(2))
    assert not any(part.any() for part in (q, k, v))
    q.sum().backward()


def test_raw_queries_and_keys_are_not_kept() -> None:
    qkv = randn(1, 4, 3, 2, 8, dtype=torch.float32).requires_grad_()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        normalized_heads(qkv, torch.ones(2, requires_grad=True))
    assert all(tensor.untyped_storage().data_ptr() != qkv.untyped_storage().data_ptr() for tensor in saved)
    assert len({t.untyped_storage().data_ptr() for t in saved if t.ndim == 4 and t.shape[-1] == 8}) == 1


@pytest.mark.parametrize("normed", [True, False])
def test_a_cache_gets_the_keys_and_values_and_nothing_beside_them(normed: bool) -> None:
    qkv, temperature = randn(2, 3, 3, 4, 8, dtype=torch.float32), randn(4, dtype=torch.float32) + 3
    keys, values = (torch.full((2, 4, 6, 8), 7.0).transpose(1, 2) for _ in range(2))
    wanted = plain_heads(qkv, temperature) if normed else torch.stack(qkv.unbind(2))
    with torch.no_grad():
        q = cached_heads(qkv.clone(), temperature if normed else None, keys[:, 2:5], values[:, 2:5])
    torch.testing.assert_close(torch.stack((q, keys[:, 2:5], values[:, 2:5])), wanted)
    assert all((cache[:, [0, 1, 5]] == 7).all() for cache in (keys, values))
