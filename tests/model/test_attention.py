"""Attention: three backends that compute one thing, over groups that see themselves and what came before."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.layers.attention import BACKENDS, attend, attention_backend, attention_record
from model.layers.flash_attention import load_flash
from model.layers.visibility import GroupCausal

GROUPS = [GroupCausal((1, 4, 9)), GroupCausal.next_token(7), GroupCausal.everything(6), GroupCausal((2, 2, 1, 3))]


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> Tensor:
    """Stands in for the CUDA kernel: checks what its documentation asks for, then computes each sequence plainly."""
    assert q.dtype == k.dtype == v.dtype
    assert q.dtype in (torch.float16, torch.bfloat16)
    assert q.ndim == k.ndim == v.ndim == 3
    assert k.shape == v.shape
    assert q.shape[1:] == k.shape[1:]
    assert all(t.stride(-1) == 1 for t in (q, k, v))
    for cumulative, longest, tensor in ((cu_seqlens_q, max_seqlen_q, q), (cu_seqlens_k, max_seqlen_k, k)):
        assert cumulative.dtype == torch.int32
        assert cumulative.device == tensor.device
        assert cumulative[0] == 0
        assert cumulative[-1] == len(tensor)
        assert type(longest) is int
        assert int(cumulative.diff().max()) == longest
    assert len(cu_seqlens_q) == len(cu_seqlens_k)
    assert dropout_p == 0
    assert softmax_scale is not None
    outs = []
    for i in range(len(cu_seqlens_q) - 1):
        queries = q[cu_seqlens_q[i] : cu_seqlens_q[i + 1]].float()
        keys, values = (t[cu_seqlens_k[i] : cu_seqlens_k[i + 1]].float() for t in (k, v))
        logits = torch.einsum("lhd,mhd->hlm", queries, keys) * softmax_scale
        if causal:  # aligned to the last key, as documented since flash-attn 2.1
            visible = torch.ones(len(queries), len(keys)).tril(len(keys) - len(queries)).bool()
            logits = logits.masked_fill(~visible, float("-inf"))
        outs.append(torch.einsum("hlm,mhd->lhd", logits.softmax(-1), values))
    return torch.cat(outs).to(q.dtype)


@pytest.fixture
def flash_attn(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    load_flash.cache_clear()
    yield
    load_flash.cache_clear()


def tensors(length: int, keys: int | None = None, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    lengths = (length, keys or length, keys or length)
    return [torch.randn(3, n, 2, 8, generator=generator).to(dtype).requires_grad_() for n in lengths]


def loop(q: Tensor, k: Tensor, v: Tensor, groups: GroupCausal, scale: float) -> Tensor:
    """The definition, one query at a time, without a mask."""
    out = torch.zeros_like(q)
    for start, end in groups.bounds:
        for i in range(start, end):
            weights = torch.einsum("bhd,bmhd->bhm", q[:, i], k[:, :end]).mul(scale).softmax(-1)
            out[:, i] = torch.einsum("bhm,bmhd->bhd", weights, v[:, :end])
    return out


@pytest.mark.parametrize("groups", GROUPS, ids=lambda groups: str(groups.sizes))
@pytest.mark.parametrize("backend", ["sdpa", "plain"])
def test_a_query_sees_its_own_group_and_the_earlier_ones(groups: GroupCausal, backend: str) -> None:
    q, k, v = tensors(groups.positions)
    out = attend(q, k, v, groups, scale=0.7, backend=backend)
    torch.testing.assert_close(out, loop(q, k, v, groups, 0.7), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("groups", GROUPS, ids=lambda groups: str(groups.sizes))
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_computes_the_definition(groups: GroupCausal) -> None:
    """Forward only: torch's CPU kernel has no backward pass, and needs a head of 16 at least."""
    q, k, v = (tensor.detach().repeat(1, 1, 1, 2) for tensor in tensors(groups.positions))
    out = attend(q, k, v, groups, scale=0.7, backend="flex")
    torch.testing.assert_close(out, loop(q, k, v, groups, 0.7), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("groups", GROUPS, ids=lambda groups: str(groups.sizes))
def test_gradients_of_sdpa_are_those_of_the_definition(groups: GroupCausal) -> None:
    q, k, v = tensors(groups.positions)
    weight = torch.randn(q.shape, generator=torch.Generator().manual_seed(1))
    plain, sdpa = (
        torch.autograd.grad((attend(q, k, v, groups, backend=name) * weight).sum(), (q, k, v))
        for name in ("plain", "sdpa")
    )
    for a, b in zip(plain, sdpa, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("groups", GROUPS, ids=lambda groups: str(groups.sizes))
def test_flash_attn_is_called_within_its_contract_and_exactly(groups: GroupCausal, flash_attn: None) -> None:
    q, k, v = tensors(groups.positions, dtype=torch.bfloat16)
    out = attend(q, k, v, groups, scale=0.5, backend="flash_attn")
    expected = attend(q.float(), k.float(), v.float(), groups, scale=0.5, backend="plain")
    torch.testing.assert_close(out.float(), expected, atol=2e-2, rtol=2e-2)


def test_flash_attn_passes_gradients_to_keys_that_many_groups_see(flash_attn: None) -> None:
    groups = GroupCausal((1, 2, 4))
    q, k, v = tensors(groups.positions, dtype=torch.bfloat16)
    weight = torch.randn(q.shape, generator=torch.Generator().manual_seed(1))
    flash, plain = (
        torch.autograd.grad((attend(q, k, v, groups, backend=name).float() * weight).sum(), (q, k, v))
        for name in ("flash_attn", "plain")
    )
    for a, b in zip(flash, plain, strict=True):
        torch.testing.assert_close(a.float(), b.float(), atol=5e-2, rtol=5e-2)


@pytest.mark.parametrize("backend", sorted(BACKENDS.keys() - {"flex"}))
def test_without_groups_every_query_sees_all_cached_keys(backend: str, flash_attn: None) -> None:
    q, k, v = tensors(3, keys=9, dtype=torch.bfloat16)
    out = attend(q, k, v, backend=backend)
    weights = torch.einsum("blhd,bmhd->bhlm", q.float(), k.float()).mul(8**-0.5).softmax(-1)
    expected = torch.einsum("bhlm,bmhd->blhd", weights, v.float())
    torch.testing.assert_close(out.float(), expected, atol=2e-2, rtol=2e-2)


def test_half_precision_comes_back_as_it_came() -> None:
    q, k, v = tensors(14, dtype=torch.bfloat16)
    out = attend(q, k, v, GROUPS[0])
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert q.grad is not None
    assert q.grad.dtype == torch.bfloat16


def test_a_mask_first_made_in_inference_mode_serves_training() -> None:
    groups = GroupCausal((2, 5, 3))
    q, k, v = tensors(groups.positions)
    with torch.inference_mode():
        attend(q.detach(), k.detach(), v.detach(), groups)
    attend(q, k, v, groups, backend="plain").sum().backward()
    assert q.grad is not None


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_the_mask_shows_each_group_its_prefix(sizes: list[int]) -> None:
    groups = GroupCausal(tuple(sizes))
    mask = groups.mask(torch.device("cpu"))
    assert mask.shape == (sum(sizes), sum(sizes))
    for start, end in groups.bounds:
        assert mask[start:end, :end].all()
        assert not mask[start:end, end:].any()


def test_the_bounds_follow_one_another() -> None:
    assert GroupCausal((1, 4, 9)).bounds == ((0, 1), (1, 5), (5, 14))


@pytest.mark.parametrize(("needs_mask", "better"), [(False, "flash-attn"), (True, "FlexAttention")])
def test_a_cpu_takes_sdpa_and_says_why_nothing_better(needs_mask: bool, better: str) -> None:
    assert attention_backend("cpu", torch.bfloat16, 64, needs_mask) == "sdpa"
    record = attention_record(torch.device("cpu"), torch.bfloat16, 64, needs_mask)
    assert record == f"sdpa ({better} needs a CUDA device, not cpu)"


def test_lengths_that_do_not_fit_the_groups_are_refused() -> None:
    q, k, v = tensors(5)
    with pytest.raises(ValueError, match="5 queries and 5 keys do not fit groups of 14"):
        attend(q, k, v, GROUPS[0])


def test_an_unknown_backend_is_refused_with_those_there_are() -> None:
    q, k, v = tensors(14)
    with pytest.raises(ValueError, match="flex, flash_attn, sdpa, plain"):
        attend(q, k, v, GROUPS[0], backend="flash")


@pytest.mark.parametrize("sizes", [(), (1, 0)])
def test_empty_groups_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        GroupCausal(sizes)
