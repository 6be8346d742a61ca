"""Error, PSNR and bits by arithmetic on paper; what is garbage and what is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.layout import TokenLayout
from trainer.inference.fidelity import Fidelity, bits, compare, is_garbage, photograph_like, psnr


def picture(size: int) -> Tensor:
    pixels_HWC = np.asarray(photograph_like(size)).copy()
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1)[None].float() / 127.5 - 1


def test_errors_are_means_of_squares_of_each_image() -> None:
    image_BCHW = torch.tensor([1.0, -1.0]).view(1, 1, 1, 2).expand(2, 3, 2, 2)
    seen_BCHW = image_BCHW.clone()
    seen_BCHW[1] *= 0.5
    one, two = compare(["one", "two"], image_BCHW, seen_BCHW)
    assert (one.name, one.error, one.plain_error) == ("one", 0, 1)
    assert (two.error, two.plain_error) == (0.25, 1)
    assert two.psnr == pytest.approx(10 * math.log10(4 / 0.25))
    assert one.psnr == math.inf
    assert one.to_json() == {"name": "one", "squared_error": 0, "psnr": None, "of_mean_colour": 1}


def test_psnr_of_a_difference_of_one_level_is_48_db() -> None:
    assert psnr((2 / 255) ** 2) == pytest.approx(20 * math.log10(255))


def test_bits_count_the_codes_of_each_fold_at_the_positions_that_are_kept() -> None:
    layout = TokenLayout((1, 4, 9), (64, 256))
    assert bits(layout) == 14 * (6 + 8)
    assert bits(layout, 5) == 5 * (6 + 8)


@pytest.mark.parametrize(("size", "patch"), [(256, 32), (64, 8), (32, 4)])
def test_a_blurred_picture_is_no_garbage_and_one_colour_and_a_mirror_are(size: int, patch: int) -> None:
    image = picture(size)
    blurred = F.interpolate(F.avg_pool2d(image, patch), size=size, mode="bilinear")
    assert not is_garbage(compare(["a"], image, blurred))
    assert is_garbage(compare(["a"], image, image.mean((2, 3), keepdim=True).expand_as(image)))
    assert is_garbage(compare(["a"], image, -image))
    assert is_garbage(compare(["a"], image, image.flip(2)))
    assert is_garbage(compare(["a"], image, image * torch.nan))


def test_a_picture_of_one_colour_is_compared_with_itself() -> None:
    assert not is_garbage([Fidelity("a", 1e-3, 0.0)])
    assert is_garbage([Fidelity("a", 0.1, 0.0)])


def test_the_made_up_picture_is_always_the_same_and_has_the_spectrum_of_photographs() -> None:
    assert np.array_equal(np.asarray(photograph_like(64)), np.asarray(photograph_like(64)))
    grey = np.asarray(photograph_like(256).convert("L"), float)
    power = np.abs(np.fft.fft2(grey - grey.mean())) ** 2
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256))) * 256
    low, high = (power[(frequency >= start) & (frequency < 2 * start)].mean() for start in (4, 32))
    assert 2 < math.log2(low / high) / 3 < 4  # photographs: 2 to 3 octave by octave
