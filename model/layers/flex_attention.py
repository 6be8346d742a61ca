"""FlexAttention over groups: one kernel that skips the blocks of keys that nobody in a block of queries sees."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from model.layers.visibility import GroupCausal, group_of_position

_BLOCK = 128
_PARTS = (
    "kv_num_blocks",
    "kv_indices",
    "full_kv_num_blocks",
    "full_kv_indices",
    "q_num_blocks",
    "q_indices",
    "full_q_num_blocks",
    "full_q_indices",
)
"""The tensors of a block mask, by the names of its constructor."""


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


def _sees(group_L: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001 - the signature
        return group_L[query] >= group_L[key]

    return sees


def _block_mask(sizes: tuple[int, ...], device: torch.device) -> BlockMask:
    """The block mask; under the compiler put together from its tensors, as no whole one is a constant to it."""
    if not torch.compiler.is_compiling():
        return _made_block_mask(sizes, device)
    tensors = dict(zip(_PARTS, _constant_parts(sizes, device), strict=True))
    sees = _sees(group_of_position(sizes, device))
    return BlockMask(seq_lengths=(sum(sizes), sum(sizes)), BLOCK_SIZE=(_BLOCK, _BLOCK), mask_mod=sees, **tensors)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _constant_parts(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, ...]:
    mask = _made_block_mask(sizes, device)
    return tuple(getattr(mask, name) for name in _PARTS)


@lru_cache(maxsize=32)
def _made_block_mask(sizes: tuple[int, ...], device: torch.device) -> BlockMask:
    with torch.inference_mode(False):
        sees = _sees(group_of_position(sizes, device))
        return create_block_mask(sees, None, None, sum(sizes), sum(sizes), device=str(device), BLOCK_SIZE=_BLOCK)
