"""Self-attention with dropout between positions, which follows from each sample's seed.

No kernel of attention takes such a mask of zeros, so that products and probabilities are computed here; they and the
mask are made again in backward, and what is kept is queries, keys and values. Between the products there is one kernel
on a GPU, forward and backward (fused.py).

Shape suffixes: B batch, L query positions, M key positions, H heads, D channels of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.layers.dropout import keep_factors, needed
from model.layers.fused import fused
from model.layers.precision import without_autocast
from model.layers.self_attention import LayerCache, SelfAttention
from model.layers.visibility import GroupCausal


def attend_with_dropout(
    q_BLHD: Tensor, k_BMHD: Tensor, v_BMHD: Tensor, groups: GroupCausal | None, seed_B: Tensor | None, rate: float
) -> Tensor:
    """Softmax attention as `attend`, whose probabilities are dropped one by one, and scaled up otherwise.

    Args:
        q_BLHD: queries.
        k_BMHD: keys.
        v_BMHD: values.
        groups: who sees whom; None lets every query see every key.
        seed_B: int64, a random number per sample.
        rate: share of the probabilities that are dropped.

    Raises:
        ValueError: if there is no seed to decide by.
    """
    seed_B = needed(seed_B)
    mask_LM = None if groups is None or groups.is_full else groups.mask(q_BLHD.device)
    out_BLHD: Tensor = _DroppedAttention.apply(q_BLHD, k_BMHD, v_BMHD, mask_LM, seed_B, rate)
    return out_BLHD


class DroppedSelfAttention(SelfAttention):
    """`SelfAttention` that drops out between positions where it is given a seed and a rate."""

    def forward(
        self,
        x_BLC: Tensor,
        groups: GroupCausal | None = None,
        *,
        rotation_LD2: Tensor | None = None,
        cache: LayerCache | None = None,
        seed_B: Tensor | None = None,
        rate: float = 0.0,
    ) -> Tensor:
        """As `SelfAttention.forward`; see `attend_with_dropout`."""
        if rate == 0:
            return super().forward(x_BLC, groups, rotation_LD2=rotation_LD2, cache=cache)
        assert cache is None, "nothing is dropped in sampling"
        qkv_BL3HD = self.qkv(x_BLC).unflatten(-1, (3, self.heads, self.head_dim))
        q_BLHD, k_BLHD, v_BLHD = self._rotated(qkv_BL3HD, rotation_LD2)
        out: Tensor = self.proj(attend_with_dropout(q_BLHD, k_BLHD, v_BLHD, groups, seed_B, rate).flatten(2))
        return out


def _probabilities(logits_BHLM: Tensor, mask_LM: Tensor | None, size: int) -> Tensor:
    """Of each key for each query [B, H, L, M], from their products, in their dtype; the softmax is float32."""
    logits_BHLM = logits_BHLM / math.sqrt(size)
    if mask_LM is not None:
        logits_BHLM = logits_BHLM.masked_fill_(~mask_LM, float("-inf"))
    return logits_BHLM.softmax(-1, dtype=torch.float32).to(logits_BHLM.dtype)


@fused
def _dropped(logits_BHLM: Tensor, mask_LM: Tensor | None, size: int, seed_B: Tensor, rate: float) -> Tensor:
    """Probabilities, dropped or scaled up."""
    odds_BHLM = _probabilities(logits_BHLM, mask_LM, size)
    return odds_BHLM.mul_(keep_factors(odds_BHLM.shape[1:], seed_B, rate))


@fused
def _through_dropped(
    logits_BHLM: Tensor, of_dropped_BHLM: Tensor, mask_LM: Tensor | None, size: int, seed_B: Tensor, rate: float
) -> tuple[Tensor, Tensor]:
    """The same again, and the gradients of the products from those of what was dropped."""
    odds_BHLM = _probabilities(logits_BHLM, mask_LM, size)
    kept_BHLM = keep_factors(odds_BHLM.shape[1:], seed_B, rate).to(odds_BHLM.dtype)
    of_odds = of_dropped_BHLM * kept_BHLM
    of_odds = of_odds.sub_((of_odds * odds_BHLM).sum(-1, keepdim=True))
    return odds_BHLM * kept_BHLM, of_odds.mul_(odds_BHLM).div_(math.sqrt(size))


class _DroppedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_BLHD: Tensor,
        k_BMHD: Tensor,
        v_BMHD: Tensor,
        mask_LM: Tensor | None,
        seed_B: Tensor,
        rate: float,
    ) -> Tensor:
        with without_autocast(q_BLHD.device):
            # Products want a head's positions side by side: that order is made once, and kept.
            q, k, v = (each.transpose(1, 2).contiguous() for each in (q_BLHD, k_BMHD, v_BMHD))
            ctx.save_for_backward(q, k, v, mask_LM, seed_B)
            ctx.rate = rate
            return (_dropped(q @ k.transpose(2, 3), mask_LM, q.shape[-1], seed_B, rate) @ v).transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out_BLHD: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask_LM, seed_B = ctx.saved_tensors
        with without_autocast(q.device):
            of_out = of_out_BLHD.transpose(1, 2).contiguous()
            of_dropped_BHLM = of_out @ v.transpose(2, 3)
            dropped_BHLM, of_logits = _through_dropped(
                q @ k.transpose(2, 3), of_dropped_BHLM, mask_LM, q.shape[-1], seed_B, ctx.rate
            )
            of_v = dropped_BHLM.transpose(2, 3) @ of_out
            of_q, of_k = of_logits @ k, of_logits.transpose(2, 3) @ q
        return of_q.transpose(1, 2), of_k.transpose(1, 2), of_v.transpose(1, 2), None, None, None
