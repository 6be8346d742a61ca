"""Attention for every generator: one function over `[B, L, H, D]`, one call of a kernel, the backend chosen once.

Positions come in groups, and a group sees itself and all groups before it. That one idea serves all generators:
next-scale prediction has a group per scale, next-token prediction has groups of one, masked generation has one group.

    backend      runs on    groups are seen by
    flex         CUDA       a block mask (FlexAttention, compiled by itself where the block around it is not)
    flash_attn   CUDA       nothing where all is seen, or all before; else keys that are repeated for each group
    sdpa         any        nothing, `is_causal`, or a mask (torch's flash and memory-efficient kernels)
    plain        any        a mask: the definition in float32, which the others are tested against

Shape suffixes: B batch, L query positions, M key positions, H heads, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from model.layers.flash_attention import flash_attention, flash_refusal
from model.layers.flex_attention import flex_grouped_attention, flex_refusal
from model.layers.precision import without_autocast
from model.layers.visibility import GroupCausal


def attend(
    q_BLHD: Tensor,
    k_BMHD: Tensor,
    v_BMHD: Tensor,
    groups: GroupCausal | None = None,
    *,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Softmax attention of queries over the keys of their own and earlier groups.

    Args:
        q_BLHD: queries.
        k_BMHD: keys, as many as queries when `groups` is given.
        v_BMHD: values.
        groups: who sees whom; None lets every query see every key, as when the queries are the newest group and the
            keys are a KV cache.
        scale: factor on the logits; None is 1 / sqrt(D).
        backend: one of `BACKENDS`; None takes what `attention_backend` says.

    Returns:
        `[B, L, H, D]`, of the queries' dtype.

    Raises:
        ValueError: if the lengths do not fit the groups, or there is no such backend.
    """
    if groups is not None and not (q_BLHD.shape[1] == k_BMHD.shape[1] == groups.positions):
        lengths = f"{q_BLHD.shape[1]} queries and {k_BMHD.shape[1]} keys"
        raise ValueError(f"{lengths} do not fit groups of {groups.positions} positions in all")
    if groups is not None and groups.is_full:
        groups = None
    needs_mask = groups is not None and not groups.is_causal
    name = backend or attention_backend(q_BLHD.device, q_BLHD.dtype, q_BLHD.shape[-1], needs_mask)
    if name not in BACKENDS:
        raise ValueError(f"no attention backend {name!r}; there are {', '.join(BACKENDS)}")
    return BACKENDS[name](q_BLHD, k_BMHD, v_BMHD, groups, scale if scale is not None else q_BLHD.shape[-1] ** -0.5)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def attention_backend(
    device: torch.device | str, dtype: torch.dtype, head_dim: int = 64, needs_mask: bool = False
) -> str:
    """The backend that `attend` takes for tensors of this kind.

    Args:
        device: of the tensors.
        dtype: of the tensors.
        head_dim: channels of a head.
        needs_mask: whether there are several groups of several positions. flash-attn then repeats keys (2.5 times as
            many for ten scales) and adds up their gradients again, so FlexAttention goes first.
    """
    return _chosen(torch.device(device), dtype, head_dim, needs_mask)


@lru_cache(maxsize=64)
def _chosen(device: torch.device, dtype: torch.dtype, head_dim: int, needs_mask: bool) -> str:
    if needs_mask:
        return "sdpa" if flex_refusal(device, head_dim) else "flex"
    return "sdpa" if flash_refusal(device, dtype, head_dim) else "flash_attn"


def attention_record(device: torch.device, dtype: torch.dtype, head_dim: int = 64, needs_mask: bool = True) -> str:
    """The backend that `attention_backend` takes, and why not a better one, in words for the log."""
    refusal = flex_refusal(device, head_dim) if needs_mask else flash_refusal(device, dtype, head_dim)
    return f"sdpa ({refusal})" if refusal else attention_backend(device, dtype, head_dim, needs_mask)


def _plain(q_BLHD: Tensor, k_BMHD: Tensor, v_BMHD: Tensor, groups: GroupCausal | None, scale: float) -> Tensor:
    """The definition, in float32: what the other backends are tested against."""
    logits_BHLM = torch.einsum("blhd,bmhd->bhlm", q_BLHD.float(), k_BMHD.float()) * scale
    if groups is not None:
        logits_BHLM = logits_BHLM.masked_fill(~groups.mask(q_BLHD.device), float("-inf"))
    return torch.einsum("bhlm,bmhd->blhd", logits_BHLM.softmax(dim=-1), v_BMHD.float()).to(q_BLHD.dtype)


def _sdpa(q_BLHD: Tensor, k_BMHD: Tensor, v_BMHD: Tensor, groups: GroupCausal | None, scale: float) -> Tensor:
    """PyTorch's scaled_dot_product_attention, in one call.

    On the CPU torch's half precision kernel is slower than the float32 one in training, where heads are small (one
    thread of an AMX CPU, forward and backward, ms: 10.5 against 2.4 at 30 positions of 4 heads of 32 and batch 32; 23
    against 18 at 286 and batch 8), and faster with heads of 64 (54 against 80 at 286, 16 heads, batch 4).
    """
    dtype = q_BLHD.dtype
    on_cpu = q_BLHD.device.type == "cpu"
    small = q_BLHD.shape[-1] < 64
    if on_cpu and small and dtype != torch.float32 and torch.is_grad_enabled() and q_BLHD.requires_grad:
        with without_autocast(q_BLHD.device):
            return _sdpa(q_BLHD.float(), k_BMHD.float(), v_BMHD.float(), groups, scale).to(dtype)
    q, k, v = q_BLHD.transpose(1, 2), k_BMHD.transpose(1, 2), v_BMHD.transpose(1, 2)
    if groups is None or groups.is_causal:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=groups is not None, scale=scale)
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=groups.bias(q.device, dtype), scale=scale)
    return out.transpose(1, 2).to(dtype)


Backend = Callable[[Tensor, Tensor, Tensor, GroupCausal | None, float], Tensor]
BACKENDS: dict[str, Backend] = {
    "flex": flex_grouped_attention,
    "flash_attn": flash_attention,
    "sdpa": _sdpa,
    "plain": _plain,
}
"""The backends. `plain` is the reference and is never chosen by itself."""
