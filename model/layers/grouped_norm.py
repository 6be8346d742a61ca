"""Batch normalization by groups of images, so that it is the same however a batch is spread over workers.

Shapes: B batch, C channels, L positions (of a sequence, or of a map: H * W).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def groups_of(batch: int, most: int) -> int:
    """Number of equal groups of consecutive images, of at most so many: in eights, 16 are 2, 10 are 2, 11 are 11."""
    return next(groups for groups in range(-(-batch // most), batch + 1) if batch % groups == 0)


class GroupedBatchNorm(nn.Module):
    """Normalizes each channel by mean and biased variance of a group of images and all positions, always.

    There are no running statistics, in training or after: it is for networks of which only the verdict on a batch is
    wanted.
    """

    def __init__(self, channels: int, group: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.group, self.eps = group, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x_BCL: Tensor) -> Tensor:
        """Maps [B, C, H, W] or sequences [B, C, L], normalized."""
        groups = groups_of(len(x_BCL), self.group)
        if groups == 1:
            return F.batch_norm(x_BCL, None, None, self.weight, self.bias, training=True, eps=self.eps)
        # The groups side by side are channels of a smaller batch.
        x_GNCL = x_BCL.reshape(groups, -1, *x_BCL.shape[1:])
        beside = x_GNCL.transpose(0, 1).flatten(1, 2)
        weight, bias = self.weight.repeat(groups), self.bias.repeat(groups)
        beside = F.batch_norm(beside, None, None, weight, bias, training=True, eps=self.eps)
        x_NGCL = beside.reshape(len(beside), groups, *x_BCL.shape[1:])
        return x_NGCL.transpose(0, 1).reshape(x_BCL.shape)
