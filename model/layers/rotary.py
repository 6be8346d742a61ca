"""Rotary positions: neighbouring channels of queries and keys are turned by an angle that grows with the position.

Shape suffixes: B batch, L positions, H heads, D channels of a head. A rotation is cosine and sine of each pair of
channels, float32 [L, D / 2, 2]; zeros in place of both make the vector zero, which is what LlamaGen does to its class.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BASE = 10_000.0


def line_rotation(places_L: Tensor, head_dim: int) -> Tensor:
    """Rotations of places on a line (arXiv 2104.09864): pair j turns by place * BASE^(-2 j / D)."""
    angles_LD = places_L.float()[:, None] * _frequencies(head_dim, places_L.device)
    return torch.stack((angles_LD.cos(), angles_LD.sin()), dim=-1)


def grid_rotation(rows_L: Tensor, columns_L: Tensor, head_dim: int) -> Tensor:
    """Rotations of cells of a grid: the first half of the pairs turns by the row, the other by the column.

    Raises:
        ValueError: if the channels cannot be parted so.
    """
    if head_dim % 4:
        raise ValueError(f"rotary positions on a grid need heads of a multiple of 4 channels, and not {head_dim}")
    halves = [line_rotation(places_L, head_dim // 2) for places_L in (rows_L, columns_L)]
    return torch.cat(halves, dim=1)


def rotated_heads(qkv_BL3HD: Tensor, rotation_LD2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys, turned by their positions, and values as they are.

    Args:
        qkv_BL3HD: of any dtype; the pairs of channels (0, 1), (2, 3), ... are turned in float32.
        rotation_LD2: of the positions.

    Returns:
        Queries, keys and values `[B, L, H, D]` of qkv's dtype.
    """
    if torch.compiler.is_compiling():
        q, k, v = qkv_BL3HD.unbind(2)
        return rotated(q, rotation_LD2), rotated(k, rotation_LD2), v
    if not torch.is_grad_enabled():
        q, k = _turned(qkv_BL3HD[:, :, :2], rotation_LD2).unbind(2)
        return q, k, qkv_BL3HD[:, :, 2]
    heads: tuple[Tensor, Tensor, Tensor] = _RotatedHeads.apply(qkv_BL3HD, rotation_LD2)
    return heads


def rotated(x_BLHD: Tensor, rotation_LD2: Tensor) -> Tensor:
    """The same of one of them, by real numbers and left to autograd: as a compiler wants it."""
    first, second = x_BLHD.float().view(*x_BLHD.shape[:-1], -1, 2).unbind(-1)
    cosine, sine = rotation_LD2[:, None].unbind(-1)
    turned = torch.stack((first * cosine - second * sine, first * sine + second * cosine), dim=-1)
    return turned.flatten(-2).to(x_BLHD.dtype)


def _frequencies(channels: int, device: torch.device) -> Tensor:
    return BASE ** (-torch.arange(0, channels, 2, device=device, dtype=torch.float32) / channels)


def _turned(x_BLNHD: Tensor, rotation_LD2: Tensor) -> Tensor:
    """As complex numbers: one product where real ones take six, and what they are put together from."""
    pairs = torch.view_as_complex(x_BLNHD.float().view(*x_BLNHD.shape[:-1], -1, 2))
    turned = pairs * torch.view_as_complex(rotation_LD2)[:, None, None]
    return torch.view_as_real(turned).flatten(-2).to(x_BLNHD.dtype)


class _RotatedHeads(torch.autograd.Function):
    """Nothing is kept but the rotation: backward turns the other way."""

    @staticmethod
    def forward(ctx: Any, qkv_BL3HD: Tensor, rotation_LD2: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(rotation_LD2)
        q_BLHD, k_BLHD = _turned(qkv_BL3HD[:, :, :2], rotation_LD2).unbind(2)
        return q_BLHD, k_BLHD, qkv_BL3HD[:, :, 2].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_q: Tensor, of_k: Tensor, of_v: Tensor) -> tuple[Tensor, None]:
        (rotation_LD2,) = ctx.saved_tensors
        batch, length, heads, head_dim = of_v.shape
        of_qkv = of_v.new_empty(batch, length, 3, heads, head_dim)
        back_LD2 = rotation_LD2 * rotation_LD2.new_tensor([1.0, -1.0])
        for place, gradient in enumerate((of_q, of_k)):
            of_qkv[:, :, place].copy_(_turned(gradient.contiguous()[:, :, None], back_LD2)[:, :, 0])
        of_qkv[:, :, 2].copy_(of_v)
        return of_qkv, None
