"""Image files to RGB: as Pillow decodes them, or JPEG files faster. Shape suffixes: H height, W width, C channels."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

Pixels = npt.NDArray[np.uint8]

MOST_HALVINGS = 3
"""A JPEG block has 8 x 8 pixels: decoding can halve it three times."""

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
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
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


@dataclass(frozen=True)
class JpegHeader:
    """What is known of a plain JPEG file before it is decoded."""

    width: int
    """Of the stored picture, in pixels."""
    height: int
    """Of the stored picture, in pixels."""
    orientation: int
    """EXIF orientation: 1 is upright."""


def plain_jpeg(data: bytes) -> JpegHeader | None:
    """The header of a JPEG file of 8 bits in YCbCr or grey, which the fast way can decode; None for any other file."""
    if data[:2] != b"\xff\xd8":
        return None
    import simplejpeg

    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        with Image.open(io.BytesIO(data)) as image:
            if image.format != "JPEG" or image.size != (width, height) or colours not in ("YCbCr", "Gray"):
                return None
            return JpegHeader(width, height, image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow, that reads it then, says what is wrong with it
        return None


def decode_jpeg(data: bytes, header: JpegHeader, halvings: int) -> Pixels | None:
    """A plain JPEG file as it is stored, uint8 [H, W, 3], its sides halved some times (rounded up) in its DCT.

    None if the decoder found anything odd: such a file may be damaged, and is for `decode` to judge.
    """
    import simplejpeg

    factor = 1 << halvings
    height, width = -(-header.height // factor), -(-header.width // factor)
    try:
        pixels_HWC: Pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width, strict=True)
    except ValueError:
        return None
    return pixels_HWC if pixels_HWC.shape == (height, width, 3) else None
