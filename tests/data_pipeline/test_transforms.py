"""Image files to pixels: every kind of file decoded right, ADM's crop, what networks take."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipeline.transforms import VIEWS, Transform, center_crop, decode, pad, to_model
from tests.data_pipeline.small_data import jpeg


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels_of(data: bytes) -> npt.NDArray[np.uint8]:
    image = decode(data)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_grey_is_the_same_in_all_three_channels() -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    assert np.array_equal(pixels_of(encoded(Image.fromarray(grey), "PNG")), np.repeat(grey[..., None], 3, -1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_of_grey_are_scaled_not_cut(kind: str) -> None:
    wide = np.array([[0, 128, 257, 32768, 65535]], dtype=np.uint16)
    assert pixels_of(encoded(Image.fromarray(wide), kind))[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_sixteen_bits_of_colour_keep_their_high_bytes() -> None:
    row = b"\0" + np.array([0xFFFF, 0x8000, 0x00FF], dtype=">u2").tobytes()
    chunks = [(b"IHDR", struct.pack(">2I5B", 1, 1, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(row)), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    assert pixels_of(png)[0, 0].tolist() == [255, 128, 0]


def test_a_palette_becomes_its_colours() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 200, 100])
    image.putpixel((1, 0), 1)
    assert pixels_of(encoded(image, "PNG")).tolist() == [[[255, 0, 0], [0, 200, 100]]]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_transparent_pixels_stand_on_white_whatever_colour_they_hide(kind: str) -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 255, 0))
    assert pixels_of(encoded(image, kind)).tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_half_transparent_pixels_are_mixed_with_white() -> None:
    image = Image.new("LA", (1, 1), (0, 128))
    assert pixels_of(encoded(image, "PNG"))[0, 0].tolist() == [127, 127, 127]


def test_cmyk_jpeg_has_the_colours_that_were_meant() -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert pixels_of(encoded(cmyk, "JPEG", quality=95))[8, 8] == pytest.approx([255, 0, 0], abs=6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_upright(orientation: int) -> None:
    upright = np.zeros((16, 24, 3), dtype=np.uint8)
    upright[:8, :8] = 255  # a white corner, top left
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(Image.fromarray(np.ascontiguousarray(stored)), "JPEG", exif=exif, quality=95, subsampling=0)
    assert np.abs(pixels_of(file).astype(int) - upright).max() < 12


@pytest.mark.parametrize("data", [b"", b"GIF89a", jpeg(0)[:-200], encoded(Image.new("F", (2, 2)), "TIFF")])
def test_what_cannot_be_decoded_in_full_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="cannot be decoded as an image"):
        decode(data)


def slow_bicubic(line: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.float64]:
    """Keys' cubic with a = -1/2, widened by the scale when it shrinks, along the first axis; one output at a time."""
    scale = max(1.0, len(line) / size)
    out = np.empty((size, *line.shape[1:]))
    for i in range(size):
        center = (i + 0.5) * len(line) / size
        at = np.arange(len(line))
        x = np.abs((at + 0.5 - center) / scale)
        weight = np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))
        out[i] = np.tensordot(weight / weight.sum(), line, 1)
    return out


def rounded(image: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """To bytes, half up, as Pillow does after each direction."""
    return np.clip(np.floor(image + 0.5), 0, 255)


def halved(image: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Means of pairs of rows, rounded half up."""
    return np.floor((image[::2] + image[1::2] + 1) / 2)


def slow_adm_crop(pixels: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.float64]:
    """ADM's centre crop, spelled out on arrays whose sides are even whenever they are halved."""
    image = pixels.astype(np.float64)
    while min(image.shape[:2]) >= 2 * size:
        image = halved(halved(image.swapaxes(0, 1)).swapaxes(0, 1))
    height, width = image.shape[:2]
    scale = size / min(height, width)
    image = slow_bicubic(image.swapaxes(0, 1), round(width * scale)).swapaxes(0, 1)
    image = slow_bicubic(rounded(image), round(height * scale))
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return rounded(image)[top : top + size, left : left + size]


@given(st.data(), st.integers(4, 12), st.integers(0, 3), st.booleans())
@settings(max_examples=40, deadline=None)
def test_centre_crop_is_adms(data: st.DataObject, size: int, halvings: int, portrait: bool) -> None:
    short = data.draw(st.integers(2, 2 * size - 1)) << halvings
    sides = [short, data.draw(st.integers(short >> halvings, 2 * short >> halvings)) << halvings]
    height, width = sides[::-1] if portrait else sides
    pixels = np.random.default_rng(height + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    ours = np.asarray(center_crop(Image.fromarray(pixels), size)).astype(float)
    assert ours.shape == (size, size, 3)
    assert np.abs(ours - slow_adm_crop(pixels, size)).max() <= 1


def test_padding_moves_no_pixel_and_adds_black() -> None:
    image = Image.new("RGB", (3, 2), (9, 8, 7))
    padded = np.asarray(pad(image, 6))
    assert padded[2:4, 1:4].tolist() == [[[9, 8, 7]] * 3] * 2
    assert padded.sum() == 6 * 24


def test_an_image_too_large_to_pad_says_what_to_set() -> None:
    with pytest.raises(ValueError, match=r"20 x 24 pixels, too large to pad to 16: set data\.fit to crop"):
        Transform(16, "pad")(jpeg(0))


def test_views_are_the_image_and_its_mirror() -> None:
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    assert VIEWS["center"](pixels).tolist() == pixels.tolist()
    assert VIEWS["center_flip"](pixels)[0].tolist() == pixels[0, [2, 1, 0]].tolist()


def test_networks_take_channels_first_from_minus_one_to_one() -> None:
    pixels = np.zeros((1, 2, 3, 3), dtype=np.uint8)
    pixels[0, 1, 2] = [255, 51, 0]
    images_BCHW = to_model(pixels)
    assert images_BCHW.dtype == np.float32
    assert images_BCHW.shape == (1, 3, 2, 3)
    assert images_BCHW[0, :, 1, 2].tolist() == pytest.approx([1.0, -0.6, -1.0])
