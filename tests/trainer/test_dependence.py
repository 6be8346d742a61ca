"""Codes by position and the mutual information of folds, of tokens whose distribution is known."""

from __future__ import annotations

import numpy as np
import pytest

from model.layout import TokenLayout
from trainer.evaluation.tokenizers import dependence
from trainer.evaluation.tokenizers.dependence import information, mutual_information, perplexity_by_position


def test_perplexity_is_of_each_fold_at_each_position() -> None:
    tokens = np.array([[[0, 5], [1, 2]], [[0, 6], [2, 2]], [[0, 7], [3, 2]], [[0, 8], [4, 1]]])
    first, second = perplexity_by_position(tokens)
    assert first == pytest.approx([1, 4])
    assert second == pytest.approx([4, 2 ** (0.75 * np.log2(4 / 3) + 0.25 * 2)])


def test_information_of_a_table_by_hand() -> None:
    """Of the pairs (0,0) 3 times, (0,1) once, (1,0) once, (1,1) 3 times."""
    first, second = np.array([0, 0, 0, 0, 1, 1, 1, 1]), np.array([0, 0, 0, 1, 0, 1, 1, 1])
    by_hand = sum(n / 8 * np.log2(n / 8 / 0.25) for n in (3, 1, 1, 3))
    assert information(first, second) == pytest.approx(by_hand)
    assert information(first, first) == pytest.approx(1)
    assert information(first, np.zeros(8, int)) == pytest.approx(0)


def test_independent_folds_have_no_more_than_their_shuffled_selves() -> None:
    """4,000 pairs in 64 × 64 cells: the plain estimate alone would claim half a bit."""
    tokens = np.random.default_rng(0).integers(0, 64, (1000, 4, 2))
    (found,) = mutual_information(tokens, TokenLayout((4,), (64, 64)))
    assert found.plain[0] > 0.4
    assert abs(found.plain[0] - found.shuffled[0]) < 0.02


def test_what_two_folds_share_is_found_in_its_group_alone() -> None:
    random = np.random.default_rng(1)
    tokens = random.integers(0, 16, (3000, 3, 2))
    tokens[:, 0, 1] = tokens[:, 0, 0] ^ 5  # 4 bits in common
    (found,) = mutual_information(tokens, TokenLayout((1, 2), (16, 16)))
    assert found.folds == (0, 1)
    assert found.plain[0] == pytest.approx(found.entropy[0])
    assert found.plain[0] - found.shuffled[0] == pytest.approx(4, abs=0.1)
    assert found.plain[1] - found.shuffled[1] == pytest.approx(0, abs=0.02)


def test_what_the_position_alone_says_is_not_shared() -> None:
    """Both folds name their position: 2 bits over all of them, which shuffling within each leaves."""
    tokens = np.arange(4)[None, :, None].repeat(500, 0).repeat(2, 2)
    (found,) = mutual_information(tokens, TokenLayout((4,), (4, 4)))
    assert found.plain[0] == pytest.approx(2)
    assert found.plain[0] - found.shuffled[0] == pytest.approx(0)


def test_all_pairs_of_folds_are_looked_at_and_few_images_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = np.random.default_rng(2).integers(0, 4, (50, 2, 3))
    found = mutual_information(tokens, TokenLayout((2,), (4, 4, 4)))
    assert [each.folds for each in found] == [(0, 1), (0, 2), (1, 2)]
    monkeypatch.setattr(dependence, "MOST_PAIRS", 20)
    (few, *_) = mutual_information(tokens, TokenLayout((2,), (4, 4, 4)))
    assert few.plain[0] == pytest.approx(information(tokens[:10, :, 0].ravel(), tokens[:10, :, 1].ravel()))


def test_no_more_can_be_shared_than_the_fold_with_less_entropy_has() -> None:
    random = np.random.default_rng(3)
    tokens = np.stack([random.integers(0, 16, (4000, 1)), random.integers(0, 2, (4000, 1))], axis=2)
    (found,) = mutual_information(tokens, TokenLayout((1,), (16, 2)))
    assert found.entropy[0] == pytest.approx(1, abs=0.01)
