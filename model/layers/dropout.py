"""Dropout of single elements, which follows from each sample's seed, in few passes over memory.

On a GPU the sums below are one kernel forward and one backward: the numbers that decide are computed where they are
used, from the seed and the element's place, and computed again in backward. No mask is written, read or kept.

Shape suffixes: B batch, N elements of a sample.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.layers.fused import fused, is_fused
from model.layers.random_numbers import numbered_bits

_PARTS, _BITS = 4, 16
"""Elements that share one number of a sample's, and the bits of it that decide for one of them."""


def element_dropout(x: Tensor, seed_B: Tensor | None, rate: float) -> Tensor:
    """Dropout of single elements of `x` [B, ...], which are scaled up otherwise: each by 16 bits of its sample's seed.

    The rate is taken to the next multiple of 2^-16.

    Raises:
        ValueError: if there is no seed to decide by.
    """
    seed_B = needed(seed_B)
    if not is_fused(x):
        return _thinned(x, seed_B, rate)
    out: Tensor = _Thinned.apply(x, seed_B, rate)
    return out


def dropped_sum(x: Tensor, branch: Tensor, seed_B: Tensor | None, rate: float, gate: Tensor | None = None) -> Tensor:
    """X + gate * element_dropout(branch), all of one shape; without a gate x + element_dropout(branch).

    Raises:
        ValueError: if there is no seed to decide by.
    """
    seed_B = needed(seed_B)
    if not is_fused(x):
        return _sum(x, branch, seed_B, rate, gate)
    out: Tensor = _DroppedSum.apply(x, branch, seed_B, rate, gate)
    return out


def dropped_gelu(x: Tensor, seed_B: Tensor | None, rate: float) -> Tensor:
    """element_dropout(gelu(x)).

    Raises:
        ValueError: if there is no seed to decide by.
    """
    seed_B = needed(seed_B)
    if not is_fused(x):
        return _gelu(x, seed_B, rate)
    out: Tensor = _DroppedGelu.apply(x, seed_B, rate)
    return out


def keep_factors(shape: torch.Size, seed_B: Tensor, rate: float) -> Tensor:
    """What dropout multiplies with: 0 or 1 / (1 - rate), float32 [B, *shape]."""
    limit = round(rate * 2**_BITS)
    of_each = torch.compiler.is_compiling() and seed_B.is_cuda
    bits_BN = (_bits_of_each if of_each else _bits_of_words)(seed_B, shape.numel())
    scale: float = 2**_BITS / (2**_BITS - limit)
    kept_BN: Tensor = bits_BN >= limit - 2 ** (_BITS - 1)
    return kept_BN.float().mul_(scale).view(-1, *shape)


def needed(seed_B: Tensor | None) -> Tensor:
    """The seeds.

    Raises:
        ValueError: if there are none.
    """
    if seed_B is None:
        raise ValueError("dropout in training needs seed_B, one random number per sample (or call eval())")
    return seed_B


def _bits_of_words(seed_B: Tensor, count: int) -> Tensor:
    """int16 [B, count]: a sample's numbers side by side, taken apart in memory. The least arithmetic."""
    number_N = torch.arange(-(-count // _PARTS), device=seed_B.device)
    return numbered_bits(seed_B[:, None], number_N).view(torch.int16)[:, :count]


def _bits_of_each(seed_B: Tensor, count: int) -> Tensor:
    """The same as int64, each computed for itself: no step in memory, so that a compiler makes one kernel of it."""
    place_N = torch.arange(count, device=seed_B.device)
    word_BN = numbered_bits(seed_B[:, None], place_N // _PARTS)
    part_BN = (word_BN >> (place_N % _PARTS * _BITS)) & (2**_BITS - 1)
    bits_BN: Tensor = (part_BN ^ 2 ** (_BITS - 1)) - 2 ** (_BITS - 1)
    return bits_BN


def _thinned(x: Tensor, seed_B: Tensor, rate: float) -> Tensor:
    return x * keep_factors(x.shape[1:], seed_B, rate).to(x.dtype)


def _gelu(x: Tensor, seed_B: Tensor, rate: float) -> Tensor:
    return _thinned(F.gelu(x), seed_B, rate)


def _sum(x: Tensor, branch: Tensor, seed_B: Tensor, rate: float, gate: Tensor | None) -> Tensor:
    thinned = _thinned(branch, seed_B, rate)
    return x + thinned if gate is None else x + gate * thinned


_thinned_at_once, _sum_at_once, _gelu_at_once = fused(_thinned), fused(_sum), fused(_gelu)


@fused
def _through_gate(of_sum: Tensor, branch: Tensor, seed_B: Tensor, rate: float, gate: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of a branch and its gate."""
    kept_of_sum = of_sum * keep_factors(branch.shape[1:], seed_B, rate)
    return (kept_of_sum * gate).to(branch.dtype), (kept_of_sum * branch).to(gate.dtype)


@fused
def _through_dropout(of_sum: Tensor, seed_B: Tensor, rate: float, dtype: torch.dtype) -> Tensor:
    return (of_sum * keep_factors(of_sum.shape[1:], seed_B, rate)).to(dtype)


@fused
def _through_gelu(gradient: Tensor, x: Tensor, seed_B: Tensor, rate: float) -> Tensor:
    of_x: Tensor = torch.ops.aten.gelu_backward(_thinned(gradient, seed_B, rate), x)
    return of_x


class _Thinned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, seed_B: Tensor, rate: float) -> Tensor:
        ctx.save_for_backward(seed_B)
        ctx.rate = rate
        return _thinned_at_once(x, seed_B, rate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (seed_B,) = ctx.saved_tensors
        return _thinned_at_once(gradient, seed_B, ctx.rate), None, None


class _DroppedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, seed_B: Tensor, rate: float, gate: Tensor | None) -> Tensor:
        ctx.save_for_backward(seed_B, gate, None if gate is None else branch)
        ctx.rate, ctx.dtypes = rate, (x.dtype, branch.dtype)
        return _sum_at_once(x, branch, seed_B, rate, gate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_sum: Tensor) -> tuple[Tensor | None, ...]:
        seed_B, gate, branch = ctx.saved_tensors
        of_x, of_gate = of_sum.to(ctx.dtypes[0]), None
        if gate is None:
            of_branch = _through_dropout(of_sum, seed_B, ctx.rate, ctx.dtypes[1])
        else:
            of_branch, of_gate = _through_gate(of_sum, branch, seed_B, ctx.rate, gate)
        return of_x, of_branch, None, None, of_gate


class _DroppedGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, seed_B: Tensor, rate: float) -> Tensor:
        ctx.save_for_backward(x, seed_B)
        ctx.rate = rate
        return _gelu_at_once(x, seed_B, rate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, seed_B = ctx.saved_tensors
        return _through_gelu(gradient, x, seed_B, ctx.rate), None, None
