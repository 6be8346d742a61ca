"""Frames of film strips: what is made at some step of training of the same images, or of the same seeds and classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.evaluation.images import image_grid, to_png, to_uint8

_SMALLEST, _LARGEST = 64, 128
"""Sides of an image in a frame, in pixels: smaller ones are enlarged, so that they can be judged; larger ones shrunk,
so that a film stays small."""


def frame(originals_BCHW: Tensor, decoded: Sequence[Tensor], prefixes: Sequence[int]) -> bytes:
    """A PNG with a column for each image: the original, and below it what each prefix gives.

    Args:
        originals_BCHW: in [-1, 1].
        decoded: for each prefix, images as the originals; what is not finite is grey.
        prefixes: positions of each.
    """
    labels = ["original", *(f"{keep:,} position{'s' * (keep > 1)}" for keep in prefixes)]
    return sheet(torch.cat((originals_BCHW, *decoded)), len(originals_BCHW), labels)


def sheet(image_BCHW: Tensor, columns: int, row_labels: Sequence[str]) -> bytes:
    """A PNG of images row by row, each row with its name.

    Args:
        image_BCHW: in [-1, 1]; what is not finite is grey.
        columns: of each row.
        row_labels: a name for each row.
    """
    pixels = to_uint8(_shrunk(torch.nan_to_num(image_BCHW.float(), 0.0)))
    upscale = max(1, _SMALLEST // pixels.shape[1])
    return to_png(image_grid(pixels, columns, upscale=upscale, row_labels=row_labels))


def _shrunk(image_BCHW: Tensor) -> Tensor:
    side = image_BCHW.shape[-1]
    return image_BCHW if side <= _LARGEST else F.interpolate(image_BCHW, size=(_LARGEST, _LARGEST), mode="area")
