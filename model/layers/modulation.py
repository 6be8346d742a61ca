"""The elementwise part of a transformer block in few passes over memory: norm, modulation, gate, lengths of heads.

Autograd would keep or compute twice what these functions need once: each has its backward written out. Sums are kept in
float32 by the kernels themselves; what is written has the dtype of what came in. Where a block is compiled the same
arithmetic is left to autograd, and the compiler fuses it.

Shape suffixes: B batch, L positions, C channels, H heads, D channels of a head. The 3 of qkv are queries, keys, values.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.layers.fused import fused, is_fused
from model.layers.precision import without_autocast

NORM_EPS = 1e-6
SHORTEST = 1e-12
"""A query or key that is shorter than this is not brought to length one (as F.normalize)."""


def modulated_norm(x_BLC: Tensor, scale_B1C: Tensor, shift_B1C: Tensor) -> Tensor:
    """LayerNorm without weights of its own, then the condition's scale and shift; all three of one dtype."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        with without_autocast(x_BLC.device):
            return torch.addcmul(shift_B1C, F.layer_norm(x_BLC, x_BLC.shape[-1:], eps=NORM_EPS), scale_B1C)
    out_BLC: Tensor = _ModulatedNorm.apply(x_BLC, scale_B1C, shift_B1C)
    return out_BLC


def modulated_affine_norm(
    x_BLC: Tensor,
    weight_C: Tensor | None,
    bias_C: Tensor | None,
    scale_BLC: Tensor,
    shift_BLC: Tensor,
    dtype: torch.dtype,
    eps: float = NORM_EPS,
) -> Tensor:
    """LayerNorm in float32, then each position's scale and shift.

    Args:
        x_BLC: float32.
        weight_C: of the norm; None for none.
        bias_C: of the norm, if it has a weight.
        scale_BLC: a factor, of the products' dtype or float32.
        shift_BLC: as the scale.
        dtype: of the result.
        eps: of the norm.
    """
    weight_C, bias_C = (None if each is None else each.float() for each in (weight_C, bias_C))
    if is_fused(x_BLC) and torch.is_grad_enabled() and scale_BLC.shape == x_BLC.shape:
        out_BLC: Tensor = _ModulatedAffineNorm.apply(x_BLC, weight_C, bias_C, scale_BLC, shift_BLC, dtype, eps)
        return out_BLC
    with without_autocast(x_BLC.device):
        normed_BLC = F.layer_norm(x_BLC, x_BLC.shape[-1:], weight_C, bias_C, eps)
    if scale_BLC.dtype == normed_BLC.dtype:
        return torch.addcmul(shift_BLC, normed_BLC, scale_BLC).to(dtype)
    return (normed_BLC * scale_BLC + shift_BLC).to(dtype)


