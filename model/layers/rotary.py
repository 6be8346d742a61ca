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


def rotated(x_BLHD: Tensor, rotation_LD2: Tensor) -> Tensor:
    """Turn the pairs of channels (0, 1), (2, 3), ... in float32; the result has x's dtype."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return _turn(x_BLHD, rotation_LD2)
    out: Tensor = _Rotated.apply(x_BLHD, rotation_LD2)
    return out


def _frequencies(channels: int, device: torch.device) -> Tensor:
    return BASE ** (-torch.arange(0, channels, 2, device=device, dtype=torch.float32) / channels)


def _turn(x_BLHD: Tensor, rotation_LD2: Tensor) -> Tensor:
    first, second = x_BLHD.float().view(*x_BLHD.shape[:-1], -1, 2).unbind(-1)
    cosine, sine = rotation_LD2[:, None].unbind(-1)
    turned = torch.stack((first * cosine - second * sine, first * sine + second * cosine), dim=-1)
    return turned.flatten(-2).to(x_BLHD.dtype)


class _Rotated(torch.autograd.Function):
    """Nothing is kept but the rotation: backward turns the other way."""

    @staticmethod
    def forward(ctx: Any, x_BLHD: Tensor, rotation_LD2: Tensor) -> Tensor:
        ctx.save_for_backward(rotation_LD2)
        return _turn(x_BLHD, rotation_LD2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BLHD: Tensor) -> tuple[Tensor, None]:
        (rotation_LD2,) = ctx.saved_tensors
        return _turn(gradient_BLHD, rotation_LD2 * rotation_LD2.new_tensor([1.0, -1.0])), None
