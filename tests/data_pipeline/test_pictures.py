"""Squares cut from pictures: the fast way computes nearly what Pillow computes, however the picture is stored."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipeline.images import pictures
from data_pipeline.images.decoding import Pixels
from data_pipeline.images.pictures import DECODERS, ExactPicture, FastPicture, Picture, Square, halvings, resized_size
from tests.data_pipeline.small_data import jpeg


def photograph(width: int, height: int, orientation: int = 1) -> bytes:
    """A smooth picture in JPEG without coarse colours, turned as told."""
    upright = Image.open(io.BytesIO(jpeg(width, width, height)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    upright.save(buffer, "JPEG", quality=95, subsampling=0, exif=exif)
    return buffer.getvalue()


def opened(file: bytes, short: int) -> tuple[Picture, Picture]:
    exact, fast = DECODERS["exact"](file, short), DECODERS["fast"](file, short)
    assert isinstance(fast, FastPicture)
    assert fast.size == exact.size
    return exact, fast


def psnr(one: Pixels, other: Pixels) -> float:
    error = np.mean((one.astype(np.float64) - other) ** 2)
    return float(10 * np.log10(255**2 / max(float(error), 1e-9)))


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 600))
def test_halvings_are_as_many_as_adms_loop_makes(width: int, height: int, short: int) -> None:
    count, sides = 0, (width, height)
    while min(sides) >= 2 * short:
        count, sides = count + 1, (sides[0] // 2, sides[1] // 2)
    assert halvings(width, height, short) == count


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 600))
def test_the_short_side_becomes_what_was_asked_for(width: int, height: int, short: int) -> None:
    assert min(resized_size(width, height, short)) == short


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("sides", [(120, 90), (90, 150), (131, 97), (263, 201)])
def test_a_turned_photograph_is_cut_where_it_is_upright(orientation: int, sides: tuple[int, int]) -> None:
    exact, fast = opened(photograph(*sides, orientation), 48)
    width, height = resized_size(*exact.size, 48)
    for left, top in ((0, 0), (width - 40, height - 40), ((width - 40) // 2, (height - 40) // 3)):
        square = Square(48, left, top, 40)
        assert psnr(fast.cut(square), exact.cut(square)) > 40


@given(st.integers(17, 70), st.integers(17, 70), st.integers(33, 48), st.integers(1, 8))
@settings(max_examples=40)
def test_without_halving_fast_differs_by_rounding_alone(width: int, height: int, short: int, orientation: int) -> None:
    exact, fast = opened(photograph(width, height, orientation), short)
    assume(not halvings(width, height, short))
    wide, high = resized_size(*exact.size, short)
    square = Square(short, wide - short, high - short, short)
    assert np.abs(fast.cut(square).astype(int) - exact.cut(square)).max() <= 2


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 40), st.integers(1, 8))
@settings(max_examples=60)
def test_every_corner_of_every_size_can_be_cut(width: int, height: int, short: int, orientation: int) -> None:
    _, fast = opened(photograph(width, height, orientation), short)
    wide, high = resized_size(*fast.size, short)
    for left, top in ((0, 0), (wide - short, high - short)):
        assert fast.cut(Square(short, left, top, short)).shape == (short, short, 3)


@pytest.mark.parametrize(("short", "halved"), [(101, 0), (100, 1), (50, 2), (25, 3), (12, 3)])
def test_a_jpeg_is_halved_while_it_is_decoded_as_adm_would_and_at_most_three_times(short: int, halved: int) -> None:
    _, fast = opened(photograph(240, 200), short)
    assert isinstance(fast, FastPicture)
    assert fast.pixels_HWC.shape == (200 >> halved, 240 >> halved, 3)


@given(st.integers(1, 40), st.integers(40, 200), st.booleans(), st.integers(40, 60), st.data())
@settings(max_examples=60)
def test_a_square_of_a_long_picture_is_what_resizing_all_of_it_gives(
    narrow: int, long: int, is_tall: bool, short: int, data: st.DataObject
) -> None:
    width, height = (narrow, long) if is_tall else (long, narrow)
    noise = np.random.default_rng(long).integers(0, 256, (height, width, 3), dtype=np.uint8)
    wide, high = resized_size(width, height, short)
    left, top = data.draw(st.integers(0, wide - short)), data.draw(st.integers(0, high - short))
    picture, square = ExactPicture(Image.fromarray(noise)), Square(short, left, top, short)
    whole = picture.cut(square)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pictures, "MOST_RESIZED_PIXELS", 0)
        assert np.abs(picture.cut(square).astype(int) - whole).max() <= 2


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize("sides", [(1, 60000), (60000, 1), (3, 65500)])
def test_only_the_square_of_a_long_picture_is_resized(
    decode: str, sides: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole of it would have billions of pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", sides, (200, 30, 30)).save(buffer, "PNG")
    made: list[int] = []
    resize = Image.Image.resize

    def counted(image: Image.Image, size: tuple[int, int], *arguments: object, **options: object) -> Image.Image:
        made.append(size[0] * size[1])
        assert made[-1] < 2**22
        return resize(image, size, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "resize", counted)
    picture = DECODERS[decode](buffer.getvalue(), 256)
    wide, high = resized_size(*sides, 256)
    for square in (Square(256, 0, 0, 256), Square(256, (wide - 256) // 2, (high - 256) // 2, 256)):
        pixels_HWC = picture.cut(square)
        assert pixels_HWC.shape == (256, 256, 3)
        assert (pixels_HWC == (200, 30, 30)).all()
    assert made
