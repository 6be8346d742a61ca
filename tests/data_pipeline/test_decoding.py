"""Image files to RGB: every kind of file decoded right; the fast way refuses what the exact way refuses."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from data_pipeline.images.decoding import JpegHeader, decode, decode_jpeg, plain_jpeg
from data_pipeline.images.transforms import Transform
from tests.data_pipeline.small_data import jpeg

MODES = ["exact", "fast"]


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


@pytest.mark.parametrize("options", [{"quality": 30}, {"quality": 95, "subsampling": 0}, {"progressive": True}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_fast_decoder_gives_pillows_pixels(mode: str, options: dict[str, object]) -> None:
    file = encoded(decode(jpeg(5, 61, 43)).convert(mode), "JPEG", **options)
    header = plain_jpeg(file)
    assert header == JpegHeader(61, 43, 1)
    decoded = decode_jpeg(file, header, 0)
    assert decoded is not None
    assert np.array_equal(decoded, pixels_of(file))


@pytest.mark.parametrize(("halvings", "shape"), [(1, (22, 31, 3)), (2, (11, 16, 3)), (3, (6, 8, 3))])
def test_decoding_may_halve_the_sides_rounded_up(halvings: int, shape: tuple[int, ...]) -> None:
    file = jpeg(5, 61, 43)
    header = plain_jpeg(file)
    assert header is not None
    halved = decode_jpeg(file, header, halvings)
    assert halved is not None
    assert halved.shape == shape
    boxes = np.asarray(decode(file).reduce(1 << halvings))
    assert np.abs(halved.astype(int) - boxes).mean() < 3


def odd_files() -> dict[str, bytes]:
    image = decode(jpeg(3, 40, 50))
    frames = io.BytesIO()
    image.save(frames, "MPO", save_all=True, append_images=[image])
    wide = Image.fromarray(np.linspace(0, 65535, 2000).astype(np.uint16).reshape(40, 50))
    return {
        "png": encoded(image, "PNG"),
        "png of 16 bits": encoded(wide, "PNG"),
        "cmyk jpeg": encoded(image.convert("CMYK"), "JPEG"),
        "jpeg stored as RGB": encoded(image, "JPEG", keep_rgb=True),
        "several pictures": frames.getvalue(),
        "palette": encoded(image.convert("P"), "GIF"),
    }


@pytest.mark.parametrize("kind", odd_files())
def test_what_is_no_plain_jpeg_is_decoded_the_exact_way(kind: str) -> None:
    file = odd_files()[kind]
    assert plain_jpeg(file) is None
    assert np.array_equal(Transform(16, decode="fast")(file), Transform(16)(file))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.8, 0.95, 0.99])
def test_a_cut_jpeg_is_refused(mode: str, progressive: bool, share: float) -> None:
    file = encoded(decode(jpeg(1, 200, 150)), "JPEG", progressive=progressive)
    with pytest.raises(ValueError, match="cannot be decoded as an image"):
        Transform(16, decode=mode)(file[: int(len(file) * share)])


def outcome(mode: str, file: bytes) -> str:
    try:
        Transform(8, decode=mode)(file)
    except ValueError as error:
        return str(error)
    return "decoded"


def test_wherever_a_jpeg_is_cut_both_ways_say_the_same() -> None:
    file = jpeg(1, 40, 40)
    for length in range(len(file)):
        assert outcome("fast", file[:length]) == outcome("exact", file[:length]), length
        assert length > len(file) - 2 or outcome("fast", file[:length]) != "decoded", length


@pytest.mark.parametrize("mode", MODES)
def test_bytes_that_are_no_image_are_refused_in_the_same_words_each_time(mode: str) -> None:
    said = outcome(mode, b"<html>404</html>")
    assert said == "cannot be decoded as an image (it is none of JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM, AVIF, JPEG2000)"


def test_a_jpeg_that_only_one_decoder_doubts_is_left_to_pillow() -> None:
    file = encoded(decode(jpeg(1, 200, 150)), "JPEG", quality=95)
    doubtful = file[: len(file) // 2] + b"\xff\xd9"  # ends early, but with the mark of an end: Pillow takes it
    assert np.array_equal(Transform(16, decode="fast")(doubtful), Transform(16)(doubtful))


def test_an_exif_block_that_is_cut_is_no_news(tmp_path: Path) -> None:
    """Pillow's warning would stand in the output of each worker, with a path of its own source."""
    image = Image.new("RGB", (8, 8))
    image.save(tmp_path / "cut.jpg", "JPEG", exif=b"Exif\x00\x00MM\x00\x2a\x00\x00\x7f\xff")
    code = (
        "import sys; from pathlib import Path; from data_pipeline.images.decoding import decode; "
        "print(decode(Path(sys.argv[1]).read_bytes()).size)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "cut.jpg")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("(8, 8)\n", "")
