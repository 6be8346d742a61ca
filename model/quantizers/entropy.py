"""Entropies of shares, in nats, with finite gradients where a share is 0 or 1."""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = torch.finfo(torch.float32).tiny


def categorical_entropy(share_N: Tensor) -> Tensor:
    """Of the probabilities of N codes, over the last axis."""
    return _surprise(share_N).sum(-1)


def binary_entropy(share: Tensor) -> Tensor:
    """Of a bit that is set with each of these probabilities."""
    return _surprise(share) + _surprise(1 - share)


def _surprise(share: Tensor) -> Tensor:
    return -share * share.clamp_min(_TINY).log()
