"""A linear layer is `F.linear`, with its weight packed for the CPU's kernels or not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.layers import linear as module
from model.layers.linear import Linear, PackedWeights, linear

ROWS = (2, 5)


@pytest.fixture(autouse=True)
def all_sizes_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_WEIGHTS", 1)


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The dtype of each weight that was packed, in order; torch's own product is out of reach."""
    made: list[torch.dtype] = []
    own = torch.ops.mkldnn._reorder_linear_weight.default

    class Counting:
        @staticmethod
        def default(weight: Tensor, rows: int | None) -> Tensor:
            made.append(weight.dtype)
            packed: Tensor = own(weight, rows)
            return packed

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", Counting)
    monkeypatch.setattr(module.F, "linear", None)
    return made


def layer(bias: bool = True) -> tuple[Linear, Tensor]:
    torch.manual_seed(0)
    return Linear(24, 40, bias=bias), torch.randn(*ROWS, 24)


def expected(made: Linear, x: Tensor, dtype: torch.dtype) -> Tensor:
    """In float64, of the numbers that the dtype leaves."""
    weight, given = (each.detach().to(dtype).double() for each in (made.weight, x))
    product = torch.einsum("abc,kc->abk", given, weight)
    return product if made.bias is None else product + made.bias.detach().to(dtype).double()


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("case", ["float32", *(["autocast", "weights in bf16"] if module._has_bf16() else [])])
def test_sums_are_in_float32_and_rounded_once(case: str, bias: bool, packings: list[torch.dtype]) -> None:
    made, x = layer(bias)
    dtype = torch.float32 if case == "float32" else torch.bfloat16
    wanted = expected(made, x, dtype)
    if case == "weights in bf16":
        made, x = made.bfloat16(), x.bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"), PackedWeights().used():
        found = made(x)
    assert packings == [dtype]
    assert found.dtype == dtype
    assert found.shape == (*ROWS, 40)
    rtol = 1e-6 if case == "float32" else 2**-8
    torch.testing.assert_close(found.double(), wanted, rtol=rtol, atol=1e-6 if case == "float32" else 1e-4)


def test_a_weight_is_packed_once_for_each_dtype(packings: list[torch.dtype]) -> None:
    (made, x), packed = layer(), PackedWeights()
    kinds = [torch.float32, *([torch.bfloat16] if module._has_bf16() else [])]
    for dtype in kinds * 3:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32), packed.used():
            made(x)
    assert packings == kinds


def test_a_weight_that_changed_is_packed_again(packings: list[torch.dtype]) -> None:
    (made, x), packed = layer(), PackedWeights()
    with torch.no_grad(), packed.used():
        made(x)
        made.weight.mul_(2)
        found = made(x)
    torch.testing.assert_close(found.double(), expected(made, x, torch.float32), rtol=1e-6, atol=1e-6)
    assert len(packings) == 2


def test_views_of_one_table_are_weights_of_their_own_and_packed_once(packings: list[torch.dtype]) -> None:
    (made, x), packed = layer(), PackedWeights()
    whole = expected(made, x, torch.float32)
    for _ in range(2):
        with torch.no_grad(), packed.used():
            parts = zip(made.weight.split((16, 24)), made.bias.split((16, 24)), strict=True)
            found = torch.cat([linear(x, *part) for part in parts], dim=-1)
            together = made(x)  # begins where the first of its parts does
        for each in (found, together):
            torch.testing.assert_close(each.double(), whole, rtol=1e-6, atol=1e-6)
    assert len(packings) == 3


def test_a_weight_and_its_transpose_in_the_same_memory_are_two(packings: list[torch.dtype]) -> None:
    torch.manual_seed(0)
    weight, x, packed = torch.randn(24, 24), torch.randn(5, 24), PackedWeights()
    with torch.no_grad(), packed.used():
        found = linear(x, weight), linear(x, weight.t())
    torch.testing.assert_close(found[0].double(), x.double() @ weight.double().t(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1].double(), x.double() @ weight.double(), rtol=1e-5, atol=1e-5)
    assert len(packings) == 2


def test_rows_that_do_not_lie_side_by_side_are_read_as_they_are(packings: list[torch.dtype]) -> None:
    made, x = layer()
    with torch.no_grad(), PackedWeights().used():
        found = made(x.transpose(0, 1))
    assert packings
    torch.testing.assert_close(found.transpose(0, 1).double(), expected(made, x, torch.float32), rtol=1e-6, atol=1e-6)


def test_without_packed_weights_it_is_torchs_own() -> None:
    made, x = layer()
    with torch.no_grad():
        assert torch.equal(made(x), F.linear(x, made.weight, made.bias))


@pytest.mark.parametrize("case", ["gradients", "small", "no rows", "float64", "no oneDNN", "inference"])
def test_what_cannot_be_packed_is_torchs_own(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, x = layer()
    monkeypatch.setattr(PackedWeights, "product", None)
    if case == "small":
        monkeypatch.setattr(module, "LEAST_WEIGHTS", made.weight.numel() + 1)
    elif case == "no rows":
        x = x[:0]
    elif case == "float64":
        made, x = made.double(), x.double()
    elif case == "no oneDNN":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    elif case == "inference":  # tensors without a version: a change would go unseen
        with torch.inference_mode():
            made.weight = nn.Parameter(made.weight.clone(), requires_grad=False)
    with torch.set_grad_enabled(case == "gradients"), PackedWeights().used():
        assert torch.equal(made(x), F.linear(x, made.weight, made.bias))


def test_they_are_used_within_alone() -> None:
    (made, x), outer = layer(), PackedWeights()
    with torch.no_grad(), outer.used():
        with PackedWeights().used():
            made(x)
        assert not outer._made
        made(x)
    assert len(outer._made) == 1
    with torch.no_grad():
        Linear(24, 40)(x)
    assert len(outer._made) == 1


def test_a_wrong_dtype_is_told_by_torch() -> None:
    made, x = layer()
    with torch.no_grad(), PackedWeights().used(), pytest.raises(RuntimeError, match="dtype"):
        made(x.double())
