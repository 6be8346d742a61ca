"""Bits against squared error: what a JPEG is charged with, which quality fits, and the curves."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from model.layout import TokenLayout
from trainer.evaluation.measures import Rows
from trainer.evaluation.naming.numbers import Number
from trainer.evaluation.tokenizers.rate_distortion import (
    QUALITIES,
    Curve,
    JpegMeasure,
    Point,
    charged_bits,
    component_curve,
    jpeg_curve,
    jpeg_file,
    tokenizer_curve,
)


def images(count: int, size: int = 32) -> npt.NDArray[np.uint8]:
    """Gradients with noise."""
    y, x = np.mgrid[:size, :size] * (200 / size)
    noise = np.random.default_rng(0).normal(0, 12, (count, size, size, 3))
    return np.clip(np.stack([x, y, (x + y) / 2], 2) + noise, 0, 255).astype(np.uint8)


def error(data: bytes, original: npt.NDArray[np.uint8]) -> float:
    seen = np.asarray(Image.open(io.BytesIO(data)), dtype=np.float64)
    return float((((seen / 127.5 - 1) - (original / 127.5 - 1)) ** 2).mean())


def test_a_file_is_charged_with_its_scan_and_a_byte_for_the_quality() -> None:
    """Counted from the other end: files of one size and quality share all before the scan's data, and the end mark."""
    one, other = (jpeg_file(each, 50) for each in images(2))
    start = one.index(b"\xff\xda")
    header = start + 2 + int.from_bytes(one[start + 2 : start + 4], "big")
    assert one[:header] == other[:header]
    assert charged_bits(one) == 8 * (len(one) - header - 2) + 8
    assert header > 600


@pytest.mark.parametrize("quality", [1, 50, 95])
def test_headers_follow_from_the_quality_alone(quality: int) -> None:
    header = len(jpeg_file(images(1)[0], quality)) - (charged_bits(jpeg_file(images(1)[0], quality)) - 8) // 8
    assert header == len(jpeg_file(images(1)[0], 75)) - (charged_bits(jpeg_file(images(1)[0], 75)) - 8) // 8


@pytest.mark.parametrize("data", [b"", b"hello", jpeg_file(images(1)[0], 5)[:-2]], ids=["empty", "text", "cut"])
def test_what_is_no_whole_jpeg_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="JPEG"):
        charged_bits(data)


def test_the_highest_quality_that_fits_is_taken() -> None:
    pixels = images(2)
    found = JpegMeasure((1000, 3000))(pixels, np.zeros(2, np.int64), 0)
    for image, original in enumerate(pixels):
        sizes = {quality: charged_bits(jpeg_file(original, quality)) for quality in QUALITIES}
        for place, budget in enumerate((1000, 3000)):
            best = max(quality for quality in QUALITIES if sizes[quality] <= budget)
            assert found["jpeg_bits"][image, place] == sizes[best] <= budget
            expected = error(jpeg_file(original, best), original)
            assert found["jpeg_mse"][image, place] == pytest.approx(expected, rel=1e-5)
    assert (found["jpeg_mse"][:, 0] > found["jpeg_mse"][:, 1]).all()


def test_the_measure_of_a_set_names_its_budgets() -> None:
    found = JpegMeasure((1000, 3000))
    assert found.identity()["budgets"] == [1000, 3000]
    assert found.open(torch.device("cpu")) is found


def test_a_budget_that_nothing_fits_into_has_no_bits() -> None:
    found = JpegMeasure((16, 3000))(images(1), np.zeros(1, np.int64), 0)
    assert found["jpeg_bits"][0, 0] == 0
    assert found["jpeg_bits"][0, 1] > 0


class Halves:
    """Rows in two parts."""

    def __init__(self, **rows: npt.NDArray[Any]) -> None:
        self._rows, self.count = rows, len(next(iter(rows.values())))

    def parts(self, *names: str) -> Iterator[Rows]:
        for part in (slice(0, 1), slice(1, None)):
            yield {name: self._rows[name][part] for name in names}

    def column(self, name: str) -> npt.NDArray[Any]:
        return self._rows[name]


def test_a_budget_has_a_point_where_all_images_fit() -> None:
    rows = Halves(
        jpeg_bits=np.array([[0, 90], [40, 110]], np.int32), jpeg_mse=np.array([[0.0, 0.25], [0.5, 0.75]], np.float32)
    )
    assert jpeg_curve(rows, (50, 120)) == Curve("JPEG", (Point(50, None, None), Point(120, 100.0, 0.5)))


def test_a_tokenizers_points_are_its_prefixes() -> None:
    numbers = [Number("mse", 0.5, 9, {}, {"keep": 5}), Number("mse", 0.75, 9, {}, {"keep": 1}), Number("psnr", 9.0, 9)]
    found = tokenizer_curve(numbers, TokenLayout((1, 4), (256, 16)))
    assert found.points == (Point(12, 12, 0.75), Point(60, 60, 0.5))


def test_components_are_charged_with_eight_bits_each() -> None:
    training, held_out = images(12, size=8), images(12, size=8)
    none, two = component_curve(training, held_out, (7, 20)).points
    unit = training.reshape(12, -1) / 127.5 - 1
    assert (none.bits, none.mse) == (0, pytest.approx(((unit - unit.mean(0)) ** 2).mean()))
    assert (two.budget, two.bits) == (20, 16)
    assert two.mse is not None
    assert none.mse is not None
    assert two.mse < none.mse
