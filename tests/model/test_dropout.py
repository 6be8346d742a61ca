"""Dropout in few passes: the same numbers as each for itself, and gradients that autograd finds for the definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.layers import dropout, dropped_attention, modulation
from model.layers.dropout import dropped_gelu, dropped_sum, element_dropout, keep_factors
from model.layers.modulation import modulated_affine_norm

SEED_B = torch.tensor([5, -9, 2**40])
SHAPE, RATE = (3, 5, 7), 0.3
KEPT = keep_factors(torch.Size(SHAPE[1:]), SEED_B, RATE).double()


def numbers(count: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    made = torch.Generator().manual_seed(1)
    return [torch.randn(SHAPE, generator=made, dtype=dtype).requires_grad_() for _ in range(count)]


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes the written-out backward there takes it here."""
    for module in (dropout, modulation):
        monkeypatch.setattr(module, "is_fused", lambda _: True)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=3), st.integers(1, 70))
def test_a_number_for_itself_is_that_of_its_place_in_the_words(seeds: list[int], count: int) -> None:
    seed_B = torch.tensor(seeds)
    expected = dropout._bits_of_words(seed_B, count)
    assert torch.equal(dropout._bits_of_each(seed_B, count), expected.long())


@pytest.mark.parametrize(("rate", "dropped"), [(0.0, 0), (0.1, 6554), (0.25, 16384)])
def test_of_all_numbers_of_16_bits_the_rates_share_is_dropped_and_the_mean_is_kept(
    rate: float, dropped: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    every_BN = torch.arange(-(2**15), 2**15).to(torch.int16)[None]
    monkeypatch.setattr(dropout, "_bits_of_words", lambda *_: every_BN)
    factors = keep_factors(torch.Size([2**16]), SEED_B[:1], rate)
    assert int((factors == 0).sum()) == dropped
    assert factors.double().mean().item() == pytest.approx(1, abs=1e-7)


def plain(x: Tensor) -> Tensor:
    return x * KEPT.to(x.dtype)


CASES: dict[str, tuple[int, Callable[..., Tensor], Callable[..., Tensor]]] = {
    "dropout": (1, lambda x: element_dropout(x, SEED_B, RATE), plain),
    "sum": (2, lambda x, y: dropped_sum(x, y, SEED_B, RATE), lambda x, y: x + plain(y)),
    "gate": (3, lambda x, y, g: dropped_sum(x, y, SEED_B, RATE, g), lambda x, y, g: x + g * plain(y)),
    "gelu": (1, lambda x: dropped_gelu(x, SEED_B, RATE), lambda x: plain(F.gelu(x))),
}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_definition(
    case: str, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, ours, defined = CASES[case]
    if fused:
        as_on_a_gpu(monkeypatch)
    mine, theirs = numbers(count), numbers(count)
    weight = torch.linspace(-1, 2, KEPT.numel(), dtype=torch.float64).view(SHAPE)
    out, expected = ours(*mine), defined(*theirs)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(out, expected)
    for own, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(own.grad, other.grad)


def test_each_gradient_has_the_dtype_of_what_it_is_of(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_gpu(monkeypatch)
    stream, branch, gate = numbers(3, torch.float32)
    half, gate_half = (each.detach().bfloat16().requires_grad_() for each in (branch, gate))
    out = dropped_sum(stream, half, SEED_B, RATE, gate_half)
    assert out.dtype == torch.float32
    weight = torch.linspace(-1, 2, KEPT.numel()).view(SHAPE)
    (out * weight).sum().backward()
    assert stream.grad is not None
    assert torch.equal(stream.grad, weight), "the stream's gradient is rounded"
    assert [None if x.grad is None else x.grad.dtype for x in (stream, half, gate_half)] == [
        torch.float32,
        torch.bfloat16,
        torch.bfloat16,
    ]


@pytest.mark.parametrize("call", [element_dropout, dropped_gelu, lambda x, *how: dropped_sum(x, x, *how)])
def test_without_seeds_nothing_is_dropped_in_silence(call: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match="needs seed_B"):
        call(torch.ones(SHAPE), None, RATE)


@pytest.mark.parametrize("with_weights", [True, False])
def test_a_modulated_norm_has_the_gradients_of_autograd(with_weights: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def passes() -> list[Tensor]:
        x, scale, shift = numbers(3, torch.float32)
        weight, bias = (each[0, 0].detach().clone().requires_grad_() for each in (scale, shift))
        parts = (weight, bias) if with_weights else (None, None)
        out = modulated_affine_norm(x, *parts, scale, shift, torch.float32)
        given = (x, scale, shift, *((weight, bias) if with_weights else ()))
        return [out, *torch.autograd.grad(out, given, torch.linspace(-1, 2, x.numel()).view(SHAPE))]

    expected = passes()
    as_on_a_gpu(monkeypatch)
    for actual, wanted in zip(passes(), expected, strict=True):
        torch.testing.assert_close(actual, wanted)


def test_a_modulated_norm_is_torchs_scaled_and_shifted() -> None:
    x, scale, shift = (each.detach() for each in numbers(3, torch.float32))
    weight, bias = scale[0, 0], shift[0, 0]
    mean, deviation = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0).add(1e-6).sqrt()
    expected = ((x - mean) / deviation * weight + bias) * scale + shift
    torch.testing.assert_close(modulated_affine_norm(x, weight, bias, scale, shift, torch.float32), expected)


@pytest.mark.parametrize("fused", [False, True])
def test_a_modulation_of_half_precision_is_added_in_float32_and_rounded_once(
    fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, scale, shift = (each.detach() for each in numbers(3, torch.float32))
    scale, shift = scale.bfloat16(), shift.bfloat16()
    if fused:
        as_on_a_gpu(monkeypatch)
    normed = F.layer_norm(x, (7,), eps=1e-6)
    expected = (normed * scale.float() + shift.float()).bfloat16()
    assert torch.equal(modulated_affine_norm(x, None, None, scale, shift, torch.bfloat16), expected)


LOGITS = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(2))
FUSED: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "dropout": (dropout._thinned_at_once, (torch.ones(SHAPE), SEED_B, RATE)),
    "sum": (dropout._sum_at_once, (torch.ones(SHAPE), torch.ones(SHAPE), SEED_B, RATE, None)),
    "gated sum": (dropout._sum_at_once, (torch.ones(SHAPE), torch.ones(SHAPE), SEED_B, RATE, torch.ones(SHAPE))),
    "gate": (dropout._through_gate, (torch.ones(SHAPE), torch.ones(SHAPE), SEED_B, RATE, torch.ones(SHAPE))),
    "branch": (dropout._through_dropout, (torch.ones(SHAPE), SEED_B, RATE, torch.bfloat16)),
    "gelu": (dropout._gelu_at_once, (torch.ones(SHAPE), SEED_B, RATE)),
    "through gelu": (dropout._through_gelu, (torch.ones(SHAPE), torch.ones(SHAPE), SEED_B, RATE)),
    "attention": (dropped_attention._dropped, (LOGITS, torch.ones(5, 5).tril().bool(), 4, SEED_B, RATE)),
    "through attention": (dropped_attention._through_dropped, (LOGITS, LOGITS, None, 4, SEED_B, RATE)),
    "norm": (
        modulation._norm_at_once,
        (torch.randn(SHAPE), torch.ones(7), torch.ones(7), torch.ones(SHAPE), torch.ones(SHAPE), torch.bfloat16, 1e-6),
    ),
}


@pytest.mark.parametrize("name", FUSED)
def test_what_is_to_be_one_kernel_is_one_graph_and_computes_the_same(name: str) -> None:
    function, arguments = FUSED[name]
    torch._dynamo.reset()
    found = torch.compile(function, backend="aot_eager", fullgraph=True)(*arguments)
    expected = function(*arguments)
    found, expected = (each if isinstance(each, tuple) else (each,) for each in (found, expected))
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted)
    torch._dynamo.reset()
