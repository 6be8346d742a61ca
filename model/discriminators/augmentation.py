"""Differentiable augmentation of what a discriminator sees (arXiv 2006.10738), real images and made ones alike.

Which kinds are used is drawn for a step, and their strength for each image from its seed. So an image is treated alike
in whatever micro-batch or process it is.

Shapes: B batch, C channels, H = W side in pixels, L taps of a filter.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import AugmentConfig
from model.layers.crops import crops
from model.layers.precision import without_autocast
from model.layers.random_numbers import uniform

KINDS = ("translation", "colour", "cutout")
"""What is drawn for a step, in the order in which they are applied."""
_NUMBERS = 7  # of an image: two of its shift, three of its colours, two of its cutout


def augment(image_BCHW: Tensor, seed_B: Tensor, fires_3: Tensor, config: AugmentConfig, blur: float = 0.0) -> Tensor:
    """Blur, shift, change the colours of and cut a square out of each image, float32.

    Args:
        image_BCHW: real or made, of [-1, 1].
        seed_B: a number per image: real and made ones have their own.
        fires_3: which of `KINDS` are used in this step, bool; of real and made images their own.
        config: how strongly.
        blur: strength, from `blur_strength`.
    """
    with without_autocast(image_BCHW.device):
        image_BCHW = blurred(image_BCHW.float(), blur)
        row, column, light, saturation, contrast, top, left = uniform(seed_B, _NUMBERS).unbind()
        image_BCHW = torch.where(fires_3[0], _shifted(image_BCHW, row, column, config.translation), image_BCHW)
        if config.colour:
            image_BCHW = torch.where(fires_3[1], _coloured(image_BCHW, light, saturation, contrast), image_BCHW)
        return torch.where(fires_3[2], _cut(image_BCHW, top, left, config.cutout), image_BCHW)


def blur_strength(step: int, blur_steps: int) -> float:
    """How strong the blur is at a step of the discriminator (from 0): 1 at the first, 0 from `blur_steps` on."""
    return max(1 - step / blur_steps, 0.0) if blur_steps else 0.0


def blurred(image_BCHW: Tensor, strength: float) -> Tensor:
    """Gaussian blur with weights 2^-(x / sigma)^2, sigma = sqrt(H / 2) * strength pixels; borders are mirrored."""
    side = image_BCHW.shape[-1]
    sigma = math.sqrt(side / 2) * strength
    margin = min(math.floor(3 * sigma), side - 1)  # a mirror has no more than the image
    if margin == 0:
        return image_BCHW
    offset_L = torch.arange(-margin, margin + 1, device=image_BCHW.device, dtype=torch.float32)
    weight_L = torch.exp2(-(offset_L / sigma).square())
    weight_C11L = (weight_L / weight_L.sum()).expand(image_BCHW.shape[1], 1, 1, -1)
    image_BCHW = F.pad(image_BCHW, (margin,) * 4, mode="reflect")
    image_BCHW = F.conv2d(image_BCHW, weight_C11L, groups=image_BCHW.shape[1])
    return F.conv2d(image_BCHW, weight_C11L.transpose(2, 3), groups=image_BCHW.shape[1])


def _shifted(image_BCHW: Tensor, row_B: Tensor, column_B: Tensor, share: float) -> Tensor:
    """Moved by whole pixels, up to a share of the side either way; zeros come in."""
    side = image_BCHW.shape[-1]
    most = math.floor(side * share + 0.5)
    top_B, left_B = ((number_B * (2 * most + 1)).long() for number_B in (row_B, column_B))
    return crops(F.pad(image_BCHW, (most,) * 4), top_B, left_B, side)


def _coloured(image_BCHW: Tensor, light_B: Tensor, saturation_B: Tensor, contrast_B: Tensor) -> Tensor:
    light, saturation, contrast = (each[:, None, None, None] for each in (light_B, saturation_B, contrast_B))
    image_BCHW = image_BCHW + (light - 0.5)
    grey = image_BCHW.mean(1, keepdim=True)
    image_BCHW = grey + (image_BCHW - grey) * (2 * saturation)
    mean = image_BCHW.mean((1, 2, 3), keepdim=True)
    return mean + (image_BCHW - mean) * (contrast + 0.5)


def _cut(image_BCHW: Tensor, top_B: Tensor, left_B: Tensor, share: float) -> Tensor:
    """A square of zeros, whose middle is anywhere in the image."""
    side = image_BCHW.shape[-1]
    square = math.floor(side * share + 0.5)
    place_H = torch.arange(side, device=image_BCHW.device)
    inside = []
    for number_B in (top_B, left_B):
        first_B1 = (number_B * (side + 1 - square % 2)).long()[:, None] - square // 2
        inside.append((place_H >= first_B1) & (place_H < first_B1 + square))
    hole_BHW = inside[0][:, :, None] & inside[1][:, None, :]
    return image_BCHW.masked_fill(hole_BHW[:, None], 0.0)
