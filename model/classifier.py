"""A small strided convolutional classifier: the quickstart's teacher and its independent judge.

GroupNorm rather than BatchNorm: no running statistics, so that it computes the same at any number of workers, in
training and after. Shapes: B batch, C channels, H = W side, D width of the features.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from model.config import ClassifierConfig
from model.layers.random_numbers import dropout


class Classifier(nn.Module):
    """Stride-2 convolutions, a mean over the image, one linear layer."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        last = 3
        for width in config.widths:
            layers += [
                nn.Conv2d(last, width, 3, stride=2, padding=1, bias=False),
                nn.GroupNorm(math.gcd(width, 8), width),
                nn.ReLU(inplace=True),
            ]
            last = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(last, config.classes)

    @property
    def feature_width(self) -> int:
        """Width of `features`."""
        return self.config.widths[-1]

    @property
    def size(self) -> int:
        """Side of the images that it was made for, in pixels."""
        return self.config.image_size

    def features(self, image_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] -> their features [B, D], before dropout and the linear layer."""
        maps_BCHW: Tensor = self.body(self._cast(image_BCHW))
        return maps_BCHW.mean((2, 3))

    def _cast(self, image_BCHW: Tensor) -> Tensor:
        first = self.body[0]
        assert isinstance(first, nn.Conv2d)
        return image_BCHW.to(first.weight.dtype)

    def patch_features(self, image_BCHW: Tensor) -> Tensor:
        """The mean over positions, which `features` are already."""
        return self.features(image_BCHW)

    def maps(self, image_BCHW: Tensor, count: int) -> list[Tensor]:
        """Images in [-1, 1] -> what the last `count` convolutions give, or all, each [B, D, positions]."""
        found, x_BCHW = [], self._cast(image_BCHW)
        for layer in self.body:
            x_BCHW = layer(x_BCHW)
            if isinstance(layer, nn.ReLU):
                found.append(x_BCHW.flatten(2))
        return found[-count:]

    def map_widths(self, count: int) -> list[int]:
        """Channels of each of `maps`."""
        return list(self.config.widths[-count:])

    def forward(self, image_BCHW: Tensor, seed_B: Tensor | None = None) -> Tensor:
        """Images in [-1, 1] -> class logits [B, num_classes]; dropout in training needs seeds (`random_numbers.py`)."""
        features_BD = self.features(image_BCHW)
        if self.training and self.config.dropout:
            features_BD = dropout(features_BD, seed_B, self.config.dropout)
        logits: Tensor = self.head(features_BD)
        return logits
