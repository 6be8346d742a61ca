"""Self-attention with dropout between positions, which follows from each sample's seed.

No fused kernel takes such a mask of zeros, so that logits and probabilities are computed here; they and the mask are
made again in backward, and what is kept is queries, keys, values and the output, as a fused kernel does.

Shape suffixes: B batch, L query positions, M key positions, H heads, D channels of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.layers.precision import without_autocast
from model.layers.random_numbers import keep_factors
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
    if seed_B is None:
        raise ValueError("dropout in training needs seed_B, one random number per sample (or call eval())")
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


def _probabilities(q_BHLD: Tensor, k_BHMD: Tensor, mask_LM: Tensor | None) -> Tensor:
    """Of each key for each query [B, H, L, M], in the queries' dtype; the softmax is float32."""
    logits_BHLM = q_BHLD @ k_BHMD.transpose(2, 3) / math.sqrt(q_BHLD.shape[-1])
    if mask_LM is not None:
        logits_BHLM = logits_BHLM.masked_fill_(~mask_LM, float("-inf"))
    return logits_BHLM.softmax(-1, dtype=torch.float32).to(q_BHLD.dtype)


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
            q, k, v = (each.transpose(1, 2) for each in (q_BLHD, k_BMHD, v_BMHD))
            dropped_BHLM = _probabilities(q, k, mask_LM)
            dropped_BHLM.mul_(keep_factors(dropped_BHLM.shape[1:], seed_B, rate))
            ctx.save_for_backward(q_BLHD, k_BMHD, v_BMHD, mask_LM, seed_B)
            ctx.rate = rate
            return (dropped_BHLM @ v).transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out_BLHD: Tensor) -> tuple[Tensor | None, ...]:
        q_BLHD, k_BMHD, v_BMHD, mask_LM, seed_B = ctx.saved_tensors
        with without_autocast(q_BLHD.device):
            q, k, v, of_out = (each.transpose(1, 2) for each in (q_BLHD, k_BMHD, v_BMHD, of_out_BLHD))
            odds_BHLM = _probabilities(q, k, mask_LM)
            kept_BHLM = keep_factors(odds_BHLM.shape[1:], seed_B, ctx.rate).to(odds_BHLM.dtype)
            of_v = (odds_BHLM * kept_BHLM).transpose(2, 3) @ of_out
            of_odds = (of_out @ v.transpose(2, 3)).mul_(kept_BHLM)
            of_odds = of_odds.sub_((of_odds * odds_BHLM).sum(-1, keepdim=True))
            of_logits = of_odds.mul_(odds_BHLM).div_(math.sqrt(q.shape[-1]))
            of_q, of_k = of_logits @ k, of_logits.transpose(2, 3) @ q
        return of_q.transpose(1, 2), of_k.transpose(1, 2), of_v.transpose(1, 2), None, None, None
