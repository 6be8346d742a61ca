"""The linear probe is the optimum of its loss, by plain arithmetic, and tells separable classes from others."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.evaluation.tokenizers.probing import PENALTY, fit, pixel_features, probe_accuracy


def blobs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    label = np.arange(count) % 3
    return random.normal(size=(count, 4)) + 3 * np.eye(4)[label], label


def test_the_gradient_of_mean_loss_and_penalty_is_zero_at_what_is_found() -> None:
    features, label = blobs(90, 0)
    weight, bias = fit(features, label, 3)
    logits = features @ weight + bias
    share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    slope = features.T @ (share - np.eye(3)[label]) / 90 + PENALTY * weight
    assert np.abs(slope).max() < 1e-4
    assert np.abs((share - np.eye(3)[label]).mean(0)).max() < 1e-4
    assert np.abs(weight).max() > 0.5


def test_two_classes_of_one_feature_by_plain_gradient_descent() -> None:
    features = np.array([[-2.0], [-1.0], [0.5], [1.0], [3.0]])
    label = np.array([0, 0, 1, 0, 1])
    weight, bias = np.zeros((1, 2)), np.zeros(2)
    for _ in range(60_000):
        share = np.exp(features @ weight + bias)
        share /= share.sum(1, keepdims=True)
        wrong = (share - np.eye(2)[label]) / 5
        weight = weight - 0.5 * (features.T @ wrong + PENALTY * weight)
        bias = bias - 0.5 * wrong.sum(0)
    found, own = fit(features, label, 2)
    np.testing.assert_allclose(found, weight, atol=2e-3)
    np.testing.assert_allclose(own[1] - own[0], bias[1] - bias[0], atol=2e-3)


def test_accuracy_is_of_the_held_out_images_whatever_the_scale_of_features() -> None:
    (training, label), (held_out, asked) = blobs(300, 1), blobs(300, 2)
    found = probe_accuracy(training, label, held_out, asked)
    assert found > 0.9
    scale, shift = np.array([1e-3, 10, 1, 100]), np.array([0, 50, -3, 0])
    assert probe_accuracy(training * scale + shift, label, held_out * scale + shift, asked) == found
    assert probe_accuracy(training, label, held_out, (asked + 1) % 3) < 0.1
    assert probe_accuracy(np.ones((300, 4)), label, held_out, asked) == pytest.approx(1 / 3)


def test_pixels_of_large_images_are_means_of_squares() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    found = pixel_features(pixels)
    assert found.shape == (2, 32 * 32 * 3)
    assert found[1, 3] == pytest.approx(pixels[1, :2, 2:4, 0].mean(), rel=1e-6)
    assert pixel_features(pixels[:, :28, :28]).shape == (2, 28 * 28 * 3)
    assert pixel_features(np.repeat(pixels[:, :28, :28, :1], 3, 3)).shape == (2, 28 * 28)
