"""What a metric over many images is."""

from __future__ import annotations

from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


class Metric(Protocol):
    """A number of many images that grows batch by batch, in memory that does not grow with them.

    Sums are in float64. The same batches in the same order give the same digits.
    """

    count: int
    """Images so far."""

    def update(self, values_BD: npt.NDArray[np.floating]) -> None:
        """Add a batch.

        Raises:
            ValueError: if its shape is not that of the others, or a value is not finite.
        """

    def merge(self, other: Self) -> None:
        """Add all that another one has seen, as if it came after what this one has."""

    def compute(self) -> float:
        """The number.

        Raises:
            ValueError: if there are too few images.
        """
