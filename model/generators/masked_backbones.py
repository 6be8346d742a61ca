"""The transformers of masked generators: every position sees all others.

    bert   x = norm(x + attention(x)), x = norm(x + mlp(x)); a norm and dropout of the embeddings before the first
    uvit   x = x + attention(norm(x)), x = x + mlp(norm(x)); a middle block, and from each block before it a long skip
           to the one that stands as far behind it: x = linear([x, skip]); a norm at the end

What is random in training follows from each sample's seed: of a block three numbers, for attention's weights and for
the two branches (model/layers/random_numbers.py).

Shape suffixes: B batch, L positions with the class in front, C channels, H heads, D channels of a head.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config.masked import BertConfig, UViTConfig
from model.layers.attention import attend
from model.layers.dropout import dropped_sum, element_dropout
from model.layers.dropped_attention import attend_with_dropout
from model.layers.linear import Linear
from model.layers.precision import compute_dtype, without_autocast
from model.layers.random_numbers import split_seed

Seeds = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Of a block, int64 [B] each: for attention's weights, what attention adds, and what the MLP adds."""


class Backbone(Protocol):
    """Embeddings to what the head reads; an `nn.Module`."""

    blocks: nn.ModuleList

    def __call__(self, x_BLC: Tensor, seed_B: Tensor | None = None) -> Tensor:
        """Embeddings with their positions -> [B, L, C] in the dtype of the products.

        Args:
            x_BLC: of the class and all positions.
            seed_B: int64, for dropout; needed in training where there is any.
        """
        ...

    def read(self, x_BLC: Tensor) -> Tensor:
        """What the head reads of some positions of that, `[..., C]`."""
        ...


class Norm(nn.LayerNorm):
    """LayerNorm whose sums are float32 and whose output has its input's dtype, under autocast too."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last dimension."""
        with without_autocast(x.device):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class Branches(nn.Module):
    """The parameters of a block: attention over all positions, and an MLP."""

    def __init__(self, config: BertConfig | UViTConfig, norm_eps: float, *, qkv_bias: bool) -> None:
        super().__init__()
        width, hidden = config.width, round(config.width * config.mlp_ratio)
        self.heads, self.dropout, self.attention_dropout = config.heads, config.dropout, config.attention_dropout
        self.qkv, self.proj = Linear(width, 3 * width, bias=qkv_bias), Linear(width, width)
        self.fc1, self.fc2 = Linear(width, hidden), Linear(hidden, width)
        self.norm1, self.norm2 = Norm(width, eps=norm_eps), Norm(width, eps=norm_eps)

    def attention(self, x_BLC: Tensor, seed_B: Tensor | None) -> Tensor:
        """What attention adds, before dropout."""
        q_BLHD, k_BLHD, v_BLHD = self.qkv(x_BLC).unflatten(-1, (3, self.heads, -1)).unbind(2)
        if self.training and self.attention_dropout:
            mixed_BLHD = attend_with_dropout(q_BLHD, k_BLHD, v_BLHD, None, seed_B, self.attention_dropout)
        else:
            mixed_BLHD = attend(q_BLHD, k_BLHD, v_BLHD)
        out_BLC: Tensor = self.proj(mixed_BLHD.flatten(2))
        return out_BLC

    def mlp(self, x_BLC: Tensor) -> Tensor:
        """What the MLP adds, before dropout."""
        out_BLC: Tensor = self.fc2(F.gelu(self.fc1(x_BLC)))
        return out_BLC

    def sum(self, x_BLC: Tensor, branch_BLC: Tensor, seed_B: Tensor | None) -> Tensor:
        """The residual stream and what a branch adds, with dropout of that in training."""
        if self.training and self.dropout:
            return dropped_sum(x_BLC, branch_BLC, seed_B, self.dropout)
        return x_BLC + branch_BLC


