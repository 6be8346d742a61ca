"""A quantizer of vectors that stand in a row: what tokenizers without a grid have (TiTok, arXiv 2406.07550).

Shapes: B batch, K vectors, C channels of a code, V codes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.config import QuantizerConfig
from model.families import build_quantizer
from model.layers.precision import without_autocast
from model.protocols import Terms


class QuantizedVectors(NamedTuple):
    """What quantization gives in training."""

    vectors_BKC: Tensor
    """Codes, float32; their gradient goes straight through to the vectors."""
    tokens_BK: Tensor
    """Ids, int64."""
    losses: Terms
    """Weighted: "codebook", "commitment" and "sample_entropy", each where the quantizer has it."""
    means: Terms
    """What `FlatQuantizer.losses_of_means` needs."""
    hits: Terms
    """Times that each code was chosen, int64 [1, V], by codebook (`FlatQuantizer.codebooks`)."""
    seen: Terms
    """What codes were looked up for, float32 [B * K, C], by codebook."""


class FlatQuantizer(nn.Module):
    """Any quantizer around rows of vectors. All of it is computed in float32, whatever the precision around it."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.quantizer = build_quantizer(config)

    @property
    def codebooks(self) -> dict[str, tuple[int, int]]:
        """One group and its codes, by the name of the parameter that is the codebook; of fixed codes there is none."""
        name = self.quantizer.CODEBOOK
        return {} if name is None else {f"quantizer.{name}": (1, self.config.vocabulary)}

    def forward(self, vector_BKC: Tensor) -> QuantizedVectors:
        """Quantize in training; losses are means over vectors and channels."""
        with without_autocast(vector_BKC.device):
            projected_BKC = self.quantizer.project(vector_BKC.float())
            fixed_BKC = projected_BKC.detach()
            tokens_BK = self.quantizer.search()(fixed_BKC)
            codes_BKC = self.quantizer.codes(tokens_BK)
            entropies, means = self._entropy(projected_BKC)
            return QuantizedVectors(
                vectors_BKC=projected_BKC + (codes_BKC.detach() - fixed_BKC),
                tokens_BK=tokens_BK,
                losses=self._distances(projected_BKC, codes_BKC) | entropies,
                means=means,
                hits={name: self._count(tokens_BK) for name in self.codebooks},
                seen={name: fixed_BKC.flatten(0, 1) for name in self.codebooks},
            )

    def _distances(self, projected_BKC: Tensor, codes_BKC: Tensor) -> Terms:
        losses = {}
        if self.quantizer.CODEBOOK is not None:
            losses["codebook"] = (codes_BKC - projected_BKC.detach()).square().mean()
        if self.config.commitment:
            losses["commitment"] = self.config.commitment * (codes_BKC.detach() - projected_BKC).square().mean()
        return losses

    def _entropy(self, projected_BKC: Tensor) -> tuple[Terms, Terms]:
        soft = self.quantizer.soft
        if soft is None:
            return {}, {}
        share_BKN = soft.shares(projected_BKC)
        losses = {"sample_entropy": soft.entropy_weight * soft.entropy(share_BKN).mean()}
        return losses, {"code_shares": share_BKN.mean((0, 1))}

    def losses_of_means(self, means: Terms) -> Terms:
        """Of the global means: minus the entropy of the mean shares, weighted."""
        soft = self.quantizer.soft
        if soft is None:
            return {}
        with without_autocast(means["code_shares"].device):
            return {"code_entropy": -soft.entropy_weight * soft.entropy(means["code_shares"].float())}

    def _count(self, tokens_BK: Tensor) -> Tensor:
        # torch.bincount waits for the device: it asks for the largest number first.
        hits_V = tokens_BK.new_zeros(self.config.vocabulary)
        return hits_V.index_add_(0, tokens_BK.flatten(), torch.ones_like(tokens_BK).flatten())[None]

    @torch.no_grad()
    def tokenize(self, vector_BKC: Tensor) -> Tensor:
        """Ids [B, K], int64, of vectors."""
        with without_autocast(vector_BKC.device):
            return self.quantizer.search()(self.quantizer.project(vector_BKC.float()))

    def dequantize(self, tokens_BK: Tensor) -> Tensor:
        """Codes [B, K, C], float32, of ids."""
        with without_autocast(tokens_BK.device):
            return self.quantizer.codes(tokens_BK.long())
