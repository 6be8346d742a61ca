"""The crops of training images, each against the steps of those who published it, taken with the same draws."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from pydantic import TypeAdapter, ValidationError
from torchvision.transforms import CenterCrop, InterpolationMode, RandomResizedCrop, Resize
from torchvision.transforms.functional import resized_crop

from data_pipeline.config import DataConfig, ReadingConfig
from data_pipeline.images import crop_kinds, crops, pictures
from data_pipeline.images.crop_kinds import ADM_RANDOM, CENTER, VAR_RANDOM, AnyCrop, CropSetting
from data_pipeline.images.crops import cutter, random_rectangle
from data_pipeline.images.transforms import Transform, center_crop, crop_of, decode
from tests.data_pipeline.small_data import jpeg

SIDES = st.integers(1, 90)
DRAW = st.floats(0, 1, exclude_max=True)
FILTERS = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "lanczos": InterpolationMode.LANCZOS,
}
READ: TypeAdapter[AnyCrop] = TypeAdapter(CropSetting)


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def drawn(draw: float, choices: range) -> int:
    """Which of some numbers a uniform one stands for: each for an equal part of [0, 1)."""
    return choices[math.floor(draw * len(choices))]


def adm_resize(image: Image.Image, short: int) -> npt.NDArray[np.uint8]:
    """ADM's steps, one by one, with Pillow's filters."""
    while min(image.width, image.height) >= 2 * short:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    ratio = short / min(image.width, image.height)
    resized = image.resize((round(ratio * image.width), round(ratio * image.height)), Image.Resampling.BICUBIC)
    return np.asarray(resized)


@given(SIDES, SIDES, st.integers(1, 20), st.tuples(DRAW, DRAW, DRAW), st.sampled_from([(0.8, 1.0), (0.5, 0.9)]))
@settings(max_examples=60)
def test_the_random_crop_takes_adms_steps_with_its_draws(
    width: int, height: int, size: int, draws: tuple[float, float, float], shares: tuple[float, float]
) -> None:
    short = drawn(draws[0], range(math.ceil(size / shares[1]), math.ceil(size / shares[0]) + 1))
    resized = adm_resize(picture(width, height), short)
    top = drawn(draws[1], range(resized.shape[0] - size + 1))
    left = drawn(draws[2], range(resized.shape[1] - size + 1))
    ours = crop_of(picture(width, height), size, crop_kinds.RandomCrop(shares=shares), draws)
    assert np.array_equal(np.asarray(ours), resized[top : top + size, left : left + size])


def test_the_random_crop_takes_every_short_side_from_256_to_320_equally_often() -> None:
    shorts = [cutter(ADM_RANDOM).short(256, ((number + 0.5) / 650, 0.0, 0.0)) for number in range(650)]
    assert shorts == [256 + number // 10 for number in range(650)]


@given(
    SIDES, SIDES, st.integers(1, 20), st.tuples(DRAW, DRAW), st.sampled_from([1.0, 1.125]), st.sampled_from([*FILTERS])
)
@settings(max_examples=60)
def test_resize_random_crop_is_torchvisions_resize_and_a_square_at_the_draws(
    width: int, height: int, size: int, draws: tuple[float, float], short: float, name: Any
) -> None:
    resized = np.asarray(Resize(round(short * size), FILTERS[name])(picture(width, height)))
    top = drawn(draws[0], range(resized.shape[0] - size + 1))
    left = drawn(draws[1], range(resized.shape[1] - size + 1))
    crop = crop_kinds.ResizeRandomCrop(short=short, filter=name)
    ours = crop_of(picture(width, height), size, crop, draws)
    assert np.array_equal(np.asarray(ours), resized[top : top + size, left : left + size])


@given(st.integers(20, 60), st.integers(20, 60), st.tuples(DRAW, DRAW, DRAW))
@settings(max_examples=30)
def test_a_range_of_short_sides_draws_each_whole_number_of_pixels(
    width: int, height: int, draws: tuple[float, float, float]
) -> None:
    short = drawn(draws[0], range(16, 20 + 1))
    resized = np.asarray(Resize(short, InterpolationMode.BILINEAR)(picture(width, height)))
    top = drawn(draws[1], range(resized.shape[0] - 16 + 1))
    left = drawn(draws[2], range(resized.shape[1] - 16 + 1))
    crop = crop_kinds.ResizeRandomCrop(short=(1.0, 1.25), filter="bilinear")
    ours = crop_of(picture(width, height), 16, crop, draws)
    assert np.array_equal(np.asarray(ours), resized[top : top + 16, left : left + 16])


def test_vars_crop_resizes_256_pixels_to_288_with_lanczos() -> None:
    assert VAR_RANDOM.short == 1.125
    assert VAR_RANDOM.filter == "lanczos"
    resized = np.asarray(picture(400, 300).resize((384, 288), Image.Resampling.LANCZOS))
    ours = crop_of(picture(400, 300), 256, VAR_RANDOM, (0.999999, 0.0))
    assert np.array_equal(np.asarray(ours), resized[32:288, 0:256])


@given(SIDES, SIDES, st.integers(1, 20), st.sampled_from([1.0, 1.15]), st.sampled_from([*FILTERS]))
@settings(max_examples=60)
def test_resize_center_crop_is_torchvisions(width: int, height: int, size: int, short: float, name: Any) -> None:
    resized = Resize(round(short * size), FILTERS[name])(picture(width, height))
    crop = crop_kinds.ResizeCenterCrop(short=short, filter=name)
    assert np.array_equal(
        np.asarray(crop_of(picture(width, height), size, crop)), np.asarray(CenterCrop(size)(resized))
    )


def torchvisions_draws(
    seed: int, rectangle: tuple[int, int, int, int], attempts: int, sides: tuple[int, int]
) -> list[float]:
    """The uniform numbers that torchvision drew from a seed, as our crop takes them."""
    torch.manual_seed(seed)
    shapes = [torch.rand(1).item() for _ in range(2 * attempts)]
    top, left, down, across = rectangle
    rows, columns = sides[1] - down + 1, sides[0] - across + 1
    return [*shapes, *[0.0] * (20 - len(shapes)), (top + 0.5) / rows, (left + 0.5) / columns]


@pytest.mark.parametrize("sides", [(64, 48), (20, 90), (33, 33), (90, 7)])
@pytest.mark.parametrize("seed", range(12))
def test_random_resized_crop_is_torchvisions_with_its_draws(seed: int, sides: tuple[int, int]) -> None:
    area, ratio = (0.3, 1.0), (3 / 4, 4 / 3)
    torch.manual_seed(seed)
    expected = RandomResizedCrop.get_params(picture(*sides), list(area), list(ratio))
    crop = crop_kinds.RandomResizedCrop(area=area, ratio=ratio)
    fitting = (torchvisions_draws(seed, expected, attempts, sides) for attempts in range(1, 11))
    found = next(
        (draws for draws in fitting if _tlhw(random_rectangle(*sides, crop, draws)) == expected),
        None,
    )
    assert found is not None
    ours = crop_of(picture(*sides), 16, crop, found)
    theirs = resized_crop(picture(*sides), *expected, [16, 16], InterpolationMode.BILINEAR)
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def _tlhw(rectangle: crops.Rectangle) -> tuple[int, int, int, int]:
    return rectangle.top, rectangle.left, rectangle.height, rectangle.width


def test_the_first_rectangle_that_fits_is_cut() -> None:
    """Of 40 x 10 pixels a square of the whole area does not fit, one of a tenth does: 6 x 6, rounded."""
    crop = crop_kinds.RandomResizedCrop(area=(0.1, 1.0), ratio=(1.0, 1.0))
    never, tenth = [1 - 1e-9, 0.5], [0.0, 0.5]
    draws = [*never, *tenth, *never * 8, 0.5, 0.0]
    assert random_rectangle(40, 10, crop, draws) == (0, 2, 6, 6)


@pytest.mark.parametrize(
    ("sides", "expected"),
    [((40, 10), (10, 0, 20, 10)), ((10, 40), (0, 15, 10, 10)), ((30, 20), (0, 0, 30, 20))],
)
def test_where_none_of_ten_fits_the_centre_of_a_possible_ratio_is_cut(
    sides: tuple[int, int], expected: tuple[int, int, int, int]
) -> None:
    crop = crop_kinds.RandomResizedCrop(area=(1.0, 1.0), ratio=(1.0, 2.0))
    assert random_rectangle(*sides, crop, [0.0] * 22) == expected


def test_random_resized_crop_draws_areas_evenly_and_ratios_evenly_in_their_logarithm() -> None:
    crop = crop_kinds.RandomResizedCrop(area=(0.2, 0.4), ratio=(0.5, 2.0))
    low, high = [random_rectangle(1000, 1000, crop, [draw, draw, *[0.0] * 20]) for draw in (0.0, 1 - 1e-12)]
    assert (low.width, low.height) == (round(math.sqrt(0.2 * 0.5) * 1000), round(math.sqrt(0.2 / 0.5) * 1000))
    assert (high.width, high.height) == (round(math.sqrt(0.4 * 2) * 1000), round(math.sqrt(0.4 / 2) * 1000))
    middle = random_rectangle(1000, 1000, crop, [0.5, 0.5, *[0.0] * 20])
    assert (middle.width, middle.height) == (548, 548)  # the root of .3, square


NAMED = ["center", "random", "resize-random-crop", "resize-center-crop", "random-resized-crop"]


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("bad", [-0.1, 1.0, float("nan")])
def test_a_crop_takes_uniform_numbers_only(name: str, bad: float) -> None:
    crop = READ.validate_python(name)
    draws = [0.5] * (len(cutter(crop).draws) - 1)
    if draws:
        with pytest.raises(ValueError, match="is no uniform number"):
            crop_of(picture(30, 20), 8, crop, [*draws, bad])


def turned(file: bytes, orientation: int) -> bytes:
    """The same picture, stored in an orientation."""
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = orientation
    Image.open(io.BytesIO(file)).save(buffer, "JPEG", exif=exif, quality=95)
    return buffer.getvalue()


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_crop_of_a_file_is_that_of_its_upright_picture(name: str, mode: str, orientation: int) -> None:
    file, crop = turned(jpeg(2, 45, 30), orientation), READ.validate_python(name)
    draws = (0.9, 0.2, 0.7, 0.1, *[0.4] * 18)[: len(cutter(crop).draws)]
    expected = np.asarray(crop_of(decode(file), 16, crop, draws)).astype(int)
    found = Transform(16, decode=mode, crop=crop)(file, draws)
    assert np.abs(found - expected).max() <= (0 if mode == "exact" else 3)


@pytest.mark.parametrize("name", ["resize-random-crop", "resize-center-crop", "random-resized-crop"])
def test_a_picture_of_a_line_is_cut_without_being_resized_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    resize = Image.Image.resize

    def noted(image: Image.Image, size: tuple[int, int], *arguments: Any, **options: Any) -> Image.Image:
        sizes.append(math.prod(size))
        return resize(image, size, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", noted)
    crop = READ.validate_python(name)
    crop_of(Image.new("RGB", (1, 60_000)), 256, crop, [0.5] * len(cutter(crop).draws))
    assert max(sizes) <= pictures.MOST_RESIZED_PIXELS


@pytest.mark.parametrize("name", [*FILTERS])
def test_what_is_resized_alone_is_what_a_whole_resize_gives(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    crop = crop_kinds.ResizeRandomCrop(short=1.25, filter=name)
    whole = np.asarray(crop_of(picture(61, 43), 16, crop, (0.6, 0.3))).astype(int)
    monkeypatch.setattr(pictures, "MOST_RESIZED_PIXELS", 0)
    assert np.abs(np.asarray(crop_of(picture(61, 43), 16, crop, (0.6, 0.3))) - whole).max() <= 1


def test_a_crop_is_named_or_spelled_out() -> None:
    assert ReadingConfig.model_validate({"crop": "random"}).crop == ADM_RANDOM
    spelled = {"kind": "resize-random-crop", "short": 1.125, "filter": "lanczos"}
    assert ReadingConfig.model_validate({"crop": spelled}).crop == VAR_RANDOM
    assert ReadingConfig().crop == CENTER


@pytest.mark.parametrize("crop", ["center", "random", {"kind": "random", "shares": [0.5, 1.0]}])
def test_a_crop_is_written_as_it_is_read(crop: Any) -> None:
    """So that runs that were begun with a name go on."""
    written = ReadingConfig.model_validate({"crop": crop}).model_dump(mode="json")["crop"]
    assert written == crop


@pytest.mark.parametrize(
    ("crop", "message"),
    [
        ("randm", "'randm'"),
        ({"kind": "random", "shares": [1.0, 0.8]}, "shares goes from the least to the most"),
        ({"kind": "random", "shares": [0.5, 1.5]}, "less than or equal to 1"),
        ({"kind": "resize-random-crop", "short": 0.9}, "greater than or equal to 1"),
        ({"kind": "resize-random-crop", "short": [1.5, 1.0]}, "short goes from the least to the most"),
        ({"kind": "resize-center-crop", "filter": "box"}, "'bilinear', 'bicubic' or 'lanczos'"),
        ({"kind": "random-resized-crop", "area": [0.5, 0.2]}, "area goes from the least to the most"),
        ({"kind": "random-resized-crop", "ratio": [2.0, 1.0]}, "ratio goes from the least to the most"),
        ({"kind": "center", "filter": "bicubic"}, "Extra inputs are not permitted"),
    ],
)
def test_a_crop_that_cannot_be_is_refused(crop: Any, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ReadingConfig.model_validate({"crop": crop})
    assert message in str(caught.value)


@pytest.mark.parametrize("name", NAMED[1:])
def test_padded_images_are_not_cropped(name: str) -> None:
    with pytest.raises(ValidationError, match=f"reading.crop: {name} cuts images, and fit: pad does not"):
        DataConfig.model_validate({"fit": "pad", "reading": {"crop": name}})


def test_the_centre_crop_is_the_one_of_the_transform() -> None:
    assert np.array_equal(
        np.asarray(crop_of(picture(50, 40), 16, CENTER)), np.asarray(center_crop(picture(50, 40), 16))
    )
