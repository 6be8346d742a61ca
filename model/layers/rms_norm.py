"""RMSNorm and the gated MLP of language models, in few passes over memory, each with its backward written out.

Shape suffixes: C channels, H hidden channels; what comes before is kept as it is.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model.layers.precision import without_autocast


class RMSNorm(nn.Module):
    """x / sqrt(mean of x^2 + eps) in float32, rounded to x's dtype, times a weight (arXiv 1910.07467).

    Args:
        width: channels.
        eps: of it.
    """

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x_C: Tensor, dtype: torch.dtype) -> Tensor:
        """The normed vectors, in the dtype of what they are multiplied with next."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return _normed(x_C, self.weight, _factor(x_C, self.eps), dtype)
        out: Tensor = _RmsNorm.apply(x_C, self.weight, self.eps, dtype)
        return out


def gated(hidden_2H: Tensor) -> Tensor:
    """SwiGLU (arXiv 2002.05202): the first half of the channels, through SiLU, times the other half."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        gate_H, value_H = hidden_2H.chunk(2, dim=-1)
        return F.silu(gate_H) * value_H
    out: Tensor = _Gated.apply(hidden_2H)
    return out


def _factor(x_C: Tensor, eps: float) -> Tensor:
    length = torch.linalg.vector_norm(x_C, dim=-1, keepdim=True, dtype=torch.float32)
    factor_1: Tensor = (length.square() / x_C.shape[-1] + eps).rsqrt()
    return factor_1


def _normed(x_C: Tensor, weight_C: Tensor, factor_1: Tensor, dtype: torch.dtype) -> Tensor:
    with without_autocast(x_C.device):
        return ((x_C * factor_1).to(x_C.dtype) * weight_C).to(dtype)


class _RmsNorm(torch.autograd.Function):
    """Keeps x and a number for each vector."""

    @staticmethod
    def forward(ctx: Any, x_C: Tensor, weight_C: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        factor_1 = _factor(x_C, eps)
        ctx.save_for_backward(x_C, weight_C, factor_1)
        return _normed(x_C, weight_C, factor_1, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_C: Tensor) -> tuple[Tensor | None, ...]:
        x_C, weight_C, factor_1 = ctx.saved_tensors
        with without_autocast(x_C.device):
            product_NC = (gradient_C.float() * x_C).flatten(0, -2)
            of_weight_C = factor_1.flatten() @ product_NC
            along_1 = (product_NC @ weight_C.float()).view(factor_1.shape) * factor_1.pow(3) / x_C.shape[-1]
            of_x_C = (gradient_C * weight_C).float().mul_(factor_1).addcmul_(x_C, along_1, value=-1)
        return of_x_C.to(x_C.dtype), of_weight_C.to(weight_C.dtype), None, None


class _Gated(torch.autograd.Function):
    """Keeps what came in, and nothing between."""

    @staticmethod
    def forward(ctx: Any, hidden_2H: Tensor) -> Tensor:
        ctx.save_for_backward(hidden_2H)
        gate_H, value_H = hidden_2H.chunk(2, dim=-1)
        return F.silu(gate_H).mul_(value_H)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_H: Tensor) -> Tensor:
        (hidden_2H,) = ctx.saved_tensors
        gate_H, value_H = hidden_2H.chunk(2, dim=-1)
        of_hidden_2H = torch.empty_like(hidden_2H)
        of_gate_H, of_value_H = of_hidden_2H.chunk(2, dim=-1)
        torch.mul(gradient_H, F.silu(gate_H), out=of_value_H)
        of_gate_H.copy_(torch.ops.aten.silu_backward(gradient_H * value_H, gate_H))
        return of_hidden_2H
