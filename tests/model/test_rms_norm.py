"""RMSNorm and SwiGLU, whose backwards are written out, against plain torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.layers.rms_norm import RMSNorm, gated


def by_definition(x_NC: Tensor, weight_C: Tensor) -> Tensor:
    return x_NC / (x_NC.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight_C


@pytest.mark.parametrize("gradients", [True, False])
def test_a_norm_divides_by_the_root_of_the_mean_square(gradients: bool) -> None:
    torch.manual_seed(0)
    norm, x = RMSNorm(8), (3 * torch.randn(2, 5, 8)).requires_grad_()
    torch.nn.init.normal_(norm.weight)
    with torch.set_grad_enabled(gradients):
        found = norm(x, torch.float32)
    wanted = by_definition(x, norm.weight)
    torch.testing.assert_close(found, wanted)
    if gradients:
        pairs = zip(
            torch.autograd.grad(found.cos().sum(), (x, norm.weight)),
            torch.autograd.grad(wanted.cos().sum(), (x, norm.weight)),
            strict=True,
        )
        for actual, expected in pairs:
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("stream", [torch.float32, torch.bfloat16])
def test_a_norm_sums_in_float32_and_gives_what_the_products_want(stream: torch.dtype) -> None:
    norm = RMSNorm(512).to(stream)
    x = torch.full((1, 512), 3.0, dtype=stream).requires_grad_()
    found = norm(x, torch.bfloat16)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), torch.ones(1, 512), atol=1e-2, rtol=0)
    found.sum().backward()
    assert x.grad is not None
    assert norm.weight.grad is not None
    assert (x.grad.dtype, norm.weight.grad.dtype) == (stream, stream)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gate_is_silu_of_one_half_times_the_other(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(3, 8).to(dtype)
    exact = hidden.float().requires_grad_()
    wanted = exact[:, :4] * exact[:, :4].sigmoid() * exact[:, 4:]
    leaf = hidden.requires_grad_()
    found = gated(leaf)
    tolerance = {"atol": 1e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.02, "rtol": 0.02}
    torch.testing.assert_close(found.float(), wanted, **tolerance)
    (actual,), (expected,) = (torch.autograd.grad(out.sum(), x) for out, x in ((found, leaf), (wanted, exact)))
    torch.testing.assert_close(actual.float(), expected, **tolerance)
    with torch.no_grad():
        torch.testing.assert_close(gated(leaf), found)
