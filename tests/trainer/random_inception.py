"""An Inception of the published architecture with random weights, as a file: the published one is not in the tests."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from data_pipeline import storage


class _Unfilled(FeatureExtractorInceptionV3):
    """It insists on a file of weights, which are left out."""

    def load_state_dict(self, *_: Any, **__: Any) -> None:
        pass


def draw_weights(network: nn.Module) -> None:
    """Random weights by which activations keep their scale from layer to layer: torch's own fade in deep networks."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=(2 / layer.weight[0].numel()) ** 0.5)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.bias, std=0.5)


def write_random_inception(path: Path) -> str:
    """Write the weights; returns their sha256."""
    torch.manual_seed(0)
    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    network = _Unfilled("inception", ["2048"], empty)
    draw_weights(network)
    nn.init.normal_(network.fc.weight, std=0.05)
    torch.save(network.state_dict(), path)
    return storage.sha256(path.read_bytes())
