"""Halving a map after a blur, so that small shifts of an image change little (arXiv 1904.11486)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TAPS = (1.0, 3.0, 3.0, 1.0)


def same_padding(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after a side so that ceil(side / stride) positions come out; one more after, where odd."""
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


class BlurredHalf(nn.Module):
    """Every second position of a map that was blurred by the square of `taps`, normalized to a sum of 1."""

    kernel: Tensor

    def __init__(self, taps: tuple[float, ...] = TAPS) -> None:
        super().__init__()
        row = torch.tensor(taps)
        kernel = row[:, None] * row
        self.register_buffer("kernel", kernel / kernel.sum(), persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, ceil(H / 2), ceil(W / 2)], zeros outside."""
        channels, side = x_BCHW.shape[1], len(self.kernel)
        columns, rows = same_padding(x_BCHW.shape[3], side, 2), same_padding(x_BCHW.shape[2], side, 2)
        weight = self.kernel.to(x_BCHW.dtype).expand(channels, 1, side, side)
        return F.conv2d(F.pad(x_BCHW, (*columns, *rows)), weight, stride=2, groups=channels)
