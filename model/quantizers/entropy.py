"""The entropy term of quantizers: which of them have one, and entropies of shares.

Entropies are in nats, with finite gradients where a share is 0 or 1.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from model.config.quantizers import SoftConfig
from model.protocols import SoftAssignment

_TINY = torch.finfo(torch.float32).tiny


def categorical_entropy(share_N: Tensor) -> Tensor:
    """Of the probabilities of N codes, over the last axis."""
    return _surprise(share_N).sum(-1)


def binary_entropy(share: Tensor) -> Tensor:
    """Of a bit that is set with each of these probabilities."""
    return _surprise(share) + _surprise(1 - share)


class SoftQuantizer(nn.Module):
    """What all quantizers with an entropy term have; shares and their entropy are each one's own."""

    config: SoftConfig

    @property
    def soft(self) -> SoftAssignment | None:
        """The entropy term, unless its weight is 0."""
        return cast("SoftAssignment", self) if self.config.entropy else None

    @property
    def entropy_weight(self) -> float:
        """Of the entropy term."""
        return self.config.entropy

    @property
    def entropy_of_cells(self) -> bool:
        """Of what is looked up, or of all positions of the grid."""
        return self.config.entropy_positions == "cells"


def _surprise(share: Tensor) -> Tensor:
    return -share * share.clamp_min(_TINY).log()
