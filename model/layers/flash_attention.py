"""flash-attn in whichever of its packages runs here: 2, 3 and 4 are different ones, with one function of one name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.layers.visibility import GroupCausal


@dataclass(frozen=True)
class _Package:
    name: str
    module: str
    generations: tuple[int, ...]
    """Major compute capabilities that it has kernels for."""


PACKAGES = (
    _Package("flash-attn 4", "flash_attn.cute", (9, 10)),
    _Package("flash-attn 3", "flash_attn_interface", (9,)),
    _Package("flash-attn 2", "flash_attn", (8, 9, 10, 12)),
)
"""Best first."""


def flash_refusal(device: torch.device | str, dtype: torch.dtype, head_dim: int = 64) -> str | None:
    """Why flash-attn does not run for tensors of this kind, in words for the log; None if it does."""
    device = torch.device(device)
    if device.type != "cuda":
        return f"flash-attn needs a CUDA device, not {device.type}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"flash-attn needs bf16 or fp16, not {str(dtype).removeprefix('torch.')}"
    if head_dim > 256 or head_dim % 8:
        return f"flash-attn needs a head size up to 256 in steps of 8, not {head_dim}"
    generation = torch.cuda.get_device_capability(device)[0]
    if generation < 8:
        return "flash-attn needs an Ampere GPU or a newer one"
    function, reasons = load_flash(generation)
    return None if function else "; ".join(reasons)


@lru_cache(maxsize=8)
def load_flash(generation: int | None) -> tuple[Callable[..., Any] | None, tuple[str, ...]]:
    """The best package's function for this major compute capability (None: any), or why each package is none."""
    reasons = []
    for package in PACKAGES:
        if generation is not None and generation not in package.generations:
            reasons.append(f"{package.name} has no kernels for compute capability {generation}.x")
            continue
        try:  # a package that is there may be built for another torch or CUDA: only importing it shows that
            return importlib.import_module(package.module).flash_attn_varlen_func, ()
        except ImportError as error:
            reasons.append(f"{package.name} cannot be imported ({error})")
        except (AttributeError, OSError) as error:
            reasons.append(f"{package.name} is broken ({type(error).__name__}: {error})")
    return None, tuple(reasons)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _function(device: torch.device) -> Callable[..., Any]:
    generation = torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else None
    function, reasons = load_flash(generation)
    if function is None:
        raise ValueError(f"no flash-attn: {'; '.join(reasons)}")
    return function


def flash_attention(q_BLHD: Tensor, k_BMHD: Tensor, v_BMHD: Tensor, groups: GroupCausal | None, scale: float) -> Tensor:
    """See `attend`. One call, whose sequences are the groups of each sample, and their keys the prefix up to its end.

    Exact without a mask. A prefix is repeated for each group that sees it, since packed keys may not overlap.

    Raises:
        ValueError: if no flash-attn can be imported.
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
    out = _call(
        _function(q_BLHD.device),
        q=q_BLHD.reshape(-1, heads, head_dim).contiguous(),
        k=k.contiguous(),
        v=v.contiguous(),
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        max_seqlen_q=max(blocks),
        max_seqlen_k=max(prefixes),
        softmax_scale=scale,
        causal=causal,
    )
    return out.view(batch, length, heads, head_dim)


def _call(function: Callable[..., Any], **arguments: Any) -> Tensor:
    """By name, as the packages differ in the order; 4 does without the longest lengths, and returns logsumexp, too."""
    known = _parameters(function)
    out = function(**{name: value for name, value in arguments.items() if name in known})
    first: Tensor = out[0] if isinstance(out, tuple) else out
    return first


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _packing(
    blocks: tuple[int, ...], prefixes: tuple[int, ...], batch: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    return _cached_packing(blocks, prefixes, batch, device)


@lru_cache(maxsize=64)
def _cached_packing(
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
