"""ImageFolder's discriminator: small heads over what a frozen network sees, DINO's as published (arXiv 2301.09515).

Shapes: B batch, D width of features, L positions.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import DinoConfig
from model.layers.crops import crops
from model.layers.frozen import FrozenHolder
from model.layers.grouped_norm import GroupedBatchNorm
from model.layers.random_numbers import uniform
from model.layers.spectral_norm import SpectralConv1d
from model.layers.timm_files import load_vision
from model.protocols import FeatureTeacher

_SLOPE = 0.2
_EPS = 1e-6
_CHANNEL_GROUPS = 32


class DinoDiscriminator(FrozenHolder):
    """A head for each depth at which features are taken, and a logit for each of its positions.

    Images that are larger than what the network sees are made smaller, or a part of them is judged, by chance.

    Raises:
        ValueError: if it is to judge by a teacher, and there is none.
    """

    def __init__(self, config: DinoConfig, image_size: int, teacher: FeatureTeacher | None = None) -> None:  # noqa: ARG002
        if config.needs_teacher and teacher is None:
            raise ValueError("discriminator of kind dino: this run has no teacher; name a network of timm's")
        network = teacher if config.needs_teacher else load_vision(config.network, config.file)
        super().__init__(cast("nn.Module", network), shared=config.needs_teacher)
        assert network is not None
        self.config = config
        self.heads = nn.ModuleList(_Head(width, config) for width in network.map_widths(config.taps))

    def forward(self, image_BCHW: Tensor, seed_B: Tensor | None = None) -> Tensor:
        """Images in [-1, 1] -> logits [B, N], float32, head by head.

        Raises:
            ValueError: in training, if crops are to be drawn and there are no seeds.
        """
        network = cast("FeatureTeacher", self.frozen)
        maps = network.maps(self._view(image_BCHW, network.size, seed_B), self.config.taps)
        logits = [head(map_BDL) for head, map_BDL in zip(self.heads, maps, strict=True)]
        return torch.cat(logits, dim=1).float()

    def _view(self, image_BCHW: Tensor, size: int, seed_B: Tensor | None) -> Tensor:
        """What is judged: the image made smaller, or a part of it."""
        spare, share = image_BCHW.shape[-1] - size, self.config.random_crop
        if spare <= 0:
            return image_BCHW  # the network makes it larger
        small_BCHW = F.interpolate(image_BCHW, size=(size, size), mode="area")
        if not self.training or share == 0:
            return small_BCHW
        if seed_B is None:
            raise ValueError("the discriminator's crops in training need seed_B, one number per image (or call eval())")
        chance_B, top_B, left_B = uniform(seed_B, 3).unbind()
        part_BCHW = crops(image_BCHW, (top_B * (spare + 1)).long(), (left_B * (spare + 1)).long(), size)
        return torch.where((chance_B < share)[:, None, None, None], part_BCHW, small_BCHW)


class _Head(nn.Module):
    """A layer at each position, a convolution over the ring of all positions beside a shortcut, and a logit."""

    def __init__(self, width: int, config: DinoConfig) -> None:
        super().__init__()
        self.first = _layer(width, 1, config)
        self.second = _layer(width, config.kernel, config)
        self.to_logit = SpectralConv1d(width, 1)

    def forward(self, map_BDL: Tensor) -> Tensor:
        x_BDL: Tensor = self.first(map_BDL)
        x_BDL = (self.second(x_BDL) + x_BDL) * math.sqrt(0.5)
        logits: Tensor = self.to_logit(x_BDL)
        return logits.squeeze(1)


def _layer(width: int, kernel: int, config: DinoConfig) -> nn.Sequential:
    norm: nn.Module
    if config.norm == "batch":
        norm = GroupedBatchNorm(width, config.group, _EPS)
    else:
        norm = nn.GroupNorm(math.gcd(width, _CHANNEL_GROUPS), width, _EPS)
    return nn.Sequential(SpectralConv1d(width, width, kernel), norm, nn.LeakyReLU(_SLOPE))
