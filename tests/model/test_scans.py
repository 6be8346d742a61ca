"""Orders of positions: scans of a square, and random ones."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from model.config.random_order import RandomOrderConfig, Scan
from model.generators.scans import random_orders, scan_order
from model.layout import TokenLayout

OF_FOUR: dict[Scan, list[int]] = {
    "row-major": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    "z-curve": [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15],
    "subsample": [0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 12, 14, 5, 7, 13, 15],
    "spiral-in": [0, 1, 2, 3, 7, 11, 15, 14, 13, 12, 8, 4, 5, 6, 10, 9],
    "spiral-out": [9, 10, 6, 5, 4, 8, 12, 13, 14, 15, 11, 7, 3, 2, 1, 0],
    "alternate": [0, 1, 2, 3, 7, 6, 5, 4, 8, 9, 10, 11, 15, 14, 13, 12],
}


@pytest.mark.parametrize("scan", OF_FOUR)
def test_scans_of_four_rows(scan: Scan) -> None:
    assert list(scan_order(scan, 16)) == OF_FOUR[scan]


@pytest.mark.parametrize("side", [1, 2, 3, 5, 6, 16])
@pytest.mark.parametrize("scan", get_args(Scan))
def test_a_scan_comes_by_every_position_once(scan: Scan, side: int) -> None:
    assert sorted(scan_order(scan, side**2)) == list(range(side**2))


def test_row_major_takes_any_number_of_positions() -> None:
    assert scan_order("row-major", 7) == (0, 1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize("groups", [(12,), (1, 4, 4)], ids=["no square", "several groups"])
def test_other_scans_refuse_what_is_no_square_with_the_reason(groups: tuple[int, ...]) -> None:
    RandomOrderConfig().check_layout(TokenLayout(groups, (8,)), None)
    with pytest.raises(
        ValueError, match=r"scan spiral-in goes over .* square grid, and these tokens are .*: take scan"
    ):
        RandomOrderConfig(scan="spiral-in").check_layout(TokenLayout(groups, (8,)), None)


def test_a_square_that_only_unfolded_folds_make_is_none() -> None:
    """2 x 2 positions of four folds are 16 in a row, not 4 x 4."""
    unfolded = TokenLayout((4,), (10,) * 4).unfolded()
    with pytest.raises(ValueError, match="z-curve goes over the rows and columns of a square grid"):
        RandomOrderConfig(scan="z-curve").check_layout(unfolded, None)
    RandomOrderConfig(scan="row-major").check_layout(unfolded, None)


def test_random_orders_are_all_alike_likely_and_each_follows_from_its_seed() -> None:
    seed_B = torch.arange(6000) * 7919
    order_BL = random_orders(seed_B, 3)
    code_B = order_BL[:, 0] * 3 + order_BL[:, 1]
    counts = torch.bincount(code_B, minlength=9)
    assert sorted(counts.tolist())[:3] == [0, 0, 0], "a position twice"
    # 1000 of each order are expected, with a standard deviation of 29.
    assert all(850 < count < 1150 for count in counts.tolist() if count)
    assert torch.equal(random_orders(seed_B[7:9], 3), order_BL[7:9])
