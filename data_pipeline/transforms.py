"""Image files to pixels, and pixels to what networks take. Shape suffixes: B batch, C channels, H height, W width.

All arithmetic on pixels is Pillow's, so that the result is the one that published models were trained on.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

Pixels = npt.NDArray[np.uint8]

_WIDE_GREY = {"I;16", "I;16B", "I;16L", "I;16N", "I"}


def decode(data: bytes) -> Image.Image:
    """An image file as RGB, upright (EXIF orientation is applied).

    Greys of 16 bits are scaled to 8, transparent pixels stand on white, CMYK and palettes are converted by Pillow; of
    an animation the first picture is taken.

    Raises:
        ValueError: if it cannot be decoded in full; it says why.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise ValueError(f"cannot be decoded as an image ({type(error).__name__}: {error})") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _WIDE_GREY:
        wide = np.asarray(image).astype(np.float64).clip(0, 65535)
        return Image.fromarray(np.rint(wide / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("grey levels are floating point, so their range is not known")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's centre crop (arXiv 2105.05233, as published with its code).

    Halve with a box filter while the short side is at least twice the target, resize it to the target with a bicubic
    filter, and cut the centre.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    resized = (round(image.width * scale), round(image.height * scale))
    image = image.resize(resized, Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def pad(image: Image.Image, size: int) -> Image.Image:
    """The image, pixel for pixel, in the centre of a black square.

    Raises:
        ValueError: if it is larger than that.
    """
    if max(image.size) > size:
        raise ValueError(f"is {image.width} x {image.height} pixels, too large to pad to {size}: set data.fit to crop")
    square = Image.new("RGB", (size, size))
    square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return square


def flip(pixels_HWC: Pixels) -> Pixels:
    """Left and right exchanged."""
    return pixels_HWC[:, ::-1]


FITS: dict[str, Callable[[Image.Image, int], Image.Image]] = {"crop": center_crop, "pad": pad}
"""How an image becomes a square."""

VIEWS: dict[str, Callable[[Pixels], Pixels]] = {"center": lambda pixels_HWC: pixels_HWC, "center_flip": flip}
"""How the square is seen."""


@dataclass(frozen=True)
class Transform:
    """From an image file to a square of pixels."""

    size: int
    """Side, in pixels."""
    fit: str = "crop"
    """One of FITS."""

    def __call__(self, data: bytes) -> Pixels:
        """uint8 [size, size, 3].

        Raises:
            ValueError: if the file cannot be decoded or fitted.
        """
        return np.asarray(FITS[self.fit](decode(data), self.size))


def to_model(pixels_BHWC: Pixels | Sequence[Pixels]) -> npt.NDArray[np.float32]:
    """Bytes to float32 [B, C, H, W] in [-1, 1]."""
    images_BHWC = np.asarray(pixels_BHWC, dtype=np.uint8)
    scaled_BHWC = images_BHWC.astype(np.float32) / np.float32(127.5) - np.float32(1)
    return np.ascontiguousarray(scaled_BHWC.transpose(0, 3, 1, 2))
