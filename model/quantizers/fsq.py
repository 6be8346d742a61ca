"""Finite scalar quantization (FSQ, arXiv 2309.15505): each channel is bounded, and rounded to one of a few levels."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from model.config import FiniteScalarConfig
from model.protocols import Search


class FiniteScalarQuantizer(nn.Module):
    """Levels of a channel lie evenly from -1 to 1; of an even number, one of the two in the middle is 0 (as published).

    Shapes: B batch, K vectors, C channels.
    """

    CODEBOOK: ClassVar[str | None] = None
    soft: ClassVar[None] = None

    def __init__(self, config: FiniteScalarConfig) -> None:
        super().__init__()
        self.config = config

    def project(self, vector_BKC: Tensor) -> Tensor:
        """Each channel within its levels: a tanh, moved by half a level where their number is even."""
        return torch.stack(
            [_bounded(*each) for each in zip(vector_BKC.unbind(-1), self.config.levels, strict=True)], -1
        )

    def search(self) -> Search:
        """Each channel's nearest level is a digit of the id, the first channel's the lowest."""

        @torch.no_grad()
        def choose(vector_BKC: Tensor) -> Tensor:
            tokens_BK, base = torch.zeros_like(vector_BKC[..., 0], dtype=torch.int64), 1
            for value_BK, levels in zip(vector_BKC.unbind(-1), self.config.levels, strict=True):
                half = levels // 2
                tokens_BK += base * (value_BK * half + half).round().clamp(0, levels - 1).long()
                base *= levels
            return tokens_BK

        return choose

    def codes(self, tokens_BK: Tensor) -> Tensor:
        """Ids -> codes [B, K, C], float32."""
        values, base = [], 1
        for levels in self.config.levels:
            values.append((tokens_BK // base % levels).float() / (levels // 2) - 1)
            base *= levels
        return torch.stack(values, -1)


def _bounded(value_BK: Tensor, levels: int) -> Tensor:
    reach, offset = (levels - 1) * (1 - 1e-3) / 2, 0.0 if levels % 2 else 0.5
    return (torch.tanh(value_BK + math.tan(offset / reach)) * reach - offset) / (levels // 2)
