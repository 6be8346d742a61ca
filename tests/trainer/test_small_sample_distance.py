"""A distance of few images while a network trains: its value, its time, and what it does where it has none."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data_pipeline.shards.image_shards import ImageShards
from tests.trainer import small_runs
from trainer.config import (
    GeneratorValidationConfig,
    ReconstructionDistanceConfig,
    SampleDistanceConfig,
    TokenizerStageConfig,
    ValidationConfig,
)
from trainer.stages.small_sample_distance import HeldOutImages, SmallSampleDistance

COUNT, BATCH, NAME = 8, 3, "validation_frechet_distance_8"


class MeanColour:
    """A network whose features are the mean red of an image, 0 to 255; it counts the images that it has seen."""

    name, is_fid = "mean-colour", False

    def __init__(self) -> None:
        self.seen = 0

    def identity(self) -> dict[str, Any]:
        return {"kind": "classifier", "name": self.name, "sha256": "ab" * 32}

    def __call__(self, pixels_BCHW: Tensor) -> dict[str, Tensor]:
        self.seen += len(pixels_BCHW)
        return {"features": pixels_BCHW.float().mean((2, 3))[:, :1]}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ImageShards:
    return ImageShards(small_runs.write_images(tmp_path_factory.mktemp("images")))


def reds(shards: ImageShards) -> np.ndarray:
    """Mean red of the first held-out images."""
    order = [int(str(shards.key(index)).split("class")[1][:2]) for index in range(COUNT)]
    return small_runs.pixels()[order].astype(np.float64).mean((1, 2))[:, 0]


def distance(
    shards: ImageShards,
    most_seconds: float = 60.0,
    clock: Iterator[int] | None = None,
    network: MeanColour | None = None,
) -> tuple[SmallSampleDistance, MeanColour]:
    network, held_out = network or MeanColour(), HeldOutImages.of(shards, small_runs.SIZE, "pad", COUNT, BATCH)
    ticks, device = clock or itertools.repeat(0), torch.device("cpu")
    made = SmallSampleDistance(NAME, most_seconds, network, held_out, device, lambda: float(next(ticks)))
    return made, network


def grey(*values: float) -> Iterator[Tensor]:
    """Images of these bytes, one at a time."""
    return (torch.full((1, 3, 16, 16), value / 127.5 - 1) for value in values)


BYTES = (10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0)


def test_the_distance_of_one_feature_is_that_of_means_and_deviations(shards: ImageShards) -> None:
    measured, _ = distance(shards)
    real, made = reds(shards), np.array(BYTES)
    paper = (real.mean() - made.mean()) ** 2 + (real.std(ddof=1) - made.std(ddof=1)) ** 2
    assert measured.measure(grey(*BYTES), {}).numbers == {NAME: pytest.approx(paper, rel=1e-6)}


def test_two_looks_at_the_same_images_find_the_same_number_and_the_reference_is_computed_once(
    shards: ImageShards,
) -> None:
    measured, network = distance(shards)
    one, two = (measured.measure(grey(*BYTES), {}).numbers for _ in range(2))
    assert one == two
    assert network.seen == COUNT + 2 * COUNT


def test_values_are_rounded_to_bytes_before_they_are_looked_at(shards: ImageShards) -> None:
    measured, _ = distance(shards)
    near = [value + 0.4 for value in BYTES]
    assert measured.measure(grey(*near), {}).numbers == measured.measure(grey(*BYTES), {}).numbers


def test_the_event_has_the_full_name_of_the_number(shards: ImageShards) -> None:
    measured, network = distance(shards)
    details = measured.measure(grey(*BYTES), {"weights": "ema"}).details
    assert details["measured_by"] == {
        "reference": {"images": shards.manifest.fingerprint, "count": COUNT},
        "crop": {"size": small_runs.SIZE, "fit": "pad"},
        "rounding": "nearest",
        "network": network.identity(),
    }
    assert (details["name"], details["metric"], details["images"]) == (NAME, "frechet_distance", COUNT)
    assert details["measured_of"] == {"weights": "ema"}


def test_when_the_time_is_over_no_further_batch_is_begun_and_there_is_no_distance(shards: ImageShards) -> None:
    """The clock is read at the start, after each batch but the last of either set, and at the end."""
    measured, _ = distance(shards, 4.5, iter(range(100)))
    left = grey(*BYTES)
    found = measured.measure(left, {})
    assert found.numbers == {}
    assert found.details["left_out"] == "after 4.5 s 3 of 8 images were made"
    assert "value" not in found.details
    assert len(list(left)) == COUNT - 3


def test_a_reference_for_which_a_look_was_too_short_is_gone_on_with_at_the_next(shards: ImageShards) -> None:
    measured, network = distance(shards, 0.5, iter([0, 1, 2, 3, *[3] * 100]))
    first = measured.measure(grey(*BYTES), {})
    assert first.details["left_out"] == "after 0.5 s of 3 of 8 held-out images features were known"
    assert NAME in measured.measure(grey(*BYTES), {}).numbers
    assert network.seen == 2 * COUNT


def test_the_last_batch_counts_however_late_it_is(shards: ImageShards) -> None:
    measured, _ = distance(shards, 0.5, iter([0, 0, 0, *range(100)]))
    assert NAME in measured.measure(iter([torch.cat(list(grey(*BYTES)))]), {}).numbers


def test_images_that_are_no_numbers_leave_the_distance_out_and_the_training_alone(shards: ImageShards) -> None:
    measured, _ = distance(shards)
    found = measured.measure(grey(*BYTES[:-1], float("nan")), {})
    assert found.numbers == {}
    assert "the network that made them has diverged" in found.details["left_out"]


def test_a_device_without_room_leaves_the_distance_out_with_the_reason(shards: ImageShards) -> None:
    def full() -> Iterator[Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory.\nSee the docs")
        yield

    assert distance(shards)[0].measure(full(), {}).details["left_out"] == "CUDA out of memory."


def test_a_device_without_room_for_a_moment_does_not_leave_a_hole_in_the_reference(shards: ImageShards) -> None:
    class FullOnce(MeanColour):
        asked = 0

        def __call__(self, pixels_BCHW: Tensor) -> dict[str, Tensor]:
            self.asked += 1
            if self.asked == 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().__call__(pixels_BCHW)

    measured, _ = distance(shards, network=FullOnce())
    assert measured.measure(grey(*BYTES), {}).numbers == {}
    assert measured.measure(grey(*BYTES), {}).numbers == distance(shards)[0].measure(grey(*BYTES), {}).numbers


# ----------------------------------------------------------------------------------------------------------- settings


def looks(**distance: Any) -> dict[str, Any]:
    return {"every": 4, "distance": distance}


def tokenizer_stage(metric: str, checkpoint_every: int, **distance: Any) -> TokenizerStageConfig:
    trainer = small_runs.trainer(steps=100, checkpoint_every=checkpoint_every, keep_best={"metric": metric})
    model = {"kind": "imagefolder", "image_size": 16}
    section = {"model": model, "trainer": trainer, "validation": looks(**distance)}
    return TokenizerStageConfig.model_validate(section)


def test_the_name_of_a_distance_has_the_number_of_its_images() -> None:
    assert SampleDistanceConfig(samples=500).name == "validation_frechet_distance_500"
    assert ReconstructionDistanceConfig(images=64).name == "validation_frechet_distance_64"


@pytest.mark.parametrize("config", [ValidationConfig, GeneratorValidationConfig])
def test_a_distance_is_as_often_as_other_looks_unless_it_says_otherwise(config: Any) -> None:
    assert config.model_validate(looks()).distance_every == 4
    assert config.model_validate(looks(every=8)).distance_every == 8


def test_the_best_checkpoint_is_kept_by_a_distance_that_is_measured_where_checkpoints_are() -> None:
    assert tokenizer_stage("validation_frechet_distance_64", 12, images=64, every=6)
    with pytest.raises(ValueError, match=r"every 6 steps \(validation.distance.every\)"):
        tokenizer_stage("validation_frechet_distance_64", 8, images=64, every=6)
    with pytest.raises(ValueError, match=r"add validation.distance with that many images"):
        tokenizer_stage("validation_frechet_distance_500", 12, images=64, every=6)


def test_a_distance_alone_is_enough_to_look_at_a_generator() -> None:
    alone = GeneratorValidationConfig.model_validate({"samples": 0, "distance": {"samples": 64}})
    assert alone.every_of("validation_frechet_distance_64") == 1000
    assert alone.every_of("validation_loss") is None
