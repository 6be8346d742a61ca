"""Image files to squares of pixels, and pixels to what networks take.

    1. an image file becomes a picture (`decoding`, `pictures`), the exact way or the fast one
    2. ADM's crops (arXiv 2105.05233, as published with its code) cut squares from it; or it is padded
    3. views (`views`) are cut from the centre crops

Shape suffixes: B batch, W views, H height, W width in HWC, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_pipeline.images.decoding import Pixels, decode
from data_pipeline.images.pictures import DECODERS, ExactPicture, Square, resized_size
from data_pipeline.images.views import VIEWS, check_fit

__all__ = [
    "FITS",
    "VIEWS",
    "Pixels",
    "Transform",
    "center_crop",
    "decode",
    "flip",
    "pad",
    "random_crop",
    "to_model",
]

Draws = tuple[float, float, float]
"""Uniform numbers of [0, 1) behind a random crop: of its scale, its row and its column."""

LEAST_SHARE, MOST_SHARE = 0.8, 1.0
"""Side of ADM's random crop, in short sides of the picture."""


def center_square(width: int, height: int, size: int) -> Square:
    """ADM's centre crop of a picture: the short side is resized to `size`, and the centre is cut."""
    width, height = resized_size(width, height, size)
    return Square(size, (width - size) // 2, (height - size) // 2, size)


def random_short(size: int, draw: float) -> int:
    """The short side that ADM's random crop resizes a picture to: any whole number from size / 1 to size / 0.8.

    Raises:
        ValueError: if `draw` is outside [0, 1).
    """
    least, most = math.ceil(size / MOST_SHARE), math.ceil(size / LEAST_SHARE)
    return least + _below(most - least + 1, draw)


def random_square(width: int, height: int, size: int, draws: Draws) -> Square:
    """ADM's random crop of a picture: a random scale, and a square of `size` anywhere in the resized picture."""
    short = random_short(size, draws[0])
    width, height = resized_size(width, height, short)
    top, left = _below(height - size + 1, draws[1]), _below(width - size + 1, draws[2])
    return Square(short, left, top, size)


def _below(count: int, draw: float) -> int:
    """One of `count` numbers from 0 on, each equally likely if `draw` is uniform."""
    if not 0 <= draw < 1:
        raise ValueError(f"{draw} is no uniform number of [0, 1)")
    return int(draw * count)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's centre crop, in Pillow's arithmetic.

    Halve with a box filter while the short side is at least twice the target, resize it to the target with a bicubic
    filter, and cut the centre.
    """
    return Image.fromarray(ExactPicture(image).cut(center_square(*image.size, size)))


def random_crop(image: Image.Image, size: int, draws: Draws) -> Image.Image:
    """ADM's random crop (shares 0.8 to 1 of the short side), in Pillow's arithmetic; a function of its three draws.

    Args:
        image: the picture, RGB.
        size: side of the crop, in pixels.
        draws: uniform numbers of [0, 1): of the scale, of the row and of the column.

    Raises:
        ValueError: if a draw is outside [0, 1).
    """
    return Image.fromarray(ExactPicture(image).cut(random_square(*image.size, size, draws)))


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


def _cropped(data: bytes, sides: Sequence[int], decode: str) -> list[Pixels]:
    picture = DECODERS[decode](data, min(sides))
    return [picture.cut(center_square(*picture.size, side)) for side in sides]


def _padded(data: bytes, sides: Sequence[int], _decode: str) -> list[Pixels]:
    image = decode(data)
    return [np.asarray(pad(image, side)) for side in sides]


FITS: dict[str, Callable[[bytes, Sequence[int], str], list[Pixels]]] = {"crop": _cropped, "pad": _padded}
"""How an image file becomes centred squares of some sides, with a decoder of DECODERS. Padding is always exact."""


@dataclass(frozen=True)
class Transform:
    """From an image file to squares of pixels."""

    size: int
    """Side, in pixels."""
    fit: str = "crop"
    """One of FITS."""
    decode: str = "exact"
    """One of DECODERS."""

    def __call__(self, data: bytes) -> Pixels:
        """The centre, uint8 [size, size, 3].

        Raises:
            ValueError: if the file cannot be decoded or fitted.
        """
        return FITS[self.fit](data, [self.size], self.decode)[0]

    def views(self, data: bytes, names: Sequence[str]) -> Pixels:
        """Views of an image, uint8 [W, size, size, 3] in the order of their names.

        The file is decoded once, and resized once for each size of crop that the views are cut from.

        Raises:
            ValueError: if the file cannot be decoded or fitted, or cannot have such a view.
        """
        check_fit(self.fit, names)
        views = [VIEWS[name] for name in names]
        sides = sorted({view.crop_side(self.size) for view in views})
        crops = dict(zip(sides, FITS[self.fit](data, sides, self.decode), strict=True))
        return np.stack([view(crops[view.crop_side(self.size)], self.size) for view in views])

    def random(self, data: bytes, draws: Draws) -> Pixels:
        """ADM's random crop, uint8 [size, size, 3]; a function of the file and three uniform numbers of [0, 1).

        Raises:
            ValueError: if the file cannot be decoded, is to be padded, or a draw is outside [0, 1).
        """
        if self.fit != "crop":
            raise ValueError(f"a random crop cannot be had with data.fit: {self.fit}; set it to crop")
        picture = DECODERS[self.decode](data, random_short(self.size, draws[0]))
        return picture.cut(random_square(*picture.size, self.size, draws))


def to_model(pixels_BHWC: Pixels | Sequence[Pixels]) -> npt.NDArray[np.float32]:
    """Bytes to float32 [B, C, H, W] in [-1, 1]."""
    images_BHWC = np.asarray(pixels_BHWC, dtype=np.uint8)
    # Bytes are cheaper to transpose than floats, and in place no third array is written: three times as fast.
    scaled_BCHW = np.ascontiguousarray(images_BHWC.transpose(0, 3, 1, 2)).astype(np.float32)
    scaled_BCHW /= np.float32(127.5)
    scaled_BCHW -= np.float32(1)
    return scaled_BCHW
