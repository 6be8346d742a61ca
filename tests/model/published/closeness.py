"""How near to what was computed at home is near enough (tests/parity/README.md)."""

from __future__ import annotations

import torch
from torch import Tensor


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Absolute: 1e-4 of latents, sums and logits; 1e-3 of images."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)
