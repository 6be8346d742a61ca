"""TiTok's discriminator: blurred downsampling, group normalization, a logit per cell of a fixed grid."""

from __future__ import annotations

from torch import Tensor, nn

from model.config import BlurConfig
from model.layers.blur import BlurredHalf

_SLOPE = 0.1


class BlurDiscriminator(nn.Module):
    """A 5x5 convolution, stages of 3x3 convolution, blurred half, normalization, and two layers to a logit.

    Maps are max-pooled to `grid`, so images of any size have as many logits. Initial weights are torch's own.
    """

    def __init__(self, config: BlurConfig, image_size: int = 0, teacher: object = None) -> None:  # noqa: ARG002
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, config.width, 5, padding=2), nn.LeakyReLU(_SLOPE)]
        narrow = config.width
        for stage in range(config.stages):
            wide = config.width << stage
            layers += [
                nn.Conv2d(narrow, wide, 3, padding=1),
                BlurredHalf(),
                nn.GroupNorm(config.norm_groups, wide),
                nn.LeakyReLU(_SLOPE),
            ]
            narrow = wide
        layers += [
            nn.AdaptiveMaxPool2d(config.grid),
            nn.Conv2d(narrow, narrow, 1),
            nn.LeakyReLU(_SLOPE),
            nn.Conv2d(narrow, 1, 5, padding=2),
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, image_BCHW: Tensor, seed_B: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Images in [-1, 1] -> logits [B, N], float32, of the cells of a grid, row by row."""
        # TiTok's images are in [0, 1].
        logits: Tensor = self.layers((image_BCHW + 1) / 2)
        return logits.flatten(1).float()
