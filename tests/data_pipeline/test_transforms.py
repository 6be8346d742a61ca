"""Decoded images to squares: ADM's crops, padding, views, and what networks take."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipeline.images import pictures
from data_pipeline.images.transforms import (
    VIEWS,
    Transform,
    center_crop,
    decode,
    flip,
    pad,
    random_crop,
    random_short,
    to_model,
)
from tests.data_pipeline.small_data import jpeg


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
@settings(max_examples=40)
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


def test_flipping_exchanges_left_and_right() -> None:
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    assert flip(pixels)[0].tolist() == pixels[0, [2, 1, 0]].tolist()


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def reference_resize(image: Image.Image, short: int) -> npt.NDArray[np.uint8]:
    """ADM's steps, one by one, with Pillow's filters."""
    while min(image.width, image.height) >= 2 * short:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    ratio = short / min(image.width, image.height)
    resized = image.resize((round(ratio * image.width), round(ratio * image.height)), Image.Resampling.BICUBIC)
    return np.asarray(resized)


SIDES = st.integers(1, 90)
DRAWS = st.floats(0, 1, exclude_max=True)


@given(SIDES, SIDES, st.integers(1, 20))
@settings(max_examples=60)
def test_centre_crop_takes_adms_steps_at_every_size(width: int, height: int, size: int) -> None:
    resized = reference_resize(picture(width, height), size)
    top, left = (resized.shape[0] - size) // 2, (resized.shape[1] - size) // 2
    ours = np.asarray(center_crop(picture(width, height), size))
    assert np.array_equal(ours, resized[top : top + size, left : left + size])


@given(SIDES, SIDES, st.integers(1, 20), st.tuples(DRAWS, DRAWS, DRAWS))
@settings(max_examples=60)
def test_random_crop_takes_adms_steps_with_its_draws(
    width: int, height: int, size: int, draws: tuple[float, float, float]
) -> None:
    def drawn(draw: float, choices: range) -> int:
        return choices[math.floor(draw * len(choices))]

    short = drawn(draws[0], range(math.ceil(size / 1.0), math.ceil(size / 0.8) + 1))
    resized = reference_resize(picture(width, height), short)
    top = drawn(draws[1], range(resized.shape[0] - size + 1))
    left = drawn(draws[2], range(resized.shape[1] - size + 1))
    ours = np.asarray(random_crop(picture(width, height), size, draws))
    assert np.array_equal(ours, resized[top : top + size, left : left + size])


def test_random_crop_takes_every_short_side_from_256_to_320_equally_often() -> None:
    shorts = [random_short(256, (number + 0.5) / 650) for number in range(650)]
    assert shorts == [256 + number // 10 for number in range(650)]


@pytest.mark.parametrize("draw", [-0.1, 1.0, float("nan")])
def test_a_random_crop_takes_uniform_numbers_only(draw: float) -> None:
    with pytest.raises(ValueError, match="is no uniform number"):
        random_crop(picture(30, 20), 8, (0.5, draw, 0.5))


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_a_random_crop_of_a_file_is_that_of_its_picture(mode: str) -> None:
    file, draws = jpeg(2, 45, 30), (0.9, 0.2, 0.7)
    expected = np.asarray(random_crop(decode(file), 16, draws)).astype(int)
    assert np.abs(Transform(16, decode=mode).random(file, draws) - expected).max() <= (0 if mode == "exact" else 3)


def test_a_padded_image_has_no_random_crop() -> None:
    with pytest.raises(ValueError, match=r"data\.fit: pad; set it to crop"):
        Transform(32, "pad").random(jpeg(0), (0.0, 0.0, 0.0))


TEN_CROP = tuple(f"ten_crop_{number}" for number in range(10))
TEN_CROP_105 = tuple(f"ten_crop_105_{number}" for number in range(10))


@pytest.mark.parametrize(("names", "share"), [(TEN_CROP, 1.1), (TEN_CROP_105, 1.05)])
@pytest.mark.parametrize("size", [16, 31, 64])
def test_ten_crops_are_torchvisions_of_a_larger_centre_crop(names: tuple[str, ...], share: float, size: int) -> None:
    from torchvision.transforms import TenCrop

    file = jpeg(4, 150, 100)
    larger = Image.fromarray(np.asarray(center_crop(decode(file), int(size * share))))
    expected = np.stack([np.asarray(crop) for crop in TenCrop(size)(larger)])
    assert np.array_equal(Transform(size).views(file, names), expected)


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_the_view_of_the_centre_is_the_transform_itself(fit: str, mode: str) -> None:
    transform, file = Transform(32, fit, mode), jpeg(4)
    views = transform.views(file, ("center_flip", "center"))
    assert np.array_equal(views[1], transform(file))
    assert np.array_equal(views[0], flip(transform(file)))


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    """Notes each call of a function of `pictures`."""
    calls: list[str] = []
    function: Callable[..., object] = getattr(pictures, name)

    def noted(*arguments: object) -> object:
        calls.append(name)
        return function(*arguments)

    monkeypatch.setattr(pictures, name, noted)
    return calls


@pytest.mark.parametrize(
    ("mode", "decoding", "resizing"), [("exact", "decode", "resize"), ("fast", "decode_jpeg", "_bicubic")]
)
def test_all_views_cost_one_decode_and_one_resize_per_size_of_crop(
    mode: str, decoding: str, resizing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, resized = counted(monkeypatch, decoding), counted(monkeypatch, resizing)
    Transform(64, decode=mode).views(jpeg(0, 90, 80), tuple(VIEWS))
    assert (len(decoded), len(resized)) == (1, 3)


def test_padding_has_no_larger_crop_for_ten_crops() -> None:
    with pytest.raises(ValueError, match=r"ten_crop_3 is cut from a crop larger than the view.*set data\.fit to crop"):
        Transform(32, "pad").views(jpeg(0), ("center", "ten_crop_3"))


def test_networks_take_channels_first_from_minus_one_to_one() -> None:
    pixels = np.zeros((1, 2, 3, 3), dtype=np.uint8)
    pixels[0, 1, 2] = [255, 51, 0]
    images_BCHW = to_model(pixels)
    assert images_BCHW.dtype == np.float32
    assert images_BCHW.shape == (1, 3, 2, 3)
    assert images_BCHW[0, :, 1, 2].tolist() == pytest.approx([1.0, -0.6, -1.0])


def test_every_byte_becomes_the_float_that_one_rounding_each_gives() -> None:
    pixels = np.arange(768, dtype=np.uint8).reshape(1, 16, 16, 3)
    expected = pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)
    assert np.array_equal(to_model(list(pixels)), expected.transpose(0, 3, 1, 2))
    assert to_model(pixels).flags.c_contiguous
