"""Samples near a training image: distances counted on paper, and a planted copy that is found."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.evaluation.samples.memorization import NearestTraining


def test_the_nearest_training_image_of_each_sample_and_its_distance() -> None:
    training_TD = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    samples_ND = np.array([[3.0, 4.0], [10.0, 1.0]])  # 5 from the first, 1 from the second
    held_out_MD = np.array([[0.0, 12.0]])  # 2 from the third

    found = NearestTraining.find(samples_ND, held_out_MD, training_TD)

    assert found.training_N.tolist() == [0, 1]
    assert found.distance_N == pytest.approx([5, 1])
    assert found.held_out_M == pytest.approx([2])


def test_a_planted_copy_is_the_closest_at_distance_zero() -> None:
    draw = np.random.default_rng(0)
    training_TD, samples_ND = draw.normal(size=(300, 6)), draw.normal(size=(50, 6))
    samples_ND[17] = training_TD[123]

    found = NearestTraining.find(samples_ND, draw.normal(size=(100, 6)), training_TD)

    (closest,) = found.to_json(1)["closest"]
    assert closest == {"sample": 17, "training_image": 123, "distance": 0.0}
    distances = np.sqrt(np.square(samples_ND[:, None] - training_TD).sum(-1))
    assert found.distance_N == pytest.approx(distances.min(1))
    assert found.training_N.tolist() == distances.argmin(1).tolist()


def test_the_share_is_of_samples_as_near_as_the_nearest_hundredth_of_held_out_images() -> None:
    held_out_M = np.arange(1.0, 201)  # 2 of 200 are within 2.0
    found = NearestTraining(np.zeros(8, np.int64), np.array([0.5, 2.0, 2.01, 9.0, 9.0, 9.0, 9.0, 9.0]), held_out_M)

    assert found.threshold == 2.0
    assert found.share == 0.25
    assert found.standard_error == pytest.approx((0.25 * 0.75 / 8) ** 0.5)


def test_copies_count_where_held_out_images_are_copies_too() -> None:
    found = NearestTraining(np.zeros(4, np.int64), np.array([0.0, 1.0, 1.0, 1.0]), np.array([0.0, 0.0, 1.0]))
    assert (found.threshold, found.share) == (0.0, 0.25)


def test_the_record_has_both_distributions_from_least_to_largest() -> None:
    found = NearestTraining(np.array([3, 4]), np.array([1.0, 3.0]), np.array([2.0, 4.0]))
    record = found.to_json(5)
    assert [record["quantiles_of_samples"][at] for at in (0, 20, 40)] == [1, 2, 3]
    assert [record["quantiles_of_held_out"][at] for at in (0, 20, 40)] == [2, 3, 4]
    assert [each["training_image"] for each in record["closest"]] == [3, 4]
    assert (record["samples"], record["held_out"]) == (2, 2)
