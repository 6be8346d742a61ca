"""A linear layer is `F.linear`, whichever way round it multiplies."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.layers import linear as module
from model.layers.linear import MOST_ROWS, Linear


def layer(bias: bool) -> tuple[Linear, Tensor]:
    torch.manual_seed(0)
    return Linear(24, 40, bias=bias), torch.randn(2, MOST_ROWS // 2, 24)


def expected(made: Linear, x: Tensor) -> Tensor:
    """In float64, of the numbers that bf16 leaves."""
    weight, given = (each.detach().bfloat16().double() for each in (made.weight, x))
    bias = None if made.bias is None else made.bias.detach().bfloat16().double()
    return F.linear(given, weight, bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "weights in bf16"])
def test_few_rows_in_bf16_are_summed_in_float32_and_rounded_once(
    bias: bool, autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, x = layer(bias)
    wanted = expected(made, x)
    if not autocast:
        made, x = made.bfloat16(), x.bfloat16()
    monkeypatch.setattr(module.F, "linear", None)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = made(x)
    assert found.dtype == torch.bfloat16
    assert found.is_contiguous()
    torch.testing.assert_close(found.double(), wanted, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("case", ["float32", "gradients", "many rows"])
def test_all_else_is_torchs_own(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, x = layer(True)
    monkeypatch.setattr(module.torch, "addmm", None)
    if case == "many rows":
        x = torch.cat((x.flatten(0, 1), x[0, :1]))  # one more
    with torch.set_grad_enabled(case == "gradients"), torch.autocast("cpu", torch.bfloat16, enabled=case != "float32"):
        assert torch.equal(made(x), F.linear(x, made.weight, made.bias))
