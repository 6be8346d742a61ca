"""Errors of pixels."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

PixelLoss = Literal["l2", "l1"]


def pixel_loss(reconstruction_BCHW: Tensor, image_BCHW: Tensor, loss: PixelLoss = "l2") -> Tensor:
    """Mean squared (l2) or absolute (l1) error, a scalar, float32, of the reconstruction as it is, not clamped."""
    of = F.mse_loss if loss == "l2" else F.l1_loss
    return of(reconstruction_BCHW.float(), image_BCHW.float())
