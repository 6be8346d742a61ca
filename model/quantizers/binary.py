"""Codes that are signs: lookup-free quantization (LFQ, arXiv 2310.05737), and binary spherical (BSQ, 2406.07548)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import BinaryConfig
from model.protocols import Search
from model.quantizers.entropy import SoftQuantizer, binary_entropy


class BinaryQuantizer(SoftQuantizer):
    """Each channel becomes plus or minus `BinaryConfig.length`; latents of BSQ are first brought to length one.

    Shapes: B batch, K vectors, C channels, which are the bits of an id: the first channel is the lowest bit.
    """

    CODEBOOK: ClassVar[str | None] = None

    def __init__(self, config: BinaryConfig) -> None:
        super().__init__()
        self.config: BinaryConfig = config

    def project(self, vector_BKC: Tensor) -> Tensor:
        """The vectors, of BSQ at length one."""
        return F.normalize(vector_BKC, dim=-1) if self.config.unit_length else vector_BKC

    def search(self) -> Search:
        """Bits are set where a channel is positive."""

        @torch.no_grad()
        def choose(vector_BKC: Tensor) -> Tensor:
            return ((vector_BKC > 0).long() << self._places(vector_BKC.device)).sum(-1)

        return choose

    def codes(self, tokens_BK: Tensor) -> Tensor:
        """Ids -> codes [B, K, C], float32."""
        bits_BKC = tokens_BK[..., None] >> self._places(tokens_BK.device) & 1
        return (bits_BKC * 2 - 1) * self.config.length

    def _places(self, device: torch.device) -> Tensor:
        return torch.arange(self.config.bits, device=device)

    # SoftAssignment: of each bit by itself. 2 ** bits shares would be too many, and their entropy, if bits are
    # independent, is the sum of the bits' entropies.

    def shares(self, vector_BKC: Tensor) -> Tensor:
        """Probability of each bit, [B, K, C]: the squared distances to both values differ by 4 * x * length."""
        return torch.sigmoid(4 * self.config.length / self.config.entropy_temperature * vector_BKC)

    def entropy(self, share_C: Tensor) -> Tensor:
        """Sum over the bits."""
        return binary_entropy(share_C).sum(-1)
