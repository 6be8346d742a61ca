"""Linear probes of features in rows: separable classes, a known optimum, whatever the set's size."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from data_pipeline.errors import UsageError
from model.config.titok import GaussianConfig
from tests.model.small_titok import tokenizer_of
from trainer.evaluation.measures import Rows
from trainer.evaluation.naming.numbers import Number
from trainer.evaluation.tokenizers import linear_probe
from trainer.evaluation.tokenizers.linear_probe import ProbeMeasure, Schedule, _Probe, linear_probes
from trainer.evaluation.tokenizers.probing import fit
from trainer.evaluation.tokenizers.tokenizer_measure import TokenizerMeasure

CPU = torch.device("cpu")


class InMemory:
    """Rows in parts of 64 images."""

    def __init__(self, **rows: npt.NDArray[Any]) -> None:
        self._rows = rows
        self.count = len(rows["label"])

    def parts(self, *names: str) -> Iterator[Rows]:
        for start in range(0, self.count, 64):
            yield {name: self._rows[name][start : start + 64] for name in names}

    def column(self, name: str) -> npt.NDArray[Any]:
        return self._rows[name]


def blobs(count: int, seed: int, apart: float = 3.0, width: int = 4) -> InMemory:
    """Three classes around three corners, on features of other scales, and one that is constant."""
    random = np.random.default_rng(seed)
    label = np.arange(count) % 3
    features = random.normal(size=(count, width)) + apart * np.eye(width)[label]
    features = features * np.array([1e-3, 10, 1, 100])[:width] + np.array([0, 50, -3, 0])[:width]
    features = np.concatenate([features, np.full((count, 1), 7.0)], 1).astype(np.float32)
    return InMemory(label=label.astype(np.int32), branch_0=features, pixels=random.normal(size=(count, 5)))


def probed(training: InMemory, held_out: InMemory, **options: Any) -> list[Number]:
    names = {"branch_0": "semantic", "pixels": "pixels"}
    return linear_probes(training, held_out, names, {"crop": "c"}, {"tokenizer": "t"}, device=CPU, **options)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """No set is small."""
    monkeypatch.setattr(linear_probe, "MOST_BYTES", 0)


def test_separable_classes_are_found_and_noise_is_not() -> None:
    branch, pixels = probed(blobs(300, 1, apart=20), blobs(300, 2, apart=20))
    assert branch.value == 1.0
    assert branch.plus_minus == 0
    assert pixels.value == pytest.approx(1 / 3, abs=0.1)
    assert pixels.plus_minus == pytest.approx(np.sqrt(pixels.value * (1 - pixels.value) / 300))


@pytest.mark.usefixtures("large")
def test_separable_classes_are_found_in_minibatches_too() -> None:
    schedule = Schedule(batch=64, epochs=2, least_steps=100)
    branch, _ = probed(blobs(300, 1, apart=20), blobs(300, 2, apart=20), schedule=schedule)
    assert branch.value == 1.0


@pytest.mark.slow
@pytest.mark.usefixtures("large")
def test_minibatches_come_to_the_optimum_of_the_same_objective() -> None:
    training = blobs(600, 3, apart=1.5)
    label, features = training.column("label").astype(np.int64), training.column("branch_0").astype(np.float64)
    deviation = features.std(0)
    standardized = (features - features.mean(0)) / np.where(deviation > 0, deviation, 1)
    weight, bias = fit(standardized, label, 3)
    probe = _Probe(training, "branch_0", label, 3)
    probe.train(Schedule(batch=600, epochs=1, least_steps=1500), CPU)
    np.testing.assert_allclose(probe.weight_DC, weight, atol=1e-3)
    np.testing.assert_allclose(probe.bias_C - probe.bias_C[0], bias - bias[0], atol=1e-3)
    assert np.abs(weight).max() > 0.5


@pytest.mark.usefixtures("large")
def test_small_minibatches_end_near_the_optimum() -> None:
    training = blobs(600, 3, apart=1.5)
    label = training.column("label").astype(np.int64)
    exact, near = (_Probe(training, "branch_0", label, 3) for _ in range(2))
    near.train(Schedule(batch=100, epochs=1, least_steps=1500), CPU)
    exact.weight_DC, exact.bias_C = fit(exact._standardized(training.column("branch_0")), label, 3)
    np.testing.assert_allclose(near.weight_DC, exact.weight_DC, atol=0.03)


def test_an_epoch_has_each_image_once_and_every_epoch_has_another_order() -> None:
    schedule = Schedule(batch=4, epochs=2, least_steps=0)
    batches = [each.tolist() for each in linear_probe._batches(10, schedule)]
    assert [len(each) for each in batches] == [4, 4, 2, 4, 4, 2]
    for epoch in (batches[:3], batches[3:]):
        assert sorted(itertools.chain(*epoch)) == list(range(10))
    assert batches[:3] != batches[3:]
    assert batches == [each.tolist() for each in linear_probe._batches(10, schedule)]


def test_few_images_have_more_epochs() -> None:
    schedule = Schedule(batch=4, epochs=2, least_steps=7)
    assert len(list(linear_probe._batches(10, schedule))) == schedule.steps(10) == 7
    assert schedule.steps(100) == 50


def test_a_number_says_how_it_was_probed() -> None:
    branch, pixels = probed(blobs(90, 1), blobs(60, 2))
    assert branch.metric == "linear_probe_accuracy"
    assert branch.images == 60
    assert branch.measured_by == {
        "crop": "c",
        "protocol": {"feature": "semantic", "training_images": 90, "penalty": 1e-3, "optimizer": "l-bfgs"},
    }
    assert branch.measured_of == {"tokenizer": "t"}
    assert pixels.measured_by["protocol"]["feature"] == "pixels"


@pytest.mark.usefixtures("large")
def test_a_number_says_the_schedule_of_minibatches() -> None:
    schedule = Schedule(batch=64, epochs=1, least_steps=1, seed=5)
    branch, _ = probed(blobs(90, 1), blobs(60, 2), schedule=schedule)
    assert branch.measured_by["protocol"].items() >= {"optimizer": "adam", "steps": 2, "batch": 64, "seed": 5}.items()


def test_one_class_is_refused() -> None:
    training = blobs(30, 1)
    training.column("label")[:] = 0
    with pytest.raises(UsageError, match="all of one class"):
        probed(training, blobs(30, 2))


# -------------------------------------------------------------------------------------------------------------- rows


def pixels(count: int, size: int = 16) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_rows_are_pooled_latents_pixels_and_labels() -> None:
    tokenizer, images = tokenizer_of().eval(), pixels(3)
    found = ProbeMeasure(tokenizer, CPU)(images, np.array([2, 0, 1]), 0)
    np.testing.assert_array_equal(
        found["branch_0"], TokenizerMeasure(tokenizer, CPU)(images, np.zeros(3), 0)["branch_0"]
    )
    np.testing.assert_array_equal(found["pixels"], images.reshape(3, -1))
    assert found["label"].tolist() == [2, 0, 1]
    assert "pixels" not in ProbeMeasure(tokenizer, CPU, pixels=False)(images, np.zeros(3, np.int64), 0)


def test_a_grey_batch_has_pixels_of_all_channels() -> None:
    grey = np.repeat(pixels(2)[..., :1], 3, 3)
    found = ProbeMeasure(tokenizer_of().eval(), CPU)(grey, np.zeros(2, np.int64), 0)
    assert found["pixels"].shape == (2, 16 * 16 * 3)


def test_an_image_without_a_class_is_refused_by_number() -> None:
    with pytest.raises(UsageError, match="image 101 has no class"):
        ProbeMeasure(tokenizer_of().eval(), CPU)(pixels(2), np.array([0, -1]), 100)


def test_a_tokenizer_without_tokens_is_refused() -> None:
    with pytest.raises(UsageError, match="of kind titok has no tokens"):
        ProbeMeasure(tokenizer_of(quantizer=GaussianConfig(code_dim=4)), CPU)
