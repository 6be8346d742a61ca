"""Vector quantization: the nearest code of a learned codebook (arXiv 1711.00937)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import VectorConfig
from model.protocols import Search
from model.quantizers.entropy import SoftQuantizer, categorical_entropy


class VectorQuantizer(SoftQuantizer):
    """Codes are looked up by cosine similarity or by distance, and put out as they are or at length one.

    Shapes: B batch, K vectors, C channels, V codes.
    """

    CODEBOOK: ClassVar[str | None] = "codebook"

    def __init__(self, config: VectorConfig) -> None:
        super().__init__()
        self.config: VectorConfig = config
        self._cosine = config.lookup == "cosine" or config.unit_codes
        self.codebook = nn.Parameter(torch.empty(config.codebook_size, config.code_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Codes uniform in a cube, and then on the unit sphere if so asked; they are not held there during training."""
        with torch.no_grad():
            nn.init.uniform_(self.codebook, -1 / len(self.codebook), 1 / len(self.codebook))
            if self.config.initialization == "sphere":
                self.codebook.copy_(F.normalize(self.codebook, dim=1))

    def project(self, vector_BKC: Tensor) -> Tensor:
        """The vectors, at length one if codes are."""
        return F.normalize(vector_BKC, dim=-1) if self.config.unit_codes else vector_BKC

    def search(self) -> Search:
        """The look-up in the codes as they are now: vectors [B, K, C] -> ids [B, K], int64."""
        cosine, codebook_VC = self._cosine, self.codebook.detach().float()
        table_CV = (F.normalize(codebook_VC, dim=1) if cosine else codebook_VC).t()
        half_square_V = table_CV.square().sum(0) / 2

        @torch.no_grad()
        def choose(vector_BKC: Tensor) -> Tensor:
            if cosine:
                return (F.normalize(vector_BKC, dim=-1) @ table_CV).argmax(-1)
            # |x - e|^2 / 2 without |x|^2 / 2, which is the same for all codes
            return (half_square_V - vector_BKC @ table_CV).argmin(-1)

        return choose

    def codes(self, tokens_BK: Tensor) -> Tensor:
        """Ids -> codes [B, K, C], float32, with gradients to the codebook."""
        codes_BKC = F.embedding(tokens_BK, self.codebook.float())
        return F.normalize(codes_BKC, dim=-1) if self.config.unit_codes else codes_BKC

    # SoftAssignment

    def shares(self, vector_BKC: Tensor) -> Tensor:
        """Probability of each code, [B, K, V], with gradients to vectors and codes."""
        codebook_VC = self.codebook.float()
        if self._cosine:
            vector_BKC, codebook_VC = F.normalize(vector_BKC, dim=-1), F.normalize(codebook_VC, dim=1)
        # minus the squared distance, without the vector's own square, which no softmax sees
        nearness_BKV = 2 * vector_BKC @ codebook_VC.t() - codebook_VC.square().sum(1)
        return (nearness_BKV / self.config.entropy_temperature).softmax(-1)

    def entropy(self, share_V: Tensor) -> Tensor:
        """Over the codes."""
        return categorical_entropy(share_V)
