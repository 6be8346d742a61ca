"""Bytes, grids and PNG files."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from trainer.config.evaluation import Rounding
from trainer.evaluation.images import image_grid, to_bytes, to_png, to_uint8


def squares(count: int, side: int = 4, channels: int = 3) -> np.ndarray:
    """Image i is filled with 10 (i + 1)."""
    values = 10 * (np.arange(count) + 1)
    return np.broadcast_to(values[:, None, None, None], (count, side, side, channels)).astype(np.uint8)


def test_every_byte_comes_back_from_its_float() -> None:
    values = np.arange(256, dtype=np.float32).reshape(1, 1, 16, 16)
    np.testing.assert_array_equal(to_uint8(values / 127.5 - 1)[0, ..., 0], values[0, 0])


def test_halves_are_rounded_up_and_the_rest_to_the_nearest() -> None:
    levels = np.array([0.49, 0.51, 127.5, 254.49, 254.51])
    images = (levels / 127.5 - 1).reshape(1, 1, 1, -1)
    assert to_uint8(images).ravel().tolist() == [0, 1, 128, 254, 255]


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [("nearest", [100, 101, 128, 255]), ("floor", [100, 100, 127, 254]), ("adm", [100, 100, 127, 255])],
)
def test_the_three_roundings_differ_above_a_half_and_within_rounding_of_a_whole_byte(
    rounding: Rounding, expected: list[int]
) -> None:
    largest_below_1 = np.nextafter(np.float32(1), np.float32(0))
    values = np.array([100.3 / 127.5 - 1, 100.7 / 127.5 - 1, 0.0, largest_below_1], np.float32)
    assert to_bytes(values.reshape(1, 1, 2, 2), rounding).ravel().tolist() == expected


@pytest.mark.parametrize("rounding", ["nearest", "floor", "adm"])
def test_what_is_out_of_range_is_clipped(rounding: Rounding) -> None:
    values = np.array([-7.0, -1.0, 1.0, 7.0]).reshape(1, 1, 2, 2)
    assert to_bytes(values, rounding).ravel().tolist() == [0, 0, 255, 255]


def test_channels_move_last() -> None:
    images = np.stack([np.full((2, 5), value) for value in (-1.0, 0.0, 1.0)])[None]
    pixels = to_uint8(images)
    assert pixels.shape == (1, 2, 5, 3)
    assert pixels[0, 0, 0].tolist() == [0, 128, 255]


def test_tensors_are_taken_too() -> None:
    import torch

    images = torch.linspace(-1, 1, 12).reshape(1, 3, 2, 2)
    np.testing.assert_array_equal(to_uint8(images.requires_grad_()), to_uint8(images.detach().numpy()))
    assert to_uint8(images.bfloat16()).shape == (1, 2, 2, 3)


@pytest.mark.parametrize("images", [np.zeros((3, 4, 4)), np.zeros((1, 2, 4, 4)), np.full((1, 1, 2, 2), np.nan)])
def test_what_is_no_batch_of_images_is_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="images"):
        to_uint8(images)


def test_a_grid_holds_the_images_row_by_row() -> None:
    sheet = np.asarray(image_grid(squares(5), columns=3, padding=2))
    assert sheet.shape == (2 * 6 + 2, 3 * 6 + 2, 3)
    centres = [[int(sheet[2 + row * 6 + 1, 2 + column * 6 + 1, 0]) for column in range(3)] for row in range(2)]
    assert centres == [[10, 20, 30], [40, 50, 255]]  # the place after the last image stays white


def test_upscaling_repeats_pixels_and_blends_none() -> None:
    pixels = np.array([[[0], [255]], [[255], [0]]], dtype=np.uint8)[None]
    sheet = np.asarray(image_grid(pixels, columns=1, upscale=3, padding=0))
    assert sheet.shape == (6, 6, 3)
    np.testing.assert_array_equal(sheet[..., 0], np.kron(pixels[0, ..., 0], np.ones((3, 3), dtype=np.uint8)))


def test_labels_take_room_beside_the_images_and_hide_none() -> None:
    plain = np.asarray(image_grid(squares(4, side=40), columns=2))
    labelled = np.asarray(image_grid(squares(4, side=40), 2, row_labels=["coat", "bag"], column_labels=["a", "b"]))
    assert labelled.shape[0] > plain.shape[0]
    assert labelled.shape[1] > plain.shape[1]
    bottom_right = labelled[-plain.shape[0] + 2 :, -plain.shape[1] + 2 :]
    np.testing.assert_array_equal(bottom_right, plain[2:, 2:])
    margin = labelled[:, : -plain.shape[1]]
    assert margin.min() < 128  # something is written there


@pytest.mark.parametrize("labels", [{"row_labels": ["one"]}, {"column_labels": ["a", "b", "c"]}])
def test_labels_must_match_the_grid(labels: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError, match="labels for 2"):
        image_grid(squares(4), columns=2, **labels)


def test_a_grid_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="0 images"):
        image_grid(squares(0), columns=2)


def test_png_reads_back_without_loss() -> None:
    sheet = image_grid(squares(4), columns=2)
    with Image.open(io.BytesIO(to_png(sheet))) as read:
        assert read.format == "PNG"
        np.testing.assert_array_equal(np.asarray(read), np.asarray(sheet))
