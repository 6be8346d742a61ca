"""TiTok's perceptual loss of its second stage: the squared error of a classifier's logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ConvNextConfig
from model.layers.weight_files import PublishedFile, fill, read_published
from model.protocols import FeatureTeacher

SIZE = 224
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

CONVNEXT = PublishedFile(
    "convnext_small-0c510722.pth",
    "https://download.pytorch.org/models/convnext_small-0c510722.pth (torchvision)",
    sha256="0c510722",
)


class LogitDistance(nn.Module):
    """Mean squared difference of the logits that a classifier gives to two images, which it sees at 224 pixels.

    Args:
        classifier: of images normalized as torchvision's are; frozen from here on.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier
        for name, values in (("mean", _MEAN), ("std", _STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, image_BCHW: Tensor, other_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] -> distances [B], float32, with gradients to both."""
        return (self._logits(image_BCHW) - self._logits(other_BCHW)).square().mean(1)

    def _logits(self, image_BCHW: Tensor) -> Tensor:
        image_BCHW = F.interpolate(image_BCHW.float(), size=(SIZE, SIZE), mode="bilinear", antialias=True)
        logits_BV: Tensor = self.classifier(((image_BCHW + 1) / 2 - self.mean) / self.std)
        return logits_BV.float()


def load_convnext(config: ConvNextConfig, _: FeatureTeacher | None = None) -> LogitDistance:
    """The distance in the logits of ConvNeXt-Small (arXiv 2201.03545), trained on ImageNet.

    Raises:
        ValueError: if the file is not given, not there, or not what it should be.
    """
    state = read_published(config.file, CONVNEXT, "perceptual distance of kind convnext: file", verify=config.verify)
    network = convnext_small()
    fill(network, state, CONVNEXT.name)
    return LogitDistance(network)


def convnext_small() -> nn.Module:
    """The classifier, with random weights."""
    from torchvision import models  # timm has it; not at import, as that takes a second and most runs do without

    found: Any = models.convnext_small(weights=None)
    return found  # type: ignore[no-any-return]
