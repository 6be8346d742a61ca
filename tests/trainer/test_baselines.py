"""The mean image and principal components at a number of bits, against numpy's singular value decomposition."""

from __future__ import annotations

import numpy as np
import pytest

from model.layout import TokenLayout
from trainer.evaluation.tokenizers import baselines
from trainer.evaluation.tokenizers.baselines import bits_of, component_errors, components, mean_image_error, square_side


def images(count: int, size: int, seed: int, channels: int = 3) -> np.ndarray:
    """Sums of a few smooth patterns and noise, uint8."""
    random = np.random.default_rng(seed)
    patterns = np.random.default_rng(7).normal(size=(6, size, size, channels)).cumsum(1).cumsum(2)
    weights = random.normal(size=(count, 6)) * np.array([8, 6, 4, 2, 1, 0.5])
    mixed = np.tensordot(weights, patterns, 1) + random.normal(0, 4, (count, size, size, channels)) + 128
    return np.clip(mixed, 0, 255).astype(np.uint8)


def unit(pixels: np.ndarray) -> np.ndarray:
    return pixels.reshape(len(pixels), -1) / 127.5 - 1


def plain(training: np.ndarray, held_out: np.ndarray, count: int, levels: int | None) -> float:
    mean = unit(training).mean(0)
    axes = np.linalg.svd(unit(training) - mean, full_matrices=False)[2][:count]
    own, values = (unit(training) - mean) @ axes.T, (unit(held_out) - mean) @ axes.T
    if levels is not None:
        least, step = own.min(0), (own.max(0) - own.min(0)) / (levels - 1)
        values = least + step * np.round((values - least) / step).clip(0, levels - 1)
    made = np.clip(mean + values @ axes, -1, 1)
    return float(((made - unit(held_out)) ** 2).mean())


@pytest.mark.parametrize("exact", [True, False])
def test_components_are_those_of_the_singular_value_decomposition(exact: bool) -> None:
    training, held_out = images(60, 8, seed=0), images(20, 8, seed=1)
    found = component_errors(training, held_out, [16, 31, 40], exact=exact)
    assert [each.coefficients for each in found] == [2, 3, 5]
    wanted = [plain(training, held_out, count, None if exact else 256) for count in (2, 3, 5)]
    assert [each.mse for each in found] == pytest.approx(wanted, rel=1e-6)


def test_coefficients_of_eight_bits_cost_little_and_more_bits_help() -> None:
    training, held_out = images(60, 8, seed=0), images(20, 8, seed=1)
    rough, fine = (component_errors(training, held_out, [16, 40], exact=exact) for exact in (False, True))
    assert rough[0].mse > rough[1].mse
    for one, other in zip(rough, fine, strict=True):
        assert other.mse < one.mse < 1.05 * other.mse


def test_without_a_coefficient_the_mean_image_is_what_is_left() -> None:
    training, held_out = images(60, 8, seed=0), images(20, 8, seed=1)
    wanted = ((unit(held_out) - unit(training).mean(0)) ** 2).mean()
    assert mean_image_error(training, held_out) == pytest.approx(wanted)
    assert component_errors(training, held_out, [7])[0].mse == pytest.approx(wanted)


def test_grey_images_are_one_channel_and_nothing_changes() -> None:
    training, held_out = (np.repeat(images(60, 8, seed=seed, channels=1), 3, axis=3) for seed in (0, 1))
    assert components(training, [16]).mean_D.shape == (64,)
    found = component_errors(training, held_out, [24], exact=True)[0].mse
    assert found == pytest.approx(plain(training, held_out, 3, None), rel=1e-6)
    with pytest.raises(ValueError, match="grey"):
        component_errors(training, images(20, 8, seed=1), [24])


@pytest.mark.parametrize("size", [8, 48])
def test_with_all_components_each_image_is_rebuilt_in_its_place(size: int) -> None:
    training, held_out = images(40, size, seed=0), images(4, size, seed=1)
    found = components(training, [8 * 3 * size * size])
    own = found.rebuilt(training[:4], 8 * 3 * size * size, exact=True)
    if size == 8:
        np.testing.assert_allclose(own.reshape(4, -1), unit(training[:4]), atol=1e-6)
    few = found.rebuilt(held_out, 8 * 4 * found.squares)
    assert few.shape == held_out.shape
    assert (
        np.square(few.reshape(4, -1) - unit(held_out)).mean() < np.square(unit(held_out[::-1]) - unit(held_out)).mean()
    )


def test_large_images_are_cut_into_squares_that_share_the_bits() -> None:
    assert [square_side(size) for size in (28, 32, 48, 96, 256)] == [28, 32, 24, 32, 32]
    training, held_out = images(40, 48, seed=0), images(10, 48, seed=1)
    (found,) = component_errors(training, held_out, [4 * 8 * 3], exact=True)
    assert found.coefficients == 12
    rows = [
        np.concatenate([each[:, y : y + 24, x : x + 24] for y in (0, 24) for x in (0, 24)])
        for each in (training, held_out)
    ]
    assert found.mse == pytest.approx(plain(*rows, 3, None), rel=1e-6)


def test_memory_is_bound_by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "MOST_ROWS", 30)
    training, held_out = images(60, 8, seed=0), images(20, 8, seed=1)
    found = component_errors(training, held_out, [24], exact=True)[0].mse
    assert found == pytest.approx(plain(training[:30], held_out, 3, None), rel=1e-6)
    assert baselines.images_needed(256) == 1


def test_many_rows_are_summed_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    training = images(60, 8, seed=0)
    whole = components(training, [24])
    monkeypatch.setattr(baselines, "_AT_ONCE", 7)
    parts = components(training, [24])
    np.testing.assert_allclose(parts.axes_KD, whole.axes_KD, atol=1e-8)
    np.testing.assert_allclose(parts.least_K, whole.least_K)
    np.testing.assert_allclose(parts.largest_K, whole.largest_K)


def test_the_bits_of_a_prefix_are_those_of_its_tokens() -> None:
    assert [bits_of(TokenLayout((1, 4, 9, 16), (256, 256)), keep) for keep in (1, 5, 14, 30)] == [16, 80, 224, 480]
    assert bits_of(TokenLayout((32,), (1000,)), 32) == round(32 * np.log2(1000))
