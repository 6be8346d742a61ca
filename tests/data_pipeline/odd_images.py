"""Image files that are not what their names or most readers expect, each with the colour that it must be read as."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

Colour = tuple[int, int, int]

CMYK = (30, 120, 200, 10)
RED, BLUE = (200, 30, 30), (20, 40, 210)


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    """The file of an image."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def ycck_jpeg() -> bytes:
    """A JPEG of inks whose first three channels are stored as luma and chroma, as Adobe's programs write it.

    Pillow writes CMYK as it is (Adobe's transform 0), inverted. So it gets the inverse of what is to be stored, and the
    file is then marked as transform 2.
    """
    luma = Image.new("RGB", (16, 16), CMYK[:3]).convert("YCbCr")
    inverse = [band.point(lambda value: 255 - value) for band in luma.split()]
    image = Image.merge("CMYK", [*inverse, Image.new("L", (16, 16), CMYK[3])])
    data = bytearray(saved(image, "JPEG", quality=100))
    marker = data.index(b"Adobe\x00d")
    assert data[marker + 11] == 0
    data[marker + 11] = 2
    return bytes(data)


def turned_jpeg() -> bytes:
    """Stored 16 wide and 8 high, red left of blue; EXIF says to turn it by 90 degrees, so that red is above blue."""
    image = Image.new("RGB", (16, 8), BLUE)
    image.paste(RED, (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(image, "JPEG", quality=100, exif=exif)


def wide_grey_png() -> bytes:
    """16 bits of grey, a quarter of the way to white."""
    return saved(Image.fromarray(np.full((8, 8), 65535 // 4, np.uint16)), "PNG")


def wide_grey_jpeg2000() -> bytes:
    """16 bits of grey, a quarter of the way to white."""
    return saved(Image.fromarray(np.full((8, 8), 65535 // 4, np.uint16)), "JPEG2000")


def palette_png() -> bytes:
    """A palette, with one of its colours transparent."""
    image = Image.new("P", (8, 8), 1)
    image.putpalette([*BLUE, *RED])
    image.putpixel((0, 0), 0)
    return saved(image, "PNG", transparency=0)


INK_COLOUR: Colour = Image.new("CMYK", (1, 1), CMYK).convert("RGB").getpixel((0, 0))  # type: ignore[assignment]

ODD: dict[str, tuple[bytes, str, Colour, Colour]] = {
    "png_named.JPEG": (saved(Image.new("RGB", (8, 8), RED), "PNG"), "png", RED, RED),
    "cmyk.JPEG": (saved(Image.new("CMYK", (16, 16), CMYK), "JPEG", quality=100), "jpg", INK_COLOUR, INK_COLOUR),
    "ycck.JPEG": (ycck_jpeg(), "jpg", INK_COLOUR, INK_COLOUR),
    "turned.JPEG": (turned_jpeg(), "jpg", RED, BLUE),
    "wide_grey.png": (wide_grey_png(), "png", (64, 64, 64), (64, 64, 64)),
    "palette.png": (palette_png(), "png", (255, 255, 255), RED),
    "grey.JPEG": (saved(Image.new("L", (8, 8), 77), "JPEG", quality=100), "jpg", (77, 77, 77), (77, 77, 77)),
    "colours.avif": (saved(Image.new("RGB", (8, 8), RED), "AVIF", quality=100), "avif", RED, RED),
    "clear.avif": (saved(Image.new("RGBA", (8, 8), (*RED, 0)), "AVIF"), "avif", (255, 255, 255), (255, 255, 255)),
    "colours_2000.jp2": (saved(Image.new("RGB", (8, 8), BLUE), "JPEG2000"), "jp2", BLUE, BLUE),
    "stream.jpg": (saved(Image.new("RGB", (8, 8), RED), "JPEG2000", no_jp2=True), "jp2", RED, RED),
    "wide_grey_2000.jp2": (wide_grey_jpeg2000(), "jp2", (64, 64, 64), (64, 64, 64)),
    "colours_256.gif": (saved(Image.new("RGB", (8, 8), BLUE), "GIF"), "gif", BLUE, BLUE),
}
"""File name to its bytes, the extension that its content has, and the colours of its first and its last pixel."""
