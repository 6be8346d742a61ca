"""Attention for every generator: one function over `[B, L, H, D]`, three backends, no dense mask on a GPU.

Positions come in groups, and a group sees itself and all groups before it. That one idea serves all generators:
next-scale prediction has a group per scale, next-token prediction has groups of one, masked generation has one group.

Shape suffixes: B batch, L query positions, M key positions, H heads, D channels of a head.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class GroupCausal:
    """Who sees whom: the positions of a group see all positions of the groups up to their own.

    Raises:
        ValueError: if there is no group, or an empty one.
    """

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"group sizes {list(self.sizes)}: give at least one, each 1 or larger")

    @classmethod
    def next_token(cls, positions: int) -> GroupCausal:
        """Groups of one: ordinary causal attention."""
        return cls((1,) * positions)

    @classmethod
    def everything(cls, positions: int) -> GroupCausal:
        """One group: every position sees every other."""
        return cls((positions,))

    @cached_property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        """First position of each group, and the first position after it."""
        ends = [sum(self.sizes[: i + 1]) for i in range(len(self.sizes))]
        return tuple((end - size, end) for size, end in zip(self.sizes, ends, strict=True))

    @property
    def positions(self) -> int:
        """Length of the sequence."""
        return self.bounds[-1][1]

    @property
    def is_full(self) -> bool:
        """Whether nothing is hidden."""
        return len(self.sizes) == 1

    @property
    def is_causal(self) -> bool:
        """Whether each position is a group of its own."""
        return max(self.sizes) == 1

    def mask(self, device: torch.device) -> Tensor:
        """Boolean `[L, L]`, true where a query (row) sees a key (column). Cached: do not write into it."""
        return _mask(self, device)


@lru_cache(maxsize=32)
def _mask(groups: GroupCausal, device: torch.device) -> Tensor:
    # A tensor born in inference mode could not take part in training later, and this one is cached.
    with torch.inference_mode(False):
        ids = torch.arange(len(groups.sizes)).repeat_interleave(torch.tensor(groups.sizes))
        return (ids[:, None] >= ids[None, :]).to(device)


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
    name = backend or attention_backend(q_BLHD.device, q_BLHD.dtype, q_BLHD.shape[-1])
    if name not in BACKENDS:
        raise ValueError(f"no attention backend {name!r}; there are {', '.join(BACKENDS)}")
    return BACKENDS[name](q_BLHD, k_BMHD, v_BMHD, groups, scale if scale is not None else q_BLHD.shape[-1] ** -0.5)


@lru_cache(maxsize=64)
def attention_backend(device: torch.device | str, dtype: torch.dtype, head_dim: int = 64) -> str:
    """The backend that `attend` takes for tensors of this kind: flash_attn if it can run, else sdpa."""
    return "sdpa" if flash_refusal(device, dtype, head_dim) else "flash_attn"


def flash_refusal(device: torch.device | str, dtype: torch.dtype, head_dim: int = 64) -> str | None:
    """Why flash-attn does not run for tensors of this kind, in words for the log; None if it does."""
    device = torch.device(device)
    if device.type != "cuda":
        return f"flash-attn needs a CUDA device, not {device.type}"
    if importlib.util.find_spec("flash_attn") is None:
        return "flash-attn is not installed (extra: gpu)"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"flash-attn needs bf16 or fp16, not {str(dtype).removeprefix('torch.')}"
    if head_dim > 256 or head_dim % 8:
        return f"flash-attn needs a head size up to 256 in steps of 8, not {head_dim}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "flash-attn needs an Ampere GPU or a newer one"
    return None


def _plain(q_BLHD: Tensor, k_BMHD: Tensor, v_BMHD: Tensor, groups: GroupCausal | None, scale: float) -> Tensor:
    """The definition, in float32: what the other backends are tested against."""
    logits_BHLM = torch.einsum("blhd,bmhd->bhlm", q_BLHD.float(), k_BMHD.float()) * scale
    if groups is not None:
        logits_BHLM = logits_BHLM.masked_fill(~groups.mask(q_BLHD.device), float("-inf"))
    return torch.einsum("bhlm,bmhd->blhd", logits_BHLM.softmax(dim=-1), v_BMHD.float()).to(q_BLHD.dtype)


def _sdpa(q_BLHD: Tensor, k_BMHD: Tensor, v_BMHD: Tensor, groups: GroupCausal | None, scale: float) -> Tensor:
    """PyTorch's scaled_dot_product_attention, in the way that is exact and fast on this device.

    On the CPU a mask costs less than a call per group (measured fp32, forward and backward, batch 32, 4 heads of 32:
    3.4 against 6.6 ms at 30 positions, 72 against 93 ms at 286), and the backward pass of torch's half precision
    kernel is slower than the float32 one (14 against 3.4 ms at 30 positions, 101 against 72 ms at 286). On a GPU a
    mask would forbid torch's flash kernel, so each group calls it over its prefix of the keys.
    """
    dtype = q_BLHD.dtype
    on_cpu = q_BLHD.device.type == "cpu"
    if on_cpu and dtype != torch.float32 and torch.is_grad_enabled() and q_BLHD.requires_grad:
        with torch.autocast("cpu", enabled=False):
            return _sdpa(q_BLHD.float(), k_BMHD.float(), v_BMHD.float(), groups, scale).to(dtype)
    q, k, v = q_BLHD.transpose(1, 2), k_BMHD.transpose(1, 2), v_BMHD.transpose(1, 2)
    if groups is None or groups.is_causal:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=groups is not None, scale=scale)
    elif on_cpu:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=groups.mask(q.device), scale=scale)
    else:
        out = _sdpa_by_group(q, k, v, groups, scale)
    return out.transpose(1, 2).to(dtype)


def _sdpa_by_group(q_BHLD: Tensor, k_BHLD: Tensor, v_BHLD: Tensor, groups: GroupCausal, scale: float) -> Tensor:
    """One call without a mask for each group, over the keys up to its end."""
    outs = [
        F.scaled_dot_product_attention(q_BHLD[:, :, start:end], k_BHLD[:, :, :end], v_BHLD[:, :, :end], scale=scale)
        for start, end in groups.bounds
    ]
    return torch.cat(outs, dim=2)


def _flash_attn(q_BLHD: Tensor, k_BMHD: Tensor, v_BMHD: Tensor, groups: GroupCausal | None, scale: float) -> Tensor:
    """flash_attn_varlen_func, whose sequences are the groups of each sample, and their keys the prefix up to its end.

    Exact without a mask. A prefix is repeated for each group that sees it, since packed keys may not overlap.
    """
    batch, length, heads, head_dim = q_BLHD.shape
    keys = k_BMHD.shape[1]
    causal = groups is not None and groups.is_causal
    blocks = (length,) if groups is None or causal else groups.sizes
    prefixes = (keys,) if groups is None or causal else tuple(end for _, end in groups.bounds)
    index, cu_seqlens_q, cu_seqlens_k = _packing(blocks, prefixes, batch, q_BLHD.device)
    k, v = k_BMHD.reshape(-1, heads, head_dim), v_BMHD.reshape(-1, heads, head_dim)
    if len(blocks) > 1:
        k, v = k[index], v[index]
    out: Tensor = importlib.import_module("flash_attn").flash_attn_varlen_func(
        q_BLHD.reshape(-1, heads, head_dim).contiguous(),
        k.contiguous(),
        v.contiguous(),
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        max_seqlen_q=max(blocks),
        max_seqlen_k=max(prefixes),
        softmax_scale=scale,
        causal=causal,
    )
    return out.view(batch, length, heads, head_dim)


@lru_cache(maxsize=64)
def _packing(
    blocks: tuple[int, ...], prefixes: tuple[int, ...], batch: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Where each packed key stands in `[B * M]`, and the cumulative lengths of queries and keys (int32)."""
    with torch.inference_mode(False):
        per_sample = torch.cat([torch.arange(prefix) for prefix in prefixes])
        index = (torch.arange(batch)[:, None] * prefixes[-1] + per_sample).flatten()
        cumulative = [
            F.pad(torch.tensor(sizes * batch).cumsum(0), (1, 0)).to(device, torch.int32) for sizes in (blocks, prefixes)
        ]
        return index.to(device), cumulative[0], cumulative[1]


Backend = Callable[[Tensor, Tensor, Tensor, GroupCausal | None, float], Tensor]
BACKENDS: dict[str, Backend] = {"flash_attn": _flash_attn, "sdpa": _sdpa, "plain": _plain}
"""The backends, best first. `plain` is the reference and is never chosen by itself."""
