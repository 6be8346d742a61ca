"""Code use, perplexity and dead codes of counts that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.layout import TokenLayout
from trainer.evaluation.tokenizers.codes import code_use, count_codes


def test_hits_are_counted_by_fold_group_and_code() -> None:
    layout = TokenLayout((1, 2), (3, 4))
    tokens = torch.tensor([[[0, 3], [1, 1], [1, 2]], [[2, 3], [0, 1], [1, 0]]])
    first, second = count_codes(tokens, layout)
    assert first.tolist() == [[1, 0, 1], [1, 3, 0]]
    assert second.tolist() == [[0, 0, 0, 2], [1, 2, 1, 0]]


def test_the_threshold_of_use_follows_each_scales_own_mean() -> None:
    """A mean of 100 hits asks for 8 of each code; a mean of .5 for a hit."""
    found = code_use(np.array([[1, 1, 0, 0], [7, 8, 385, 0]]))
    assert found.use == (0.5, 0.5)


def test_a_single_scales_threshold_is_not_asked_of_a_coarser_one() -> None:
    """By the finest scale's threshold of 8 hits the coarse one, of 4 tokens, would use nothing."""
    found = code_use(np.array([[1, 1, 1, 1], [100, 100, 100, 100]]))
    assert found.use == (1.0, 1.0)


def test_few_tokens_cannot_use_many_codes() -> None:
    assert code_use(np.array([[1, 1, 0, 0], [100, 100, 100, 100]])).attainable == (0.5, 1.0)


def test_perplexity_is_the_number_of_codes_that_are_equally_likely() -> None:
    found = code_use(np.array([[5, 5, 0, 0], [6, 2, 0, 0], [0, 0, 0, 0]]))
    assert found.perplexity == pytest.approx((2, np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25)), 1))


def test_a_code_is_dead_if_no_scale_chose_it() -> None:
    assert code_use(np.array([[1, 0, 0, 0], [0, 0, 9, 0]])).dead == 0.5


def test_nothing_counted_is_nothing_used() -> None:
    found = code_use(np.zeros((1, 4), np.int64))
    assert (found.use, found.attainable, found.dead) == ((0.0,), (0.0,), 1.0)
