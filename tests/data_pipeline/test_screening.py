"""What an image costs is bound by its size: it is read in little memory, or set aside with the reason."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.config import DataConfig, FolderSource
from data_pipeline.images import decoding
from data_pipeline.images.decoding import decode, image_extension, plain_jpeg
from data_pipeline.ingest import screening
from data_pipeline.ingest.ingesting import ingest
from data_pipeline.ingest.screening import screen_image
from data_pipeline.sources import RawItem
from tests.data_pipeline.odd_images import saved
from tests.data_pipeline.small_data import jpeg, write_photos

FRAMES = [Image.new("RGB", (64, 64), (number, 0, 0)) for number in range(250)]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG that says it has such sides, and holds a few pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(64), 9))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + data + chunk(b"IEND", b"")


def small_png(*chunks: bytes) -> bytes:
    """A PNG with more chunks than it needs."""
    data = saved(Image.new("RGB", (4, 4)), "PNG")
    return data[:33] + b"".join(chunks) + data[33:]


BOMB = zlib.compress(bytes(200_000_000), 9)
LARGE = saved(Image.new("1", (9600, 9600)), "PNG")

SET_ASIDE = {
    "more pixels than are decoded": (LARGE, r"^has 9600 x 9600 pixels, more than 89,478,485 in all$"),
    "sides of 2**31": (png_of(2**31 - 1, 2**31 - 1), r"^has too many pixels"),
    "a gif that says it is large": (b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(99), "pixels|not an image"),
    "a header without pixels": (b"P6 9000 9000 255\n", "cannot be decoded"),
    "a text that unpacks to 200 MB": (small_png(chunk(b"zTXt", b"a\0\0" + BOMB)), "data too large"),
    "a profile that unpacks to 200 MB": (small_png(chunk(b"iCCP", b"a\0\0" + BOMB)), "data too large"),
}

READ = {
    "1 x 60000": saved(Image.new("RGB", (1, 60000)), "PNG"),
    "60000 x 1": saved(Image.new("RGB", (60000, 1)), "PNG"),
    "a gif of many pictures": saved(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
    "a png of many pictures": saved(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]),
    "a tiff of many pictures": saved(FRAMES[0], "TIFF", save_all=True, append_images=FRAMES[1:]),
    "a large profile": saved(FRAMES[0], "JPEG", icc_profile=bytes(5_000_000)),
    "many tags": small_png(chunk(b"eXIf", b"II*\0\x08\0\0\0" + struct.pack("<H", 9000) + bytes(12 * 9000))),
}


def item(data: bytes) -> RawItem:
    return RawItem("key", 0, len(data), "name")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", SET_ASIDE)
def test_what_asks_for_too_much_is_set_aside_with_the_reason(case: str) -> None:
    data, reason = SET_ASIDE[case]
    found = screen_image(item(data), data)
    assert isinstance(found, screening.Quarantined)
    with pytest.raises(ValueError, match=reason):
        raise ValueError(found.reason)


def test_all_of_them_together_take_little_memory(tmp_path: Path) -> None:
    """In a process that may not have more than 1 GiB beyond what it has at its start."""
    (tmp_path / "files").write_bytes(pickle.dumps([*READ.values(), *(data for data, _ in SET_ASIDE.values())]))
    code = f"""
import pickle, resource
from data_pipeline.ingest.screening import ImageSample, RawItem, screen_image
from data_pipeline.images.transforms import Transform
with open({str(tmp_path / "files")!r}, "rb") as file:
    files = pickle.load(file)
with open("/proc/self/statm") as file:
    limit = int(file.read().split()[0]) * resource.getpagesize() + 2**30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
found = [screen_image(RawItem("key", 0, len(data), "name"), data) for data in files]
good = [data for data, one in zip(files, found) if isinstance(one, ImageSample)]
for decode in ("exact", "fast"):
    for data in good:
        assert Transform(256, "crop", decode).views(data, ["center", "ten_crop_0"]).shape == (2, 256, 256, 3)
print(len(good))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == f"{len(READ)}\n", done.stderr


def test_a_jpeg_with_too_many_pixels_is_not_decoded_the_fast_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MOST_PIXELS", 20 * 24 - 1)
    assert plain_jpeg(jpeg(1)) is None
    for read in (image_extension, decode):
        with pytest.raises(decoding.PictureTooLargeError, match="has 20 x 24 pixels"):
            read(jpeg(1))


def test_a_jpeg_that_goes_over_its_picture_again_and_again_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MOST_SCANNED_PIXELS", 90 * 90 * 500)
    data = saved(Image.new("RGB", (90, 90)), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    assert image_extension(data) == "jpg"
    bomb = data[:-2] + last * 5000 + data[-2:]
    assert plain_jpeg(bomb) is None
    for read in (image_extension, decode):
        with pytest.raises(decoding.PictureTooLargeError, match="has 90 x 90 pixels in 5010 scans"):
            read(bomb)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "I;16", "1", "PA"])
def test_a_large_picture_is_converted_in_strips_as_a_small_one_is_at_once(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 23, 4), dtype=np.uint8), "RGBA")
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (37, 23), dtype=np.uint16))
    image = wide if mode == "I;16" else noise.convert("RGB").convert(mode) if mode == "CMYK" else noise.convert(mode)
    data = saved(image, "TIFF")
    whole = np.asarray(decode(data))
    monkeypatch.setattr(decoding, "_STRIP_PIXELS", 23 * 5)
    assert np.array_equal(np.asarray(decode(data)), whole)


def test_a_transparent_palette_is_converted_in_strips_too(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 3).convert("P")
    image.putpalette([200, 30, 30, 20, 40, 210, 1, 2, 3])
    data = saved(image, "PNG", transparency=1)
    whole = np.asarray(decode(data))
    assert (whole == 255).all(axis=2).any()
    monkeypatch.setattr(decoding, "_STRIP_PIXELS", 8)
    assert np.array_equal(np.asarray(decode(data)), whole)


def test_a_file_that_is_too_large_is_set_aside_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = write_photos(tmp_path / "photos", per_class=2)
    with (photos / "class0" / "huge.jpg").open("wb") as file:
        file.truncate(2**40)
    source = FolderSource(path=str(photos))
    manifest = ingest(DataConfig(source=source, max_bad_share=0.5), str(tmp_path / "images"), seed=0)["train"]
    assert (manifest.samples, manifest.quarantined) == (4, 1)
    listed = (tmp_path / "images" / "train" / "quarantine.json").read_text()
    assert f"has {2**40} bytes, more than {2**28}" in listed


def test_an_animation_is_its_first_picture() -> None:
    for form in ("GIF", "PNG", "TIFF", "WEBP"):
        data = saved(FRAMES[9], form, save_all=True, append_images=FRAMES[200:203])
        assert np.abs(np.asarray(decode(io.BytesIO(data).getvalue())).astype(int)[0, 0] - (9, 0, 0)).max() <= 3
