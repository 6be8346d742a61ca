"""Means of the columns of rows, in memory that does not grow with them.

Sums are in float64 and grow row by row: however the rows are cut into parts, the digits are the same.

Shapes: B rows of a part, K columns.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


class RowMeans:
    """Means of columns, their standard errors and deviations."""

    def __init__(self) -> None:
        self.count = 0
        """Rows so far."""
        self._first_K: Array | None = None
        self._sums_2K: Array | None = None

    def update(self, rows_BK: npt.NDArray[np.floating]) -> None:
        """Add rows.

        Raises:
            ValueError: if a value is not finite.
        """
        values_BK = np.asarray(rows_BK, dtype=np.float64)
        if not np.isfinite(values_BK).all():
            raise ValueError("a row holds a value that is not finite: the network that made it has diverged")
        if not len(values_BK):
            return
        if self._first_K is None or self._sums_2K is None:
            self._first_K = values_BK[0]
            self._sums_2K = np.zeros((2, *values_BK.shape[1:]))
        # Around the first image's values, so that the squares do not cancel.
        shifted_BK = values_BK - self._first_K
        for place, added_BK in enumerate((shifted_BK, np.square(shifted_BK))):
            # accumulate adds one row after the other; a plain sum adds by halves, whose sizes depend on the part's.
            whole = np.concatenate([self._sums_2K[place][None], added_BK])
            self._sums_2K[place] = np.add.accumulate(whole, axis=0)[-1]
        self.count += len(values_BK)

    @property
    def means(self) -> Array:
        """Of each column."""
        assert self._first_K is not None, "there are rows"
        assert self._sums_2K is not None
        found: Array = self._first_K + self._sums_2K[0] / self.count
        return found

    @property
    def standard_errors(self) -> Array | None:
        """Of each mean: the unbiased deviation over the root of the number of rows; None of fewer than two."""
        if self.count < 2:
            return None
        found: Array = self.deviations / np.sqrt(self.count - 1)
        return found

    @property
    def deviations(self) -> Array:
        """Standard deviation of each column over these rows."""
        assert self._sums_2K is not None, "there are rows"
        found: Array = np.sqrt(np.maximum(self._sums_2K[1] - np.square(self._sums_2K[0]) / self.count, 0) / self.count)
        return found
