"""Token ids to vectors: of each position the sum over its folds, with a table for each.

Shape suffixes: B batch, L positions, F folds, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.layout import TokenLayout


class FoldEmbedding(nn.Module):
    """Embeds the tokens of a position. One fold has exactly the published table of its network.

    Args:
        layout: of the tokens.
        width: channels.
        extra: rows of each fold's table behind its codes, for ids that are no codes (a mask).
    """

    def __init__(self, layout: TokenLayout, width: int, extra: int = 0) -> None:
        super().__init__()
        self.rows = tuple(codes + extra for codes in layout.vocabularies)
        self.weight = nn.Parameter(torch.empty(sum(self.rows), width))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, tokens_BLF: Tensor) -> Tensor:
        """Ids -> [B, L, C], in the weights' dtype."""
        if len(self.rows) == 1:  # the gradient of a part of the table would be copied
            return F.embedding(tokens_BLF[..., 0], self.weight)
        folds = zip(torch.split(self.weight, list(self.rows)), tokens_BLF.unbind(-1), strict=True)
        parts = [F.embedding(tokens_BL, table) for table, tokens_BL in folds]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total
