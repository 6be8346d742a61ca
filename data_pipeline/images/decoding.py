"""Image files to RGB: as Pillow decodes them, or JPEG files faster. Shape suffixes: H height, W width, C channels."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile

Pixels = npt.NDArray[np.uint8]

MOST_HALVINGS = 3
"""A JPEG block has 8 x 8 pixels: decoding can halve it three times."""

MOST_PIXELS = 89_478_485
"""A larger picture is set aside: a few bytes can ask for any number of pixels. It is what Pillow warns of."""
MOST_SCANNED_PIXELS = 2**34
"""A JPEG file may go over its picture as often as it likes, at 100 bytes a time; a photograph has 20 scans at most."""
_START_OF_SCAN = b"\xff\xda"
_STRIP_PIXELS = 2**22
"""Pixels that are converted at a time."""

_EXTENSIONS = {
    "JPEG": "jpg",
    "MPO": "jpg",  # what Pillow calls a JPEG that carries further pictures
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tiff",
    "PPM": "ppm",
    "AVIF": "avif",
    "JPEG2000": "jp2",
}
_FORMATS = tuple(name for name in _EXTENSIONS if name != "MPO")

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # such a picture is set aside, with a reason
warnings.filterwarnings("ignore", "Corrupt EXIF data", UserWarning)  # the picture itself may still be whole

_WIDE_GREY = {"I;16", "I;16B", "I;16L", "I;16N", "I"}


class PictureTooLargeError(ValueError):
    """An image file asks for more pixels than are decoded."""


def image_extension(data: bytes) -> str:
    """The extension that an image's content asks for, whatever its name says.

    Raises:
        ValueError: if it is empty, no image, or too large; it says why.
    """
    if not data:
        raise ValueError("is empty")
    try:
        with open_image(data) as image:
            return _EXTENSIONS[str(image.format)]
    except PictureTooLargeError:
        raise
    except Exception as error:  # Pillow raises many kinds on bytes that are not what they seem
        raise ValueError(f"is not an image that can be read ({_reason(error)})") from error


def open_image(data: bytes) -> ImageFile:
    """An image file whose header was read, in a format that is known to be safe, of a size that memory has room for.

    Raises:
        PictureTooLargeError: if it has too many pixels.
        Exception: whatever Pillow raises on a file that is none.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise PictureTooLargeError(f"has too many pixels ({error})") from error
    if image.width * image.height > MOST_PIXELS:
        raise PictureTooLargeError(f"has {image.width} x {image.height} pixels, more than {MOST_PIXELS:,} in all")
    scans = data.count(_START_OF_SCAN) if image.format in {"JPEG", "MPO"} else 1
    if scans * image.width * image.height > MOST_SCANNED_PIXELS:
        raise PictureTooLargeError(f"has {image.width} x {image.height} pixels in {scans} scans, which never end")
    return image


def decode(data: bytes) -> Image.Image:
    """An image file as RGB, upright (EXIF orientation is applied).

    Greys of 16 bits are scaled to 8, transparent pixels stand on white, CMYK and palettes are converted by Pillow; of
    an animation the first picture is taken.

    Raises:
        ValueError: if it cannot be decoded in full; it says why.
    """
    try:
        with open_image(data) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except PictureTooLargeError:
        raise
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise ValueError(f"cannot be decoded as an image ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """Why Pillow refuses a file. Its own text about unknown bytes has an address in memory, different in each run."""
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(_FORMATS)}"
    return f"{type(error).__name__}: {error}"


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture as RGB, upright, as `decode` makes it of a file.

    Raises:
        ValueError: if its grey levels are floating point.
    """
    return _to_rgb(ImageOps.exif_transpose(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    """Strip by strip, so that a large picture is in memory only as it was and as it will be."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image.convert("RGB")
    rows = max(1, _STRIP_PIXELS // image.width)
    if rows >= image.height:
        return _strip_to_rgb(image)
    whole = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        whole.paste(_strip_to_rgb(strip), (0, top))
    return whole


def _strip_to_rgb(image: Image.Image) -> Image.Image:
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
        with open_image(data) as image:
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
