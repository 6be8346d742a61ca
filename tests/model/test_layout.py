"""Where tokens stand in a sequence."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.config import ImageFolderConfig
from model.layout import TokenLayout

IMAGEFOLDER = TokenLayout((1, 1, 4, 9, 9, 16, 25, 36, 64, 121), (4096, 4096))
sizes = st.lists(st.integers(1, 200), min_size=1, max_size=8).map(tuple)


def test_imagefolders_ten_scales_have_286_positions_of_two_tokens() -> None:
    assert ImageFolderConfig().layout == IMAGEFOLDER
    assert IMAGEFOLDER.positions == 286
    assert IMAGEFOLDER.folds == 2
    assert ImageFolderConfig().grid == 11


@given(sizes)
def test_spans_cover_every_position_once_and_in_order(groups: tuple[int, ...]) -> None:
    layout = TokenLayout(groups, (2,))
    covered = [p for group in range(len(groups)) for p in range(layout.positions)[layout.span(group)]]
    assert covered == list(range(layout.positions))


@given(sizes, sizes)
def test_a_manifest_gives_the_layout_back(groups: tuple[int, ...], vocabularies: tuple[int, ...]) -> None:
    layout = TokenLayout(groups, vocabularies)
    assert TokenLayout.from_json(layout.to_json()) == layout


@pytest.mark.parametrize(
    ("vocabularies", "dtype"), [((65536, 2), "uint16"), ((2, 65537), "uint32"), ((2**32,), "uint32")]
)
def test_the_largest_vocabulary_decides_how_many_bits_a_token_takes(vocabularies: tuple[int, ...], dtype: str) -> None:
    assert TokenLayout((1,), vocabularies).dtype == dtype


def test_folds_of_different_vocabularies_have_no_common_one() -> None:
    assert TokenLayout((1,), (5, 5)).vocabulary() == 5
    with pytest.raises(ValueError, match=r"different vocabularies: \[5, 6\]"):
        TokenLayout((1,), (5, 6)).vocabulary()


@pytest.mark.parametrize(("groups", "vocabularies"), [((), (2,)), ((0, 2), (2,)), ((1,), ()), ((1,), (2, 0))])
def test_empty_groups_and_vocabularies_are_refused(groups: tuple[int, ...], vocabularies: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="give at least one"):
        TokenLayout(groups, vocabularies)


@pytest.mark.parametrize(
    "record",
    [{"scales": [1]}, {"groups": [1]}, {"groups": 1, "vocabularies": [2]}, {"groups": [1.5], "vocabularies": [2]}],
)
def test_what_is_no_layout_is_refused(record: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="layout"):
        TokenLayout.from_json(record)


@pytest.mark.parametrize("scales", [(), (0, 2), (1, 4, 3)])
def test_scales_that_are_no_pyramid_are_refused(scales: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="scales"):
        ImageFolderConfig(scales=scales, dropout_min_scales=1)


@given(sizes, st.integers(1, 4))
def test_unfolded_tokens_are_positions_of_one_fold_and_fold_again(groups: tuple[int, ...], folds: int) -> None:
    layout = TokenLayout(groups, (5,) * folds)
    unfolded = layout.unfolded()
    assert (unfolded.positions, unfolded.folds, unfolded.vocabularies) == (layout.positions * folds, 1, (5,))
    assert unfolded.folded() == layout
    assert layout.folded() == layout


def test_folds_of_different_vocabularies_do_not_unfold() -> None:
    with pytest.raises(ValueError, match="different vocabularies"):
        TokenLayout((4,), (8, 9)).unfolded()
