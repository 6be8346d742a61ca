"""Text in images, read back: of originals without a mistake, of blurred ones with some, of noise by chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from data_pipeline.errors import UsageError
from trainer.evaluation.naming.numbers import Number
from trainer.evaluation.tokenizers.legibility import SYMBOLS, font_of, legibility, page, read, sizes_that_fit

Pixels = npt.NDArray[np.uint8]
SIZES = (6, 8, 12, 20)


def probed(reconstruct: Any, sizes: tuple[int, ...] = (8,), **options: Any) -> list[Number]:
    return legibility(reconstruct, 64, sizes, {"crop": "c"}, {"tokenizer": "t"}, **({"pages": 8} | options))


def blurred(pixels_BHWC: Pixels, by: int) -> npt.NDArray[np.floating]:
    count, size, _, _ = pixels_BHWC.shape
    means = pixels_BHWC.reshape(count, size // by, by, size // by, by, 3).mean((2, 4))
    return means.repeat(by, axis=1).repeat(by, axis=2)


@pytest.mark.parametrize("size", SIZES)
def test_every_symbol_is_another_picture_that_lies_within_its_cell(size: int) -> None:
    font = font_of(size)
    assert len({glyph.tobytes() for glyph in font.glyph_SHW}) == len(SYMBOLS) == 36
    assert (font.glyph_SHW.reshape(36, -1).min(1) < 128).all()
    assert (font.glyph_SHW[:, -1] == 255).all()


@pytest.mark.parametrize("size", SIZES)
def test_originals_are_read_without_a_mistake(size: int) -> None:
    for number in range(4):
        found = page(64, size, 0, number)
        np.testing.assert_array_equal(read(found.pixels_HWC, found.corner_N2, size), found.symbol_N)


def test_neither_brightness_nor_contrast_matter() -> None:
    found = page(64, 8, 0, 0)
    faint = 0.1 * found.pixels_HWC.astype(np.float64) - 7
    np.testing.assert_array_equal(read(faint, found.corner_N2, 8), found.symbol_N)


def test_reading_is_the_most_alike_template_pixel_by_pixel() -> None:
    found, font = page(64, 8, 0, 0), font_of(8)
    noisy = found.pixels_HWC + np.random.default_rng(0).normal(0, 150, found.pixels_HWC.shape)
    expected = []
    for top, left in found.corner_N2:
        cell = noisy[top : top + font.height, left : left + font.width].mean(2).ravel()
        expected.append(int(np.argmax([np.corrcoef(cell, glyph.ravel())[0, 1] for glyph in font.glyph_SHW])))
    assert read(noisy, found.corner_N2, 8).tolist() == expected
    assert expected != found.symbol_N.tolist()


def test_pages_are_words_that_follow_from_seed_and_number() -> None:
    one = page(64, 8, 0, 1)
    np.testing.assert_array_equal(one.pixels_HWC, page(64, 8, 0, 1).pixels_HWC)
    assert (one.pixels_HWC != page(64, 8, 0, 2).pixels_HWC).any()
    assert (one.pixels_HWC != page(64, 8, 1, 1).pixels_HWC).any()
    font = font_of(8)
    cells = (64 // font.width) * (64 // font.height)
    assert 0.5 * cells < len(one.symbol_N) < cells
    assert set(one.corner_N2[:, 0]) == {font.height * row for row in range(64 // font.height)}
    assert all(one.corner_N2[one.corner_N2[:, 0] == top, 1].min() == 0 for top in set(one.corner_N2[:, 0]))
    assert len({tuple(corner) for corner in one.corner_N2.tolist()}) == len(one.symbol_N)


def test_a_whole_copy_is_read_and_a_blank_page_is_not() -> None:
    copy, original = probed(lambda pixels: pixels / 127.5 - 1)
    assert (copy.value, original.value) == (1.0, 1.0)
    blank, original = probed(np.zeros_like, pages=32)
    assert blank.value == pytest.approx(1 / 36, abs=0.02)
    assert original.value == 1.0


def test_coarser_reconstructions_are_read_worse() -> None:
    two, _, four, _ = (each for by in (2, 4) for each in probed(lambda pixels, by=by: blurred(pixels, by), sizes=(12,)))
    assert 1 > two.value > four.value > 1 / 36
    assert two.plus_minus is not None
    assert 0 < two.plus_minus < 0.1


def test_numbers_say_size_and_characters() -> None:
    found = probed(lambda pixels: pixels, sizes=(8, 12))
    assert [each.metric for each in found] == ["text_accuracy", "text_accuracy_of_originals"] * 2
    assert [each.measured_by["protocol"]["size"] for each in found] == [8, 8, 12, 12]
    assert found[0].measured_by["crop"] == "c"
    assert found[0].measured_by["protocol"]["characters"] == sum(len(page(64, 8, 0, n).symbol_N) for n in range(8))
    assert found[0].images == 8
    assert found[0].measured_of == {"tokenizer": "t"}


def test_text_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="give a smaller size"):
        page(16, 40, 0, 0)


def test_sizes_are_those_of_which_two_characters_fit() -> None:
    side = max(font_of(12).height, 2 * font_of(12).width)
    assert sizes_that_fit(side) == (8, 12)
    assert sizes_that_fit(side - 1) == (8,)
    assert sizes_that_fit(256) == (8, 12, 16)
    with pytest.raises(UsageError, match="does not fit into images of 8"):
        sizes_that_fit(8)
