"""How close images come to their originals, image by image: squared error, PSNR, SSIM.

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_ERROR = 1e-10
"""Squared error below which PSNR stays where it is: 106 dB, far beyond what 8 bits can show."""
_WINDOW, _DEVIATION = 11, 1.5
_LUMINANCE, _CONTRAST = 0.01**2, 0.03**2
_VALUES_AT_ONCE = 2**22


def squared_error(image_BCHW: Tensor, other_BCHW: Tensor) -> Tensor:
    """Mean squared error of each image [B], float64; pixels in [-1, 1]."""
    return (image_BCHW.float() - other_BCHW.float()).square().mean((1, 2, 3)).double()


def psnr(squared_error_B: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image [B], from its squared error; pixels in [-1, 1], so the peak is 2.

    The mean over images of this is the papers' PSNR; the PSNR of the mean error is lower.
    """
    return 10 * torch.log10(4 / squared_error_B.clamp(min=LEAST_ERROR))


def ssim(image_BCHW: Tensor, other_BCHW: Tensor) -> Tensor:
    """Structural similarity of each image [B], float64 (Wang et al. 2004, eq. 13), the mean over its channels.

    A Gaussian window of 11 × 11 pixels (deviation 1.5), smaller where the image is, where it lies inside the image, as
    in the paper's own code. Others mirror the image's border and count the windows there, too: a larger or smaller
    number. All of it is in float64: a variance of 1e-4 around a mean near 1 has three digits in float32.
    """
    parts = (_similarity(*pair) for pair in zip(*(_split(each) for each in (image_BCHW, other_BCHW)), strict=True))
    return torch.cat(list(parts))


def _split(image_BCHW: Tensor) -> tuple[Tensor, ...]:
    """Some images at a time: the maps of a window's sums are ten times as large as they."""
    return torch.split(image_BCHW, max(1, _VALUES_AT_ONCE // image_BCHW[:1].numel()))


def _similarity(image_BCHW: Tensor, other_BCHW: Tensor) -> Tensor:
    first, second = ((each.double() + 1) / 2 for each in (image_BCHW, other_BCHW))
    pairs = torch.stack([first, second, first * first, second * second, first * second])
    blurred = _blurred(pairs.flatten(0, 2))
    means = blurred.view(*pairs.shape[:3], *blurred.shape[1:])
    mean_1, mean_2 = means[0], means[1]
    variance_1, variance_2 = means[2] - mean_1**2, means[3] - mean_2**2
    covariance = means[4] - mean_1 * mean_2
    structure = (2 * covariance + _CONTRAST) / (variance_1 + variance_2 + _CONTRAST)
    luminance = (2 * mean_1 * mean_2 + _LUMINANCE) / (mean_1**2 + mean_2**2 + _LUMINANCE)
    found: Tensor = (luminance * structure).mean((1, 2, 3))
    return found


def _blurred(maps_NHW: Tensor) -> Tensor:
    """Means of a Gaussian window at each place where it lies inside."""
    rows_N1HW = maps_NHW[:, None]
    across = F.conv2d(rows_N1HW, _gaussian(maps_NHW.shape[2], maps_NHW)[None, None, None])
    return F.conv2d(across, _gaussian(maps_NHW.shape[1], maps_NHW)[None, None, :, None])[:, 0]


def _gaussian(side: int, like: Tensor) -> Tensor:
    """The window's weights along a side; an odd number of them."""
    size = min(_WINDOW, side - (side + 1) % 2)
    place = torch.arange(size, device=like.device, dtype=like.dtype) - size // 2
    weight = torch.exp(-(place**2) / (2 * _DEVIATION**2))
    return weight / weight.sum()