def gated_sum(x_BLC: Tensor, gate_B1C: Tensor, branch_BLC: Tensor) -> Tensor:
    """The residual stream plus a gated branch: x + gate * branch, all three of one dtype."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return torch.addcmul(x_BLC, gate_B1C, branch_BLC)
    out_BLC: Tensor = _GatedSum.apply(x_BLC, gate_B1C, branch_BLC)
    return out_BLC


def normalized_heads(qkv_BL3HD: Tensor, temperature_H: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries at the length of the temperature, keys at length one, and values as they are.

    Args:
        qkv_BL3HD: of any dtype; lengths are computed in float32.
        temperature_H: float32.

    Returns:
        Queries, keys and values `[B, L, H, D]` of qkv's dtype.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        scaled = (qkv_BL3HD * _factors(qkv_BL3HD, temperature_H)).to(qkv_BL3HD.dtype)
        q, k, v = scaled.unbind(2)
        return q, k, v
    heads: tuple[Tensor, Tensor, Tensor] = _NormalizedHeads.apply(qkv_BL3HD, temperature_H)
    return heads


def cached_heads(qkv_BL3HD: Tensor, temperature_H: Tensor | None, keys_BLHD: Tensor, values_BLHD: Tensor) -> Tensor:
    """As `normalized_heads`, without gradients: keys and values go where a cache has room for them, in one pass.

    Args:
        qkv_BL3HD: which this may overwrite.
        temperature_H: float32; None leaves the lengths as they are.
        keys_BLHD: the cache's room for the keys, of qkv's dtype.
        values_BLHD: its room for the values.

    Returns:
        Queries.
    """
    q_BLHD, k_BLHD, v_BLHD = qkv_BL3HD.unbind(2)
    values_BLHD.copy_(v_BLHD)
    if temperature_H is None:
        keys_BLHD.copy_(k_BLHD)
        return q_BLHD
    factor_BL3H1 = _factors(qkv_BL3HD, temperature_H)
    torch.mul(k_BLHD, factor_BL3H1[:, :, 1], out=keys_BLHD)
    return torch.mul(q_BLHD, factor_BL3H1[:, :, 0], out=q_BLHD)


def _factors(qkv_BL3HD: Tensor, temperature_H: Tensor) -> Tensor:
    """What queries, keys and values are multiplied by, float32 [B, L, 3, H, 1]."""
    length_BL2H1 = torch.linalg.vector_norm(qkv_BL3HD[:, :, :2], dim=-1, keepdim=True, dtype=torch.float32)
    wanted_2H1 = torch.stack((temperature_H, torch.ones_like(temperature_H)))[..., None]
    return F.pad(wanted_2H1 / length_BL2H1.clamp(min=SHORTEST), (0, 0, 0, 0, 0, 1), value=1.0)


class _ModulatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BLC: Tensor, scale_B1C: Tensor, shift_B1C: Tensor) -> Tensor:
        with without_autocast(x_BLC.device):
            normed_BLC, mean, rstd = torch.native_layer_norm(x_BLC, x_BLC.shape[-1:], None, None, NORM_EPS)
            ctx.save_for_backward(x_BLC, mean, rstd, normed_BLC, scale_B1C)
            return torch.addcmul(shift_B1C, normed_BLC, scale_B1C)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BLC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_BLC, mean, rstd, normed_BLC, scale_B1C = ctx.saved_tensors
        of_shift = gradient_BLC.sum(1, keepdim=True)
        of_scale = (gradient_BLC * normed_BLC).sum(1, keepdim=True)
        of_x = torch.ops.aten.native_layer_norm_backward(
            gradient_BLC * scale_B1C, x_BLC, x_BLC.shape[-1:], mean, rstd, None, None, [True, False, False]
        )[0]
        return of_x, of_scale, of_shift


@fused
def _norm_at_once(
    x_BLC: Tensor,
    weight_C: Tensor | None,
    bias_C: Tensor | None,
    scale_BLC: Tensor,
    shift_BLC: Tensor,
    dtype: torch.dtype,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Modulated, and the mean and the reciprocal of the deviation of each position."""
    normed_BLC, mean_BL1, factor_BL1 = torch.native_layer_norm(x_BLC, x_BLC.shape[-1:], weight_C, bias_C, eps)
    return (normed_BLC * scale_BLC + shift_BLC).to(dtype), mean_BL1, factor_BL1


