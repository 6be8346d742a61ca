"""Cross entropy of tokens, without ever holding all logits.

Shapes: B batch, L positions, F folds, V codebook size, N rows, C channels of a row, K outputs of a head, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.layers.precision import without_autocast
from model.layout import TokenLayout

LOGITS_AT_ONCE = 2**26
"""Logits that `linear_cross_entropy` holds in float32 at a time: 256 MB."""
_SMALLEST = torch.finfo(torch.float32).tiny


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


class TokenLosses(NamedTuple):
    """What a head says of some tokens."""

    mean: Tensor
    """The (weighted) mean over rows and folds, with label smoothing, float32, with gradients: what is minimized."""
    losses_NF: Tensor
    """Cross entropy of each token in nats, without smoothing, float32, detached."""
    hits_NF: Tensor
    """Whether the token was likelier than every other one, detached."""


def linear_cross_entropy(
    x_NC: Tensor,
    weight_KC: Tensor,
    bias_K: Tensor | None,
    tokens_NF: Tensor,
    *,
    vocabularies: Sequence[int] | None = None,
    weight_N: Tensor | None = None,
    smoothing: float = 0.0,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> TokenLosses:
    """Cross entropy of the tokens under logits that a linear layer makes, without ever holding all of the logits.

    The rows are taken in parts. Of each part the gradient to logits is known as soon as its loss is, so input and
    weight get theirs at once, and only those are kept for backward. torch's own `F.linear_cross_entropy` (2.14) gives
    the sum alone and takes one token per row.

    Args:
        x_NC: what the layer reads, in the dtype of the products.
        weight_KC: of the layer; K = the sum of the vocabularies, the folds one after the other.
        bias_K: of the layer, or None.
        tokens_NF: ids.
        vocabularies: codes of each fold; None if all have the same number.
        weight_N: what each row weighs in the mean, not negative; None for all the same. The mean of rows that all
            weigh nothing is 0.
        smoothing: share of the target that goes to all codes alike (F.cross_entropy's `label_smoothing`).
        logits_at_once: bound on a part; at least one row is taken.

    Returns:
        Mean, losses and hits. Logits are rounded to the products' dtype, as a layer would, and everything after is
        float32.
    """
    gradients = torch.is_grad_enabled() and (x_NC.requires_grad or weight_KC.requires_grad)
    sizes = tuple(vocabularies or [len(weight_KC) // tokens_NF.shape[1]] * tokens_NF.shape[1])
    if sum(sizes) != len(weight_KC) or len(sizes) != tokens_NF.shape[1]:
        raise ValueError(f"a head of {len(weight_KC)} outputs and {tokens_NF.shape[1]} tokens does not fit {sizes}")
    if weight_N is not None:
        weight_N = weight_N.detach().float()
        weight_N = weight_N / weight_N.amax().clamp(min=_SMALLEST)
    how = _Part(sizes, smoothing, gradients, logits_at_once)
    return TokenLosses(*_LinearCrossEntropy.apply(x_NC, weight_KC, bias_K, tokens_NF, weight_N, how))


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
        how = _Part((logits_NV.shape[1],))
        return torch.cat([_judged(logits, tokens[:, None], how).losses_NF for logits, tokens in parts]).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_mean: Tensor) -> tuple[Tensor | None, ...]:
        logits_NV, tokens_N = ctx.saved_tensors
        of_logits_NV, factor = torch.empty_like(logits_NV), of_mean / len(logits_NV)
        parts = zip(*(torch.split(each, ctx.rows) for each in (logits_NV, tokens_N.long(), of_logits_NV)), strict=True)
        how = _Part((logits_NV.shape[1],), gradients=True)
        for logits, tokens, out in parts:
            of_part = _judged(logits, tokens[:, None], how).of_logits_NK
            assert of_part is not None
            out.copy_(of_part.float() * factor)
        return of_logits_NV, None, None


@dataclass(frozen=True)
class _Part:
    """How a part of the rows is judged."""

    vocabularies: tuple[int, ...]
    smoothing: float = 0.0
    gradients: bool = False
    logits_at_once: int = LOGITS_AT_ONCE


class _LinearCrossEntropy(torch.autograd.Function):
    """Keeps the gradients of the sum: those of the mean would be too small for fp16 without its loss scale."""

    @staticmethod
    def forward(
        ctx: Any,
        x_NC: Tensor,
        weight_KC: Tensor,
        bias_K: Tensor | None,
        tokens_NF: Tensor,
        weight_N: Tensor | None,
        how: _Part,
    ) -> tuple[Tensor, Tensor, Tensor]:
        with without_autocast(x_NC.device):
            cast_KC, cast_K = weight_KC.to(x_NC.dtype), None if bias_K is None else bias_K.to(x_NC.dtype)
            rows = max(how.logits_at_once // len(cast_KC), 1)
            kept = _HeadGradients(x_NC, weight_KC) if how.gradients else None
            judged = []
            for start in range(0, len(x_NC), rows):
                part = slice(start, start + rows)
                logits_NK = F.linear(x_NC[part], cast_KC, cast_K)
                share_N = None if weight_N is None else weight_N[part]
                one = _judged(logits_NK, tokens_NF[part].long(), how, share_N)
                judged.append((one.minimized_NF, one.losses_NF, one.hits_NF))
                if kept is not None and one.of_logits_NK is not None:
                    kept.add(part, one.of_logits_NK, x_NC[part], cast_KC)
            minimized_NF, losses_NF, hits_NF = (torch.cat(parts) for parts in zip(*judged, strict=True))
        ctx.mark_non_differentiable(losses_NF, hits_NF)
        if weight_N is None:
            count: Tensor | int = losses_NF.numel()
            mean = minimized_NF.mean()
        else:
            count = weight_N.sum().clamp(min=_SMALLEST) * losses_NF.shape[1]
            mean = (minimized_NF * weight_N[:, None]).sum() / count
        ctx.count, ctx.dtypes = count, (weight_KC.dtype, None if bias_K is None else bias_K.dtype)
        if kept is not None:
            ctx.save_for_backward(kept.x_NC, kept.weight_KC, kept.bias_K)
        return mean, losses_NF, hits_NF

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_mean: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        of_x_NC, of_weight_KC, of_bias_K = ctx.saved_tensors
        factor, (weight_dtype, bias_dtype) = of_mean / ctx.count, ctx.dtypes
        of_bias_K = None if bias_dtype is None else (of_bias_K * factor).to(bias_dtype)
        of_weight_KC = (of_weight_KC * factor).to(weight_dtype)
        return of_x_NC * factor.to(of_x_NC.dtype), of_weight_KC, of_bias_K, None, None, None


class _HeadGradients:
    """Gradients of the summed loss to a head's input, weight and bias, added up over parts of the rows."""

    def __init__(self, x_NC: Tensor, weight_KC: Tensor) -> None:
        self.x_NC = torch.empty_like(x_NC)
        self.weight_KC = torch.empty_like(weight_KC, dtype=torch.float32)
        self.bias_K = self.weight_KC.new_zeros(len(weight_KC))
        self._begun = False
        # A sum over thousands of rows may be more than fp16 can hold.
        self._shrink = 2.0**-6 if x_NC.dtype == torch.float16 else 1.0

    def add(self, part: slice, of_logits_NK: Tensor, x_NC: Tensor, weight_KC: Tensor) -> None:
        """One more part, whose gradient to the logits is given."""
        torch.mm(of_logits_NK, weight_KC, out=self.x_NC[part])
        x_NC = x_NC * self._shrink if self._shrink != 1 else x_NC
        of_part_KC = of_logits_NK.t() @ x_NC
        if not self._begun and self._shrink == 1:
            self.weight_KC.copy_(of_part_KC)
        else:
            self.weight_KC = self.weight_KC if self._begun else self.weight_KC.zero_()
            self.weight_KC.add_(of_part_KC, alpha=1 / self._shrink)
        self._begun = True
        self.bias_K.add_(of_logits_NK.sum(0, dtype=torch.float32))


class _Judged(NamedTuple):
    """Of some rows: losses with and without smoothing, hits, and the gradient of the (weighted) sum to the logits."""

    minimized_NF: Tensor
    losses_NF: Tensor
    hits_NF: Tensor
    of_logits_NK: Tensor | None


def _judged(logits_NK: Tensor, tokens_NF: Tensor, how: _Part, weight_N: Tensor | None = None) -> _Judged:
    """Folds of one size at once, or one after the other. The gradient has the logits' dtype."""
    if len(set(how.vocabularies)) == 1:
        one = _judged_alike(logits_NK.view(*tokens_NF.shape, -1), tokens_NF, how, weight_N)
        of_logits = None if one.of_logits_NK is None else one.of_logits_NK.view_as(logits_NK)
        return one._replace(of_logits_NK=of_logits)
    logits = [logits_NV[:, None] for logits_NV in torch.split(logits_NK, list(how.vocabularies), dim=1)]
    tokens = torch.split(tokens_NF, 1, dim=1)
    found = [_judged_alike(*each, how, weight_N) for each in zip(logits, tokens, strict=True)]
    minimized, losses, hits, _ = zip(*found, strict=True)
    gradients = [fold.of_logits_NK.squeeze(1) for fold in found if fold.of_logits_NK is not None]
    whole = torch.cat(gradients, dim=1) if gradients else None
    return _Judged(torch.cat(minimized, 1), torch.cat(losses, 1), torch.cat(hits, 1), whole)


def _judged_alike(logits_NFV: Tensor, tokens_NF: Tensor, how: _Part, weight_N: Tensor | None) -> _Judged:
    """Folds of one size; the gradient is [N, F, V]."""
    log_NFV = logits_NFV.log_softmax(-1, dtype=torch.float32)
    target_NF1 = tokens_NF[..., None]
    right_NF1 = log_NFV.gather(-1, target_NF1)
    losses_NF = minimized_NF = right_NF1.squeeze(-1).neg()
    if how.smoothing:
        minimized_NF = losses_NF.lerp(log_NFV.mean(-1).neg(), how.smoothing)
    # The largest of the others takes a fifth of the time of argmax, and of equal logits none is right.
    hits_NF = right_NF1.squeeze(-1) > log_NFV.scatter_(-1, target_NF1, float("-inf")).amax(-1)
    if not how.gradients:
        return _Judged(minimized_NF, losses_NF, hits_NF, None)
    of_logits_NFV = log_NFV.exp_().scatter_(-1, target_NF1, right_NF1.exp() - (1 - how.smoothing))
    if how.smoothing:
        of_logits_NFV.sub_(how.smoothing / of_logits_NFV.shape[-1])
    if weight_N is not None:
        of_logits_NFV.mul_(weight_N[:, None, None])
    return _Judged(minimized_NF, losses_NF, hits_NF, of_logits_NFV.to(logits_NFV.dtype))


def loss_of_groups(loss_LF: Tensor, layout: TokenLayout) -> Tensor:
    """Means over the positions of each group, per fold: [L, F] -> [G, F]."""
    return torch.stack([part.mean(0) for part in torch.split(loss_LF, list(layout.groups))])


def terms_of_groups(loss_LF: Tensor, layout: TokenLayout, hits_LF: Tensor | None = None) -> dict[str, Tensor]:
    """`loss_of_groups` by the names that metrics have: loss_group0_fold1, and accuracy_group0_fold1 with hits.

    Args:
        loss_LF: loss of each token, over the batch.
        layout: of the tokens. Of an unfolded one (`TokenLayout.unfolded`) the folds are told apart all the same.
        hits_LF: share of the batch whose token was the likeliest.
    """
    terms: dict[str, Tensor] = {}
    layout = layout.folded()
    for name, value_LF in (("loss", loss_LF), ("accuracy", hits_LF)):
        if value_LF is not None:
            mean_GF = loss_of_groups(value_LF.view(-1, layout.folds), layout)
            places = [(group, fold) for group in range(len(layout.groups)) for fold in range(layout.folds)]
            terms |= {f"{name}_group{group}_fold{fold}": mean_GF[group, fold] for group, fold in places}
    return terms
