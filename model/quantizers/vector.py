"""Vector quantization: the nearest code of a learned codebook (arXiv 1711.00937)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import VectorConfig
from model.protocols import Search


class VectorQuantizer(nn.Module):
    """Codes are looked up by cosine similarity, and put out as they are.

    Shapes: B batch, K vectors, C channels, V codes.
    """

    def __init__(self, config: VectorConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook = nn.Parameter(torch.empty(config.codebook_size, config.code_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Codes uniform in the cube, then on the unit sphere; they are not held there during training."""
        with torch.no_grad():
            nn.init.uniform_(self.codebook, -1 / len(self.codebook), 1 / len(self.codebook))
            self.codebook.copy_(F.normalize(self.codebook, dim=1))

    def search(self) -> Search:
        """The look-up in the codes as they are now: vectors [B, K, C] -> ids [B, K], int64."""
        directions_CV = F.normalize(self.codebook.detach().float(), dim=1).t()

        @torch.no_grad()
        def choose(vector_BKC: Tensor) -> Tensor:
            return (F.normalize(vector_BKC, dim=-1) @ directions_CV).argmax(-1)

        return choose

    def codes(self, tokens_BK: Tensor) -> Tensor:
        """Ids -> codes [B, K, C], float32, with gradients to the codebook."""
        return F.embedding(tokens_BK, self.codebook.float())
