"""How much of an image a tokenizer keeps: error, bits, and a round trip that tells whether weights were loaded right.

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from model.layout import TokenLayout

GARBAGE = 0.8
"""Weights draw garbage if more than this share of the error remains that each image's mean colour has. Published
tokenizers leave 0.05 to 0.45 of photographs; wrong weights leave 0.9 and more."""


@dataclass(frozen=True)
class Fidelity:
    """How near the reconstruction of an image is."""

    name: str
    error: float
    """Mean squared error over pixels and channels, of values in [-1, 1]."""
    plain_error: float
    """The same of an image of its mean colour."""

    @property
    def psnr(self) -> float:
        """Peak signal-to-noise ratio, in decibels."""
        return psnr(self.error)

    def to_json(self) -> dict[str, object]:
        """As `--json` prints it."""
        shown = self.psnr if math.isfinite(self.psnr) else None
        return {"name": self.name, "squared_error": self.error, "psnr": shown, "of_mean_colour": self.plain_error}


def psnr(error: float) -> float:
    """Peak signal-to-noise ratio in decibels of a mean squared error of values in [-1, 1], whose peak is 2."""
    return 10 * math.log10(4 / error) if error > 0 else math.inf


def compare(names: Sequence[str], image_BCHW: Tensor, seen_BCHW: Tensor) -> list[Fidelity]:
    """How near some reconstructions are to their images, both float [B, 3, H, W] in [-1, 1]."""
    image_BCHW = image_BCHW.double()
    error_B = (seen_BCHW.double() - image_BCHW).square().mean((1, 2, 3))
    plain_B = (image_BCHW - image_BCHW.mean((2, 3), keepdim=True)).square().mean((1, 2, 3))
    rows = zip(names, error_B.tolist(), plain_B.tolist(), strict=True)
    return [Fidelity(name, error, plain) for name, error, plain in rows]


def is_garbage(found: Sequence[Fidelity]) -> bool:
    """Whether reconstructions are hardly better than each image's mean colour, or no numbers at all."""
    error, plain = sum(each.error for each in found), sum(each.plain_error for each in found)
    return not error <= GARBAGE * plain if plain > 0 else not error < 1e-2


def bits(layout: TokenLayout, keep: int | None = None) -> float:
    """Bits of an image's tokens: log2 of the codes of each fold, at the first `keep` positions (None: at all)."""
    return (layout.positions if keep is None else keep) * sum(math.log2(codes) for codes in layout.vocabularies)


def photograph_like(size: int) -> Image.Image:
    """A picture with about the statistics of photographs, always the same.

    Its power falls with the cube of the frequency, its colours vary less than its brightness, and some discs with sharp
    edges lie over it.

    Args:
        size: its side, in pixels.
    """
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]) * size
    spectrum = rng.normal(size=(3, *frequency.shape)) + 1j * rng.normal(size=(3, *frequency.shape))
    field = np.fft.irfft2(spectrum / np.maximum(frequency, 1) ** 1.5, s=(size, size))
    shared = field.mean(0, keepdims=True) * math.sqrt(3) + 0.3 * field
    picture = 128 + 50 * (shared - shared.mean()) / shared.std()
    rows, columns = np.mgrid[:size, :size] / size
    for row, column, radius in rng.uniform((0, 0, 0.05), (1, 1, 0.2), (6, 3)):
        disc = (rows - row) ** 2 + (columns - column) ** 2 < radius**2
        picture[:, disc] = 0.3 * picture[:, disc] + 0.7 * rng.uniform(30, 225, (3, 1))
    pixels: npt.NDArray[np.uint8] = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
