"""Orders of the positions: scans of a square grid, and random ones that follow from a seed.

An order says which position comes first, second, and so on. Shape suffixes: B batch, L positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from torch import Tensor

from model.config.random_order import Scan
from model.layers.random_numbers import split_seed

Grid = npt.NDArray[np.int64]
"""Numbers of positions in rows and columns."""


@lru_cache(maxsize=64)
def scan_order(scan: Scan, positions: int) -> tuple[int, ...]:
    """The positions in the order of a scan.

    Args:
        scan: which.
        positions: how many; for all scans but row-major the square of a number.
    """
    if scan == "row-major":
        return tuple(range(positions))
    side = math.isqrt(positions)
    grid = np.arange(positions).reshape(side, side)
    return tuple(int(position) for position in _SCANS[scan](grid))


def random_orders(seed_B: Tensor, positions: int) -> Tensor:
    """An order for each seed, all orders alike likely, int64 [B, L]."""
    return split_seed(seed_B, positions).T.argsort(dim=1)


def _z_curve(grid: Grid) -> Grid:
    """By the bits of row and column in turn (Morton): the four cells of a square of two before the next square."""
    side = len(grid)
    rows, columns = np.divmod(np.arange(side * side), side)
    code = np.zeros(side * side, dtype=np.int64)
    for bit in range(side.bit_length()):
        code |= (((rows >> bit) & 1) << (2 * bit + 1)) | (((columns >> bit) & 1) << (2 * bit))
    return grid.ravel()[np.argsort(code)]


def _subsample(grid: Grid) -> Grid:
    """Every second row and column, each of the four grids so made in the same way."""
    if grid.size <= 1:
        return grid.ravel()
    return np.concatenate([_subsample(grid[row::2, column::2]) for row in (0, 1) for column in (0, 1)])


def _spiral_in(grid: Grid) -> Grid:
    """Along the border, clockwise from the first corner, and so on inwards."""
    parts = []
    while grid.size:
        parts.append(grid[0])
        grid = np.rot90(grid[1:])
    return np.concatenate(parts)


def _alternate(grid: Grid) -> Grid:
    """Row by row, every second one backwards."""
    turned = grid.copy()
    turned[1::2] = turned[1::2, ::-1]
    return turned.ravel()


_SCANS: dict[str, Callable[[Grid], Grid]] = {
    "z-curve": _z_curve,
    "subsample": _subsample,
    "spiral-in": _spiral_in,
    "spiral-out": lambda grid: _spiral_in(grid)[::-1],
    "alternate": _alternate,
}
