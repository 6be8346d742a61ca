"""PatchGAN's discriminator (arXiv 1611.07004), with the sizes and initial weights of LlamaGen's."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from model.config import PatchConfig
from model.layers.grouped_norm import GroupedBatchNorm

_SLOPE = 0.2
_DEVIATION = 0.02
_WIDEST = 8  # times the first width


class PatchDiscriminator(nn.Module):
    """4x4 convolutions: `layers` of stride 2, one more, and one to a logit; all but the first and last normalized.

    At 256 pixels and 3 layers the logits are 30 x 30.

    Raises:
        ValueError: if images of this size leave no logit.
    """

    def __init__(self, config: PatchConfig, image_size: int, teacher: object = None) -> None:  # noqa: ARG002
        super().__init__()
        if (image_size >> config.layers) < 3:
            raise ValueError(
                f"a patch discriminator of {config.layers} layers has no logit for images of {image_size} pixels: "
                f"they need {3 << config.layers}, or fewer layers"
            )
        widths = [min(config.width << depth, config.width * _WIDEST) for depth in range(config.layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE)]
        for depth, (narrow, wide) in enumerate(itertools.pairwise(widths), start=1):
            stride = 2 if depth < config.layers else 1
            layers += [
                nn.Conv2d(narrow, wide, 4, stride=stride, padding=1, bias=False),
                GroupedBatchNorm(wide, config.group),
                nn.LeakyReLU(_SLOPE),
            ]
        layers.append(nn.Conv2d(widths[-1], 1, 4, stride=1, padding=1))
        self.layers = nn.Sequential(*layers)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights of convolutions about 0 and gains about 1, both with deviation 0.02."""
        for module in self.layers:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, _DEVIATION)
            elif isinstance(module, GroupedBatchNorm):
                nn.init.normal_(module.weight, 1.0, _DEVIATION)

    def forward(self, image_BCHW: Tensor, seed_B: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Images in [-1, 1] -> logits [B, N], float32, of overlapping patches, row by row."""
        logits: Tensor = self.layers(image_BCHW)
        return logits.flatten(1).float()
