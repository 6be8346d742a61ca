"""Parts of images at places of their own, without waiting for the device.

Shapes: B batch, C channels, H = W side.
"""

from __future__ import annotations

from torch import Tensor


def crops(image_BCHW: Tensor, top_B: Tensor, left_B: Tensor, size: int) -> Tensor:
    """The square of each image whose first row and column are given, [B, C, size, size]."""
    batch, channels, _, width = image_BCHW.shape
    offset = left_B.new_ones(size).cumsum(0) - 1
    rows = (top_B[:, None] + offset)[:, None, :, None].expand(batch, channels, size, width)
    columns = (left_B[:, None] + offset)[:, None, None, :].expand(batch, channels, size, size)
    return image_BCHW.gather(2, rows).gather(3, columns)