class BertBlock(Branches):
    """Sums, then norms."""

    def forward(self, x_BLC: Tensor, seeds: Seeds) -> Tensor:
        """One block."""
        x_BLC = self.norm1(self.sum(x_BLC, self.attention(x_BLC, seeds[0]), seeds[1]))
        out_BLC: Tensor = self.norm2(self.sum(x_BLC, self.mlp(x_BLC), seeds[2]))
        return out_BLC


class UViTBlock(Branches):
    """Norms, then sums; with a long skip before both, if asked."""

    def __init__(self, config: UViTConfig, *, skips: bool) -> None:
        super().__init__(config, 1e-5, qkv_bias=False)
        self.skip = Linear(2 * config.width, config.width) if skips else None

    def forward(self, x_BLC: Tensor, seeds: Seeds, skipped_BLC: Tensor | None = None) -> Tensor:
        """One block."""
        if self.skip is not None:
            assert skipped_BLC is not None
            x_BLC = self.skip(torch.cat((x_BLC, skipped_BLC), dim=-1))
        x_BLC = self.sum(x_BLC, self.attention(self.norm1(x_BLC), seeds[0]), seeds[1])
        return self.sum(x_BLC, self.mlp(self.norm2(x_BLC)), seeds[2])


class Bert(nn.Module):
    """BERT's encoder (arXiv 1810.04805) without its types of tokens and its pooler, as published by TiTok."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.norm, self.dropout = Norm(config.width, eps=1e-12), config.dropout
        self.blocks = nn.ModuleList(BertBlock(config, 1e-12, qkv_bias=True) for _ in range(config.depth))

    def forward(self, x_BLC: Tensor, seed_B: Tensor | None = None) -> Tensor:
        """See `Backbone`."""
        seeds = _block_seeds(seed_B, len(self.blocks))
        x_BLC = self.norm(x_BLC).to(compute_dtype(self.norm.weight))
        if self.training and self.dropout:
            x_BLC = element_dropout(x_BLC, seeds[-1][0], self.dropout)
        for block, given in zip(self.blocks, seeds, strict=False):
            x_BLC = block(x_BLC, given)
        return x_BLC

    def read(self, x_BLC: Tensor) -> Tensor:
        """As it is: the last block ends with a norm."""
        return x_BLC


class UViT(nn.Module):
    """U-ViT (arXiv 2209.12152) as published by TiTok."""

    def __init__(self, config: UViTConfig) -> None:
        super().__init__()
        self.middle = config.depth // 2
        self.blocks = nn.ModuleList(UViTBlock(config, skips=i > self.middle) for i in range(config.depth + 1))
        self.norm = Norm(config.width, eps=1e-5)

    def forward(self, x_BLC: Tensor, seed_B: Tensor | None = None) -> Tensor:
        """See `Backbone`."""
        seeds = _block_seeds(seed_B, len(self.blocks))
        kept: list[Tensor] = []
        x_BLC = x_BLC.to(compute_dtype(self.norm.weight))
        for i, block in enumerate(self.blocks):
            x_BLC = block(x_BLC, seeds[i], kept.pop() if i > self.middle else None)
            if i < self.middle:
                kept.append(x_BLC)
        return x_BLC

    def read(self, x_BLC: Tensor) -> Tensor:
        """Normalized."""
        out_BLC: Tensor = self.norm(x_BLC)
        return out_BLC


def build_backbone(config: BertConfig | UViTConfig) -> Bert | UViT:
    """A backbone of the config's kind."""
    return Bert(config) if isinstance(config, BertConfig) else UViT(config)


def _block_seeds(seed_B: Tensor | None, blocks: int) -> list[Seeds]:
    """Those of each block, and three more."""
    if seed_B is None:
        return [(None, None, None)] * (blocks + 1)
    seed_NB = split_seed(seed_B, 3 * (blocks + 1)).unbind()
    return [(seed_NB[3 * i], seed_NB[3 * i + 1], seed_NB[3 * i + 2]) for i in range(blocks + 1)]