@fused
def _through_scale(
    gradient_BLC: Tensor,
    x_BLC: Tensor,
    mean_BL1: Tensor,
    factor_BL1: Tensor,
    weight_C: Tensor | None,
    bias_C: Tensor | None,
    scale_BLC: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of the norm's output, which is computed again, and of the scale."""
    normed_BLC = (x_BLC - mean_BL1) * factor_BL1
    if weight_C is not None and bias_C is not None:
        normed_BLC = normed_BLC * weight_C + bias_C
    return gradient_BLC.float() * scale_BLC, (gradient_BLC * normed_BLC).to(scale_BLC.dtype)


class _ModulatedAffineNorm(torch.autograd.Function):
    """Keeps x and two numbers for each position."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BLC: Tensor,
        weight_C: Tensor | None,
        bias_C: Tensor | None,
        scale_BLC: Tensor,
        shift_BLC: Tensor,
        dtype: torch.dtype,
        eps: float,
    ) -> Tensor:
        with without_autocast(x_BLC.device):
            out_BLC, *found = _norm_at_once(x_BLC, weight_C, bias_C, scale_BLC, shift_BLC, dtype, eps)
        ctx.save_for_backward(x_BLC, *found, weight_C, bias_C, scale_BLC)
        ctx.dtype = shift_BLC.dtype
        return out_BLC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BLC: Tensor) -> tuple[Tensor | None, ...]:
        x_BLC, mean_BL1, factor_BL1, weight_C, bias_C, scale_BLC = ctx.saved_tensors
        of_normed, of_scale = _through_scale(gradient_BLC, x_BLC, mean_BL1, factor_BL1, weight_C, bias_C, scale_BLC)
        of_x, of_weight, of_bias = torch.ops.aten.native_layer_norm_backward(
            of_normed,
            x_BLC,
            x_BLC.shape[-1:],
            mean_BL1,
            factor_BL1,
            weight_C,
            bias_C,
            [True, weight_C is not None, bias_C is not None],
        )
        return of_x, of_weight, of_bias, of_scale, gradient_BLC.to(ctx.dtype), None, None


class _GatedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BLC: Tensor, gate_B1C: Tensor, branch_BLC: Tensor) -> Tensor:
        ctx.save_for_backward(gate_B1C, branch_BLC)
        return torch.addcmul(x_BLC, gate_B1C, branch_BLC)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BLC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gate_B1C, branch_BLC = ctx.saved_tensors
        return gradient_BLC, (gradient_BLC * branch_BLC).sum(1, keepdim=True), gradient_BLC * gate_B1C


class _NormalizedHeads(torch.autograd.Function):
    """The raw queries and keys are not kept: direction and factor are enough."""

    @staticmethod
    def forward(ctx: Any, qkv_BL3HD: Tensor, temperature_H: Tensor) -> tuple[Tensor, ...]:
        factor_BL3H1 = _factors(qkv_BL3HD, temperature_H)
        scaled_BL3HD = torch.mul(qkv_BL3HD, factor_BL3H1, out=torch.empty_like(qkv_BL3HD))
        q, k, v = scaled_BL3HD.unbind(2)
        ctx.save_for_backward(q, k, factor_BL3H1, temperature_H)
        return q, k, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_q: Tensor, of_k: Tensor, of_v: Tensor) -> tuple[Tensor, Tensor]:
        q, k, factor_BL3H1, temperature_H = ctx.saved_tensors
        batch, length, heads, head_dim = q.shape
        of_qkv = of_v.new_empty(batch, length, 3, heads, head_dim)
        along_q = _through_length(of_q, q, factor_BL3H1[:, :, 0], temperature_H[:, None], of_qkv[:, :, 0])
        _through_length(of_k, k, factor_BL3H1[:, :, 1], torch.ones_like(temperature_H)[:, None], of_qkv[:, :, 1])
        of_qkv[:, :, 2].copy_(of_v)
        return of_qkv, along_q.sum((0, 1)).squeeze(-1) / temperature_H


def _through_length(gradient: Tensor, scaled: Tensor, factor: Tensor, wanted_H1: Tensor, into: Tensor) -> Tensor:
    """Gradient of a vector that was brought to a wanted length, written into `into`.

    It is factor * (gradient - unit * (unit . gradient)), where unit = scaled / wanted length.

    Returns:
        The product scaled . gradient, float32 [B, L, H, 1].
    """
    along = (gradient * scaled).sum(-1, keepdim=True, dtype=torch.float32)
    torch.mul(gradient, factor, out=into)
    torch.addcmul(into, scaled, (along * factor / wanted_H1.square()).neg(), out=into)
    return along
