"""Squared error, PSNR and SSIM against arithmetic, pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trainer.evaluation.quality import psnr, squared_error, ssim


def pair(side: int, images: int = 2) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(side)
    first = random.uniform(-1, 1, (images, 3, side, side))
    return first, np.clip(first + random.normal(0, 0.3, first.shape), -1, 1)


def plain_ssim(first: np.ndarray, second: np.ndarray, size: int) -> float:
    """Of one image in [-1, 1]: window by window."""
    place = np.arange(size) - size // 2
    weight = np.exp(-(place[:, None] ** 2 + place[None] ** 2) / (2 * 1.5**2))
    weight /= weight.sum()
    found = []
    for x, y in zip((first + 1) / 2, (second + 1) / 2, strict=True):
        for top in range(x.shape[0] - size + 1):
            for left in range(x.shape[1] - size + 1):
                a, b = (each[top : top + size, left : left + size] for each in (x, y))
                ma, mb = (weight * a).sum(), (weight * b).sum()
                va, vb = (weight * (a - ma) ** 2).sum(), (weight * (b - mb) ** 2).sum()
                cov = (weight * (a - ma) * (b - mb)).sum()
                luminance = (2 * ma * mb + 1e-4) / (ma * ma + mb * mb + 1e-4)
                found.append(luminance * (2 * cov + 9e-4) / (va + vb + 9e-4))
    return float(np.mean(found))


def test_squared_error_is_of_each_image() -> None:
    first, second = pair(4)
    found = squared_error(torch.from_numpy(first), torch.from_numpy(second))
    assert found.tolist() == pytest.approx(((first - second) ** 2).mean((1, 2, 3)).tolist(), rel=1e-6)


def test_psnr_takes_the_range_of_two_as_the_peak_and_stays_finite() -> None:
    found = psnr(torch.tensor([4.0, 0.04, 0.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx([0.0, 20.0, 10 * math.log10(4e10)])


@pytest.mark.parametrize(("side", "window"), [(13, 11), (11, 11), (8, 7), (1, 1)])
def test_ssim_is_the_mean_over_windows_of_the_published_formula(side: int, window: int) -> None:
    first, second = pair(side)
    found = ssim(torch.from_numpy(first), torch.from_numpy(second)).tolist()
    assert found == pytest.approx([plain_ssim(a, b, window) for a, b in zip(first, second, strict=True)], abs=1e-4)


def test_an_image_is_wholly_similar_to_itself() -> None:
    first, _ = pair(12)
    assert ssim(torch.from_numpy(first), torch.from_numpy(first)).tolist() == pytest.approx([1, 1], abs=1e-5)
