"""Inception score, against arithmetic on paper and torch-fidelity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_isc import isc_features_to_metric

from trainer.metrics.inception_score import InceptionScore


def score_of(
    logits: np.ndarray, cuts: list[int] | None = None, splits: int = 10, seed: int | None = 2020
) -> InceptionScore:
    score = InceptionScore(len(logits), splits, seed)
    for batch in np.split(logits, sorted(cuts or [])):
        if len(batch):
            score.update(batch)
    return score


def random_logits(count: int, classes: int = 7) -> np.ndarray:
    """Class by class, as samples come."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (count, classes))
    logits[np.arange(count), np.arange(count) * classes // count] += 3
    return logits.astype(np.float32)


def test_it_is_the_number_of_classes_where_each_image_is_surely_of_one() -> None:
    assert score_of(np.tile(100 * np.eye(4), (5, 1)), splits=1).compute() == pytest.approx(4)


def test_it_is_one_where_nothing_can_be_told() -> None:
    assert score_of(np.zeros((6, 4)), splits=2).compute() == pytest.approx(1)


def test_of_two_images_it_is_what_paper_says() -> None:
    # p = (3/4, 1/4) and (1/4, 3/4), mean (1/2, 1/2): each KL is 3/4 log(3/2) + 1/4 log(1/2)
    logits = np.log([[3.0, 1.0], [1.0, 3.0]])
    assert score_of(logits, splits=1).compute() == pytest.approx(1.5**0.75 * 0.5**0.25)


@pytest.mark.parametrize("splits", [1, 10])
@pytest.mark.parametrize("count", [100, 97])
def test_it_is_torch_fidelitys_in_the_same_permutation(splits: int, count: int) -> None:
    logits = random_logits(count)
    expected = isc_features_to_metric(torch.from_numpy(logits), splits, shuffle=True, rng_seed=2020)
    score = score_of(logits, [40], splits)
    assert score.compute() == pytest.approx(expected["inception_score_mean"], rel=1e-9)
    assert score.deviation() == pytest.approx(expected["inception_score_std"], rel=1e-9, abs=1e-12)


def test_in_the_given_order_neighbours_share_a_split() -> None:
    logits = random_logits(97)
    expected = isc_features_to_metric(torch.from_numpy(logits), 10, shuffle=False)
    assert score_of(logits, seed=None).compute() == pytest.approx(expected["inception_score_mean"], rel=1e-9)


@settings(max_examples=20)
@given(cuts=st.lists(st.integers(1, 99), max_size=5))
def test_the_digits_do_not_depend_on_how_images_are_cut_into_batches(cuts: list[int]) -> None:
    logits = random_logits(100)
    assert (score_of(logits, cuts).scores() == score_of(logits).scores()).all()


def test_parts_merge_to_the_whole() -> None:
    logits = random_logits(100)
    first, second = InceptionScore(100), InceptionScore(100, first=60)
    first.update(logits[:60])
    second.update(logits[60:])
    first.merge(second)
    assert first.count == 100
    assert first.compute() == pytest.approx(score_of(logits).compute(), rel=1e-12)


def test_a_probability_of_zero_adds_nothing() -> None:
    assert score_of(np.array([[0.0, -2000.0], [0.0, -2000.0]]), splits=1).compute() == pytest.approx(1)


def test_more_images_than_were_said_are_refused() -> None:
    with pytest.raises(ValueError, match="more than the 20 images"):
        InceptionScore(20).update(np.zeros((21, 3)))


def test_fewer_images_than_splits_are_refused() -> None:
    with pytest.raises(ValueError, match="9 images cannot be cut into 10 splits"):
        InceptionScore(9)


def test_an_empty_split_has_no_score() -> None:
    score = InceptionScore(20, seed=None)
    score.update(np.zeros((17, 3)))
    with pytest.raises(ValueError, match="17 images leave a split of 10 empty"):
        score.compute()


def test_what_is_cut_otherwise_cannot_be_merged() -> None:
    for other in (InceptionScore(21), InceptionScore(20, splits=5), InceptionScore(20, seed=1)):
        with pytest.raises(ValueError, match="cannot be merged"):
            InceptionScore(20).merge(other)


@pytest.mark.parametrize("logits", [np.ones(3), np.ones((0, 3)), np.array([[1.0, np.nan]]), np.array([[np.inf]])])
def test_what_is_no_batch_of_finite_logits_is_refused(logits: np.ndarray) -> None:
    with pytest.raises(ValueError, match="logits"):
        InceptionScore(20).update(logits)


def test_other_classes_than_before_are_refused() -> None:
    score = InceptionScore(20)
    score.update(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="3 and of 4 classes"):
        score.update(np.zeros((1, 4)))
