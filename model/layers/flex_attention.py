"""FlexAttention over groups: one kernel that skips the blocks of keys that nobody in a block of queries sees."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from model.layers.visibility import GroupCausal, group_of_position


def flex_refusal(device: torch.device, head_dim: int = 64) -> str | None:
    """Why FlexAttention is not taken for tensors of this kind, in words for the log; None if it is."""
    if device.type != "cuda":
        return f"FlexAttention needs a CUDA device, not {device.type}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "FlexAttention needs an Ampere GPU or a newer one"
    if head_dim < 16 or head_dim & (head_dim - 1):
        return f"FlexAttention needs a head size that is a power of two from 16 on, not {head_dim}"
    from torch.utils._triton import has_triton

    return None if has_triton() else "FlexAttention needs Triton"


def flex_grouped_attention(
    q_BLHD: Tensor, k_BMHD: Tensor, v_BMHD: Tensor, groups: GroupCausal | None, scale: float
) -> Tensor:
    """See `attend`. Without groups nothing is hidden."""
    q, k, v = q_BLHD.transpose(1, 2), k_BMHD.transpose(1, 2), v_BMHD.transpose(1, 2)
    mask = None if groups is None else _block_mask(groups.sizes, q.device)
    alone = q.device.type == "cuda" and not torch.compiler.is_compiling()
    if alone:
        out_BHLD: Tensor = _compiled()(q, k, v, block_mask=mask, scale=scale)
    else:
        out_BHLD = flex_attention(q, k, v, block_mask=mask, scale=scale)
    return out_BHLD.transpose(1, 2)


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Any]:
    """The kernel for blocks that are not compiled themselves: without compilation FlexAttention is a plain formula."""
    return torch.compile(flex_attention, dynamic=False)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _block_mask(sizes: tuple[int, ...], device: torch.device) -> BlockMask:
    return _cached_block_mask(sizes, device)


@lru_cache(maxsize=32)
def _cached_block_mask(sizes: tuple[int, ...], device: torch.device) -> BlockMask:
    with torch.inference_mode(False):
        group_L = group_of_position(sizes, device)

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001 - the signature
            return group_L[query] >= group_L[key]

        return create_block_mask(sees, None, None, sum(sizes), sum(sizes), device=str(device))
