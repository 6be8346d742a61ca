"""Where tokens stand in a sequence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.layout import TokenLayout

IMAGEFOLDER = TokenLayout((1, 1, 2, 3, 3, 4, 5, 6, 8, 11), branches=2, codebook_size=4096)
sides = st.lists(st.integers(1, 12), min_size=1, max_size=8).map(lambda s: (*s, max(s)))


def test_imagefolders_ten_scales_have_286_positions_of_two_tokens() -> None:
    assert IMAGEFOLDER.positions == 286
    assert IMAGEFOLDER.folds == 2
    assert IMAGEFOLDER.positions - IMAGEFOLDER.group_sizes[0] == 285
    assert IMAGEFOLDER.grid == 11


@given(sides)
def test_spans_cover_every_position_once_and_in_order(scales: tuple[int, ...]) -> None:
    layout = TokenLayout(scales, branches=1, codebook_size=2)
    covered = [p for scale in range(len(scales)) for p in range(layout.positions)[layout.span(scale)]]
    assert covered == list(range(layout.positions))
    assert [side**2 for side in scales] == list(layout.group_sizes)


@given(sides, st.integers(1, 4), st.integers(2, 9))
def test_a_manifest_gives_the_layout_back(scales: tuple[int, ...], branches: int, codes: int) -> None:
    layout = TokenLayout(scales, branches, codes)
    assert TokenLayout.from_json(layout.to_json()) == layout


@pytest.mark.parametrize("scales", [(), (0, 2), (1, 4, 3)])
def test_scales_that_are_no_pyramid_are_refused(scales: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="scales"):
        TokenLayout(scales, branches=1, codebook_size=2)
