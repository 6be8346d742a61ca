"""Decoded images to squares: ADM's crops, padding, views, and what networks take."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipeline.images import pictures
from data_pipeline.images.crop_kinds import ADM_RANDOM
from data_pipeline.images.transforms import Transform, center_crop, decode, flip, pad, to_model
from data_pipeline.images.views import VIEWS, RandomView, view_of
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


@given(SIDES, SIDES, st.integers(1, 20))
@settings(max_examples=60)
def test_centre_crop_takes_adms_steps_at_every_size(width: int, height: int, size: int) -> None:
    resized = reference_resize(picture(width, height), size)
    top, left = (resized.shape[0] - size) // 2, (resized.shape[1] - size) // 2
    ours = np.asarray(center_crop(picture(width, height), size))
    assert np.array_equal(ours, resized[top : top + size, left : left + size])


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


def test_random_views_cost_no_more_decodes_in_the_exact_way(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, resized = counted(monkeypatch, "decode"), counted(monkeypatch, "resize")
    Transform(64).views(jpeg(0, 90, 80), ("random_0", "center", "random_1"), b"key")
    assert (len(decoded), len(resized)) == (1, 3)


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("name", ["random_0", "random_3_seed_7", "random_var_2"])
def test_a_random_view_is_its_crop_with_draws_of_the_key_whatever_is_beside_it(name: str, mode: str) -> None:
    file, view, transform = jpeg(4, 90, 60), view_of(name), Transform(16, decode=mode)
    assert isinstance(view, RandomView)
    alone, mirrored = transform.views(file, (name, f"{name}_flip"), b"n01/1")
    draws = view.draws(b"n01/1", ("side", "y", "x") if view.crop == ADM_RANDOM else ("y", "x"))
    assert np.array_equal(alone, Transform(16, decode=mode, crop=view.crop)(file, draws))
    assert np.array_equal(mirrored, flip(alone))
    beside = transform.views(file, ("center", name, "ten_crop_0", "random_9"), b"n01/1")[1]
    assert np.array_equal(beside, alone)
    assert not np.array_equal(transform.views(file, (name,), b"n01/2")[0], alone)


def test_a_random_view_needs_a_key() -> None:
    with pytest.raises(ValueError, match="follows from the key of its image"):
        Transform(16).views(jpeg(0), ("random_0",))


def test_a_padded_image_draws_nothing() -> None:
    assert Transform(32, "pad", crop=ADM_RANDOM).draws == ()


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
