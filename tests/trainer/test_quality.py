"""Squared error, PSNR and SSIM against arithmetic, pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trainer.evaluation import quality
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
    assert found == pytest.approx([plain_ssim(a, b, window) for a, b in zip(first, second, strict=True)], abs=1e-9)


def test_an_image_is_wholly_similar_to_itself() -> None:
    first, _ = pair(12)
    assert ssim(torch.from_numpy(first), torch.from_numpy(first)).tolist() == pytest.approx([1, 1], abs=1e-12)


def test_two_flat_images_differ_in_luminance_alone() -> None:
    black, white = (torch.full((1, 3, 16, 16), value) for value in (-1.0, 1.0))
    assert ssim(black, white).item() == pytest.approx(1e-4 / (1 + 1e-4), rel=1e-9)


def test_many_images_are_compared_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (torch.from_numpy(each) for each in pair(12, images=5))
    whole = ssim(first, second)
    monkeypatch.setattr(quality, "_VALUES_AT_ONCE", 2 * 3 * 12 * 12)
    torch.testing.assert_close(ssim(first, second), whole, rtol=1e-12, atol=0)


def smooth_pair(side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A bright gradient and a copy with a little noise, where float32 loses the variances; and two noises."""
    noise_1, noise_2 = (torch.from_numpy(each).float() for each in pair(side))
    bright = torch.linspace(0.75, 0.95, side).expand(1, 3, side, side)
    return torch.cat([noise_1, bright]), torch.cat([noise_2, (bright + 0.01 * noise_1[:1]).clamp(-1, 1)])


def test_psnr_is_that_of_torchmetrics() -> None:
    from torchmetrics.functional.image import peak_signal_noise_ratio

    first, second = smooth_pair(24)
    expected = peak_signal_noise_ratio(second, first, data_range=2.0, reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(psnr(squared_error(second, first)), expected.double(), rtol=1e-5, atol=0)


def test_ssim_is_that_of_torchmetrics_without_the_windows_over_its_mirrored_border() -> None:
    from torchmetrics.functional.image import structural_similarity_index_measure

    first, second = ((each.double() + 1) / 2 for each in smooth_pair(24))
    _, map_BCHW = structural_similarity_index_measure(second, first, data_range=1.0, return_full_image=True)
    expected = map_BCHW[..., 5:-5, 5:-5].mean((1, 2, 3))
    torch.testing.assert_close(ssim(*smooth_pair(24)), expected, rtol=1e-5, atol=1e-7)
