"""StyleGAN's discriminator with blurred downsampling (arXiv 1912.04958), of the sizes of MaskGIT's."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from model.config import StyleGanConfig
from model.layers.blur import BlurredHalf
from model.layers.grouped_norm import groups_of
from model.layers.precision import without_autocast

_SLOPE = 0.2
_LAST = 8  # maps of a side from here on are halved
_FULL_WIDTH = 32  # largest side at which maps have all channels


class StyleGanDiscriminator(nn.Module):
    """Residual blocks, each of which halves the map, until its side is 4 to 7; then one logit for the whole image.

    Raises:
        ValueError: if images are smaller than 4 pixels.
    """

    def __init__(self, config: StyleGanConfig, image_size: int, teacher: object = None) -> None:  # noqa: ARG002
        super().__init__()
        if image_size < 4:
            raise ValueError(f"a stylegan discriminator takes images of 4 pixels or more, not of {image_size}")
        side, width = image_size, _width(config.width, image_size)
        self.first = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.LeakyReLU(_SLOPE))
        blocks = []
        while side >= _LAST:
            side = -(-side // 2)
            wide = _width(config.width, side)
            blocks.append(_Block(width, wide))
            width = wide
        self.blocks = nn.Sequential(*blocks)
        self.deviation_group = config.deviation_group
        extra = 1 if config.deviation_group else 0
        self.last = nn.Sequential(nn.Conv2d(width + extra, config.width, 3, padding=1), nn.LeakyReLU(_SLOPE))
        self.to_logit = nn.Sequential(
            nn.Linear(config.width * side**2, config.width), nn.LeakyReLU(_SLOPE), nn.Linear(config.width, 1)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights by Glorot and Bengio's uniform rule, biases zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, image_BCHW: Tensor, seed_B: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Images in [-1, 1], of the size that it was made for -> logits [B, 1], float32."""
        x_BCHW: Tensor = self.blocks(self.first(image_BCHW))
        if self.deviation_group:
            x_BCHW = with_deviation(x_BCHW, self.deviation_group)
        logits: Tensor = self.to_logit(self.last(x_BCHW).flatten(1))
        return logits.float()


class _Block(nn.Module):
    """Two convolutions with a blurred half between them, beside a shortcut; the sum keeps its deviation."""

    def __init__(self, narrow: int, wide: int) -> None:
        super().__init__()
        self.halve = BlurredHalf()
        self.act = nn.LeakyReLU(_SLOPE)
        self.conv1 = nn.Conv2d(narrow, narrow, 3, padding=1)
        self.conv2 = nn.Conv2d(narrow, wide, 3, padding=1)
        self.shortcut = nn.Conv2d(narrow, wide, 1, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        branch_BCHW = self.act(self.conv2(self.halve(self.act(self.conv1(x_BCHW)))))
        added: Tensor = (branch_BCHW + self.shortcut(self.halve(x_BCHW))) * math.sqrt(0.5)
        return added


def with_deviation(x_BCHW: Tensor, group: int, eps: float = 1e-8) -> Tensor:
    """A further channel: the deviation of each feature over a group of images, averaged (arXiv 1710.10196).

    A map of images that are all alike so shows it, which one image alone cannot.
    """
    groups = groups_of(len(x_BCHW), group)
    with without_autocast(x_BCHW.device):
        x_GNCHW = x_BCHW.float().reshape(groups, -1, *x_BCHW.shape[1:])
        deviation_G = (x_GNCHW.var(1, unbiased=False) + eps).sqrt().mean((1, 2, 3))
        per_image_B = deviation_G.repeat_interleave(len(x_BCHW) // groups, output_size=len(x_BCHW))
    channel_BCHW = per_image_B.to(x_BCHW.dtype)[:, None, None, None].expand(-1, 1, *x_BCHW.shape[2:])
    return torch.cat([x_BCHW, channel_BCHW], dim=1)


def _width(full: int, side: int) -> int:
    """Channels of a map: all up to a side of 32, half up to 64, a quarter up to 128, ..."""
    halvings = max(math.ceil(math.log2(side / _FULL_WIDTH)), 0)
    return max(full >> halvings, 1)
