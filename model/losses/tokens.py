"""Cross entropy of tokens, without ever holding all logits.

Shapes: B batch, L positions, F folds, V codebook size, N rows, C channels of a row, K outputs of a head, G groups.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.layers.precision import without_autocast
from model.layout import TokenLayout

LOGITS_AT_ONCE = 2**26
"""Logits that `linear_cross_entropy` holds in float32 at a time: 256 MB."""


def token_cross_entropy(logits_BLFV: Tensor, tokens_BLF: Tensor) -> Tensor:
    """Cross entropy of each token, float32 [B, L, F], in nats."""
    losses_N = F.cross_entropy(logits_BLFV.flatten(0, 2).float(), tokens_BLF.flatten().long(), reduction="none")
    return losses_N.view(tokens_BLF.shape)


def folded_cross_entropy(logits_BLFV: Tensor, tokens_BLF: Tensor) -> tuple[Tensor, Tensor]:
    """The generator's loss: every position and every fold weighs the same.

    Returns:
        The mean over the batch, positions and folds; and, detached, the mean over the batch alone, [L, F], from which
        `loss_of_groups` makes what is logged.
    """
    losses_BLF = token_cross_entropy(logits_BLFV, tokens_BLF)
    return losses_BLF.mean(), losses_BLF.detach().mean(0)


def linear_cross_entropy(
    x_NC: Tensor, weight_KC: Tensor, bias_K: Tensor | None, tokens_NF: Tensor, logits_at_once: int = LOGITS_AT_ONCE
) -> tuple[Tensor, Tensor]:
    """Cross entropy of the tokens under logits that a linear layer makes, without ever holding all of the logits.

    The rows are taken in parts. Of each part the gradient to logits is known as soon as its loss is, so input and
    weight get theirs at once, and only those are kept for backward. torch's own `F.linear_cross_entropy` (2.14) gives
    the sum alone and takes one token per row.

    Args:
        x_NC: what the layer reads, in the dtype of the products.
        weight_KC: of the layer; K = F * V, the folds one after the other.
        bias_K: of the layer, or None.
        tokens_NF: ids.
        logits_at_once: bound on a part; at least one row is taken.

    Returns:
        The mean over rows and folds, and, detached, the loss of each token, float32 [N, F]. Logits are rounded to the
        products' dtype, as a layer would, and everything after is float32.
    """
    gradients = torch.is_grad_enabled() and (x_NC.requires_grad or weight_KC.requires_grad)
    mean, losses_NF = _LinearCrossEntropy.apply(x_NC, weight_KC, bias_K, tokens_NF, logits_at_once, gradients)
    return mean, losses_NF


def logits_cross_entropy(logits_NV: Tensor, tokens_N: Tensor, logits_at_once: int = LOGITS_AT_ONCE) -> Tensor:
    """Mean cross entropy of tokens, as of a tokenizer whose decoder predicts another one's codes, float32.

    Logits may be in half precision: what is float32 is a part of them at a time, and their gradient is in their dtype.

    Args:
        logits_NV: a row for each token.
        tokens_N: ids.
        logits_at_once: bound on a part; at least one row is taken.
    """
    mean: Tensor = _LogitsCrossEntropy.apply(logits_NV, tokens_N, logits_at_once)
    return mean


class _LogitsCrossEntropy(torch.autograd.Function):
    """Makes the gradient from the logits again, part by part, so that nothing but them is kept."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, tokens_N: Tensor, logits_at_once: int) -> Tensor:
        ctx.save_for_backward(logits_NV, tokens_N)
        ctx.rows = max(logits_at_once // logits_NV.shape[1], 1)
        parts = zip(torch.split(logits_NV, ctx.rows), torch.split(tokens_N.long(), ctx.rows), strict=True)
        losses = [_part_losses(logits, tokens[:, None], gradients=False)[0] for logits, tokens in parts]
        return torch.cat(losses).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_mean: Tensor) -> tuple[Tensor | None, ...]:
        logits_NV, tokens_N = ctx.saved_tensors
        of_logits_NV, factor = torch.empty_like(logits_NV), of_mean / len(logits_NV)
        parts = zip(*(torch.split(each, ctx.rows) for each in (logits_NV, tokens_N.long(), of_logits_NV)), strict=True)
        for logits, tokens, out in parts:
            _, of_part = _part_losses(logits, tokens[:, None], gradients=True)
            assert of_part is not None
            out.copy_(of_part.float() * factor)
        return of_logits_NV, None, None


