"""Figures of an evaluation against the same figures counted on paper: errors, accuracies, distances by numpy."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.config import ImageFolderConfig, VectorConfig, ViTConfig
from model.tokenizers.imagefolder import ImageFolderTokenizer
from trainer.evaluation.judging import RealImages, evaluate_generator, evaluate_tokenizer

SIZE = 8
VIT = ViTConfig(width=8, depth=1, heads=2, layer_scale=None)
TOKENIZER = ImageFolderConfig(
    image_size=SIZE,
    patch_size=4,
    scales=(1, 2),
    dropout_min_scales=1,
    quantizer=VectorConfig(codebook_size=16, code_dim=4),
    encoder=VIT,
    decoder=VIT,
)


def draw_images(seed: int, looks: list[int]) -> Tensor:
    """Noise, with the class that each image looks like in its first pixel."""
    image_NCHW = torch.rand(len(looks), 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    image_NCHW[:, 0, 0, 0] = torch.tensor(looks) / 10
    return image_NCHW


class FirstPixels:
    """A teacher whose features are two pixels."""

    def features(self, image_BCHW: Tensor) -> Tensor:
        return image_BCHW[:, 1, 0, :2]


def judge(image_BCHW: Tensor) -> Tensor:
    """Logits of three classes: the largest is that of the class in the first pixel."""
    distance_BV = (image_BCHW[:, 0, 0, :1] * 10 - torch.arange(3)).abs()
    return -distance_BV


class FixedSampler:
    """Draws images that look as they are told to, whatever their class."""

    class_names = ("ant", "bee", "cat")

    def __init__(self, looks: list[int]) -> None:
        self.looks, self.asked = looks, list[int]()

    def draw(self, label_N: Tensor) -> Iterator[Tensor]:
        self.asked = label_N.tolist()
        yield from torch.split(draw_images(1, self.looks), 4)


def distance_on_paper(first_NCHW: Tensor, second_NCHW: Tensor) -> float:
    first, second = (FirstPixels().features(image).double().numpy() for image in (first_NCHW, second_NCHW))
    one, other = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    shift = first.mean(0) - second.mean(0)
    roots = np.sqrt(np.linalg.eigvals(one @ other).real.clip(0))  # their sum is the trace of the product's root
    return float(shift @ shift + np.trace(one + other) - 2 * roots.sum())


REAL = RealImages(draw_images(2, [0, 1, 2, 2, 0]), torch.tensor([0, 1, 2, 0, 1]))
LOOKS = [0, 1, 1, 0, 0, 2, 2]
"""Of the images that are drawn for the classes 0, 1, 2, 0, 1, 2, 0: of these 2 of 3, 1 of 2 and 1 of 2 are right."""


@pytest.fixture(scope="module")
def judged() -> dict[str, Any]:
    sampler: Any = FixedSampler(LOOKS)
    found = evaluate_generator(sampler, FirstPixels(), judge, REAL, len(LOOKS))  # type: ignore[arg-type]
    assert sampler.asked == [0, 1, 2, 0, 1, 2, 0]
    return found


def test_class_accuracy_is_the_share_of_samples_that_look_like_their_class(judged: dict[str, Any]) -> None:
    assert judged["class_accuracy"] == pytest.approx(4 / 7)


def test_the_accuracy_of_a_class_is_over_its_own_samples(judged: dict[str, Any]) -> None:
    assert judged["class_accuracy_per_class"] == pytest.approx([2 / 3, 1 / 2, 1 / 2])


def test_the_judge_itself_is_compared_with_the_labels_of_real_images(judged: dict[str, Any]) -> None:
    assert judged["judge_accuracy_on_real"] == pytest.approx(3 / 5)


def test_the_distance_is_of_samples_from_real_images(judged: dict[str, Any]) -> None:
    expected = distance_on_paper(draw_images(1, LOOKS), REAL.image_NCHW)
    assert judged["frechet_distance"] == pytest.approx(expected, rel=1e-6)
    assert expected > 0.01


@pytest.fixture(scope="module")
def reconstructed() -> SimpleNamespace:
    """More images than are judged at once, and what becomes of them in two tokenizer passes."""
    torch.manual_seed(0)
    tokenizer = ImageFolderTokenizer(TOKENIZER).eval()
    with torch.no_grad():
        for name in tokenizer.codebooks:
            tokenizer.get_parameter(name).mul_(30)  # so that each scale tells
    real = RealImages(draw_images(3, [0, 1, 2] * 87), torch.zeros(261))
    with torch.inference_mode():
        tokens = tokenizer.tokenize(real.image_NCHW)
        images = [tokenizer.detokenize(tokens, keep) for keep in tokenizer.prefixes]
    return SimpleNamespace(
        found=evaluate_tokenizer(tokenizer, FirstPixels(), real), images=images, real=real.image_NCHW
    )


def test_the_error_of_a_reconstruction_is_the_mean_square_over_all_pixels(reconstructed: SimpleNamespace) -> None:
    expected = [float(np.square((image - reconstructed.real).numpy()).mean()) for image in reconstructed.images]
    assert reconstructed.found["mse_of_prefixes"] == pytest.approx(expected, rel=1e-5)
    assert expected[0] != pytest.approx(expected[1], rel=1e-4)


def test_the_distance_is_of_whole_reconstructions_from_their_originals(
    reconstructed: SimpleNamespace,
) -> None:
    expected = distance_on_paper(reconstructed.images[1], reconstructed.real)
    assert reconstructed.found["frechet_distance"] == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(distance_on_paper(reconstructed.images[0], reconstructed.real), rel=1e-4)
