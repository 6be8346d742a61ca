"""Frozen timm models as judges of images: features of the whole image, of its patches, and at several depths.

Shapes: B batch, C channels, H = W side of the image in pixels, D width of features, L positions.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

_INTERPOLATIONS = ("bicubic", "bilinear")


class VisionFeatures(nn.Module):
    """A timm model without a head, fed as it was trained: with its own mean, deviation and interpolation.

    Args:
        model: from timm.
        size: side of the images that it sees, in pixels; others are resized.

    Raises:
        ValueError: if it was trained on a resizing that torch has not.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, size: int) -> None:
        super().__init__()
        self.model, self.size = model, size
        settings: Any = model.pretrained_cfg
        self.mode = settings.get("interpolation") or "bicubic"
        if self.mode not in _INTERPOLATIONS:
            raise ValueError(f"it was trained on {self.mode} resizing, which torch has not")
        # Buffers, as numbers from the host would be copied to the device at each call.
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(settings[name]).view(1, 3, 1, 1), persistent=False)

    def features(self, image_BCHW: Tensor) -> Tensor:
        """Class-token or pooled features [B, D]."""
        features: Tensor = self.model(self.seen(image_BCHW))
        return features

    def patch_features(self, image_BCHW: Tensor) -> Tensor:
        """The mean of the features of all patches, without class and register tokens, [B, D]."""
        model: Any = self.model
        features: Tensor = model.forward_features(self.seen(image_BCHW))
        if features.ndim == 4:
            return features.mean((2, 3)) if features.shape[1] == model.num_features else features.mean((1, 2))
        return features[:, model.num_prefix_tokens :].mean(1)

    def maps(self, image_BCHW: Tensor, count: int) -> list[Tensor]:
        """Features at `count` depths or fewer, shallow to deep, each [B, D, L].

        Of a vision transformer: before the first block and after evenly spaced ones; the class token is added to each
        patch. Of another model: the last of its maps.
        """
        model: Any = self.model
        image_BCHW = self.seen(image_BCHW)
        if not isinstance(model, VisionTransformer):
            maps = model.forward_intermediates(image_BCHW, indices=self._indices(count), intermediates_only=True)
            return [map_BDHW.flatten(2) for map_BDHW in maps]
        x_BLD = model.norm_pre(model._pos_embed(model.patch_embed(image_BCHW)))
        found, depths = [], tap_depths(len(model.blocks), count)
        for depth in range(len(model.blocks) + 1):
            x_BLD = model.blocks[depth - 1](x_BLD) if depth else x_BLD
            if depth in depths:
                found.append(_patch_map(x_BLD, model))
        return found

    def map_widths(self, count: int) -> list[int]:
        """Channels of each of `maps`."""
        model: Any = self.model
        if isinstance(model, VisionTransformer):
            return [model.embed_dim] * len(tap_depths(len(model.blocks), count))
        channels = model.feature_info.channels() if hasattr(model.feature_info, "channels") else model.feature_info
        widths = [each["num_chs"] if isinstance(each, dict) else each for each in channels]
        return widths[-self._indices(count) :]

    def _indices(self, count: int) -> int:
        model: Any = self.model
        return min(count, len(model.feature_info))

    def seen(self, image_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] -> what the model is fed: resized, where its size is another, and normalized."""
        size = (self.size, self.size)
        if tuple(image_BCHW.shape[2:]) != size:
            image_BCHW = F.interpolate(image_BCHW, size=size, mode=self.mode, antialias=True)
        return ((image_BCHW + 1) / 2 - self.mean) / self.std


def tap_depths(blocks: int, count: int) -> list[int]:
    """Numbers of blocks after which features are taken: 12 blocks, 5 times: 0, 3, 6, 9, 12. Fewer, of few blocks."""
    if count == 1:
        return [blocks]
    return sorted({math.ceil(blocks * tap / (count - 1)) for tap in range(count)})


def _patch_map(x_BLD: Tensor, model: VisionTransformer) -> Tensor:
    patches_BLD = x_BLD[:, model.num_prefix_tokens :]
    if model.cls_token is not None:
        patches_BLD = patches_BLD + x_BLD[:, :1]
    return patches_BLD.transpose(1, 2)