class _LinearCrossEntropy(torch.autograd.Function):
    """Keeps the gradients of the sum: those of the mean would be too small for fp16 without its loss scale."""

    @staticmethod
    def forward(
        ctx: Any,
        x_NC: Tensor,
        weight_KC: Tensor,
        bias_K: Tensor | None,
        tokens_NF: Tensor,
        logits_at_once: int,
        gradients: bool,
    ) -> tuple[Tensor, Tensor]:
        with without_autocast(x_NC.device):
            cast_KC, cast_K = weight_KC.to(x_NC.dtype), None if bias_K is None else bias_K.to(x_NC.dtype)
            rows = max(logits_at_once // len(cast_KC), 1)
            kept = _HeadGradients(x_NC, weight_KC) if gradients else None
            losses = []
            for start in range(0, len(x_NC), rows):
                part = slice(start, start + rows)
                logits_NK = F.linear(x_NC[part], cast_KC, cast_K)
                losses_NF, of_logits_NK = _part_losses(logits_NK, tokens_NF[part].long(), gradients)
                losses.append(losses_NF)
                if kept is not None and of_logits_NK is not None:
                    kept.add(part, of_logits_NK, x_NC[part], cast_KC)
            losses_NF = torch.cat(losses)
        ctx.mark_non_differentiable(losses_NF)
        ctx.count, ctx.dtypes = losses_NF.numel(), (weight_KC.dtype, None if bias_K is None else bias_K.dtype)
        if kept is not None:
            ctx.save_for_backward(kept.x_NC, kept.weight_KC, kept.bias_K)
        return losses_NF.mean(), losses_NF

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_mean: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        of_x_NC, of_weight_KC, of_bias_K = ctx.saved_tensors
        factor, (weight_dtype, bias_dtype) = of_mean / ctx.count, ctx.dtypes
        of_bias_K = None if bias_dtype is None else (of_bias_K * factor).to(bias_dtype)
        of_weight_KC = (of_weight_KC * factor).to(weight_dtype)
        return of_x_NC * factor.to(of_x_NC.dtype), of_weight_KC, of_bias_K, None, None, None


class _HeadGradients:
    """Gradients of the summed loss to a head's input, weight and bias, added up over parts of the rows."""

    def __init__(self, x_NC: Tensor, weight_KC: Tensor) -> None:
        self.x_NC = torch.empty_like(x_NC)
        self.weight_KC = torch.zeros_like(weight_KC, dtype=torch.float32)
        self.bias_K = self.weight_KC.new_zeros(len(weight_KC))
        # A sum over thousands of rows may be more than fp16 can hold.
        self._shrink = 2.0**-6 if x_NC.dtype == torch.float16 else 1.0

    def add(self, part: slice, of_logits_NK: Tensor, x_NC: Tensor, weight_KC: Tensor) -> None:
        """One more part, whose gradient to the logits is given."""
        torch.mm(of_logits_NK, weight_KC, out=self.x_NC[part])
        x_NC = x_NC * self._shrink if self._shrink != 1 else x_NC
        self.weight_KC.add_(of_logits_NK.t() @ x_NC, alpha=1 / self._shrink)
        self.bias_K.add_(of_logits_NK.sum(0, dtype=torch.float32))


def _part_losses(logits_NK: Tensor, tokens_NF: Tensor, gradients: bool) -> tuple[Tensor, Tensor | None]:
    """Losses of some rows, and the gradient of their sum to the logits, in the logits' dtype."""
    logits_NFV = logits_NK.view(*tokens_NF.shape, -1)
    log_NFV = logits_NFV.log_softmax(-1, dtype=torch.float32)
    target_NF1 = tokens_NF[..., None]
    losses_NF = log_NFV.gather(-1, target_NF1).squeeze(-1).neg()
    if not gradients:
        return losses_NF, None
    of_logits_NFV = log_NFV.exp_().scatter_add_(-1, target_NF1, log_NFV.new_full((), -1.0).expand(target_NF1.shape))
    return losses_NF, of_logits_NFV.to(logits_NK.dtype).view_as(logits_NK)


def loss_of_groups(loss_LF: Tensor, layout: TokenLayout) -> Tensor:
    """Means over the positions of each group, per fold: [L, F] -> [G, F]."""
    return torch.stack([part.mean(0) for part in torch.split(loss_LF, list(layout.groups))])


def terms_of_groups(loss_LF: Tensor, layout: TokenLayout) -> dict[str, Tensor]:
    """`loss_of_groups` by the names that metrics have: loss_group0_fold1."""
    loss_GF = loss_of_groups(loss_LF, layout)
    places = [(group, fold) for group in range(len(layout.groups)) for fold in range(layout.folds)]
    return {f"loss_group{group}_fold{fold}": loss_GF[group, fold] for group, fold in places}
