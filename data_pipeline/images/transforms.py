"""Image files to squares of pixels, and pixels to what networks take.

    1. an image file becomes a picture (`decoding`, `pictures`), the exact way or the fast one
    2. a crop cuts a square from it (`crop_kinds` says which there are, `crops` how each is cut); or it is padded
    3. views (`views`) are cut from centre crops, or are crops whose draws follow from the image's key

Shape suffixes: B batch, W views, H height, W width in HWC, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_pipeline.images.crop_kinds import CENTER, AnyCrop
from data_pipeline.images.crops import Draws, center_square, cutter
from data_pipeline.images.decoding import Pixels, decode
from data_pipeline.images.pictures import ExactPicture, Pictures
from data_pipeline.images.views import RandomView, View, check_fit, view_of

__all__ = [
    "Pixels",
    "Transform",
    "center_crop",
    "crop_of",
    "decode",
    "flip",
    "pad",
    "to_model",
]


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's centre crop, in Pillow's arithmetic.

    Halve with a box filter while the short side is at least twice the target, resize it to the target with a bicubic
    filter, and cut the centre.
    """
    return Image.fromarray(ExactPicture(image).cut(center_square(*image.size, size)))


def crop_of(image: Image.Image, size: int, crop: AnyCrop, draws: Draws = ()) -> Image.Image:
    """Any crop, in Pillow's arithmetic; a function of its draws.

    Args:
        image: the picture, RGB.
        size: side of the crop, in pixels.
        crop: one of `crop_kinds`.
        draws: uniform numbers of [0, 1): as many as `cutter(crop).draws` names.

    Raises:
        ValueError: if a draw is outside [0, 1).
    """
    return Image.fromarray(cutter(crop).cut(ExactPicture(image), size, draws))


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


@dataclass(frozen=True)
class Transform:
    """From an image file to squares of pixels."""

    size: int
    """Side, in pixels."""
    fit: str = "crop"
    """How an image becomes a square: crop, or pad, which is always exact."""
    decode: str = "exact"
    """One of DECODERS."""
    crop: AnyCrop = CENTER
    """How the square is cut, with `fit: crop`."""

    @property
    def draws(self) -> tuple[str, ...]:
        """Names of the uniform numbers behind a square, none if nothing about it is random."""
        return cutter(self.crop).draws if self.fit == "crop" else ()

    def __call__(self, data: bytes, draws: Draws = ()) -> Pixels:
        """The square, uint8 [size, size, 3]; a function of the file and of uniform numbers of [0, 1).

        Raises:
            ValueError: if the file cannot be decoded or fitted, or a draw is outside [0, 1).
        """
        if self.fit == "pad":
            return np.asarray(pad(decode(data), self.size))
        return _cut(Pictures(data, self.decode), self.size, self.crop, draws)

    def views(self, data: bytes, names: Sequence[str], key: bytes = b"") -> Pixels:
        """Views of an image, uint8 [W, size, size, 3] in the order of their names.

        The file is decoded once, but in the fast way once for each scale; it is resized once for each size of centre
        crop that views are cut from, and for each random view.

        Args:
            data: the image file.
            names: of the views.
            key: of the image, which random views follow from.

        Raises:
            ValueError: if the file cannot be decoded or fitted, or cannot have such a view.
        """
        check_fit(self.fit, names)
        pictures, views = Pictures(data, self.decode), [view_of(name) for name in names]
        sides = sorted({view.crop_side(self.size) for view in views if isinstance(view, View)})
        crops = self._centred(data, pictures, sides) if sides else {}

        def see(view: View | RandomView) -> Pixels:
            if isinstance(view, View):
                return view(crops[view.crop_side(self.size)], self.size)
            cut = _cut(pictures, self.size, view.crop, view.draws(key, cutter(view.crop).draws))
            return flip(cut) if view.mirrored else cut

        return np.stack([see(view) for view in views])

    def _centred(self, data: bytes, pictures: Pictures, sides: Sequence[int]) -> dict[int, Pixels]:
        """Centred squares by their sides, from one picture."""
        if self.fit == "pad":
            image = decode(data)
            return {side: np.asarray(pad(image, side)) for side in sides}
        picture = pictures.at(min(sides))
        return {side: picture.cut(center_square(*picture.size, side)) for side in sides}


def _cut(pictures: Pictures, size: int, crop: AnyCrop, draws: Draws) -> Pixels:
    cut = cutter(crop)
    return cut.cut(pictures.at(cut.short(size, draws)), size, draws)


def to_model(pixels_BHWC: Pixels | Sequence[Pixels]) -> npt.NDArray[np.float32]:
    """Bytes to float32 [B, C, H, W] in [-1, 1]."""
    images_BHWC = np.asarray(pixels_BHWC, dtype=np.uint8)
    # Bytes are cheaper to transpose than floats, and in place no third array is written: three times as fast.
    scaled_BCHW = np.ascontiguousarray(images_BHWC.transpose(0, 3, 1, 2)).astype(np.float32)
    scaled_BCHW /= np.float32(127.5)
    scaled_BCHW -= np.float32(1)
    return scaled_BCHW
