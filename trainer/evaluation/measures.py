"""What is measured of images one by one: arrays with a row for each image.

Whatever a number over a set is computed from is a row of an image: features, squared errors, a judge's logits. Rows are
computed part by part, anywhere; numbers are computed from them in the order of the images. So a number has the same
digits however many workers there were, and whatever was killed meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from data_pipeline.images.transforms import Pixels

if TYPE_CHECKING:
    import torch

Rows = dict[str, npt.NDArray[Any]]
"""Arrays by name, each with a row for each image of a batch: float32, or integers."""

LABEL = "label"
"""Name of the array of classes, int64, which stands beside those of every measure; -1 of an image that has none."""


class ImageMeasure(Protocol):
    """A function of images alone, which does not depend on which others are in the batch."""

    def __call__(self, pixels_BHWC: Pixels, label_B: npt.NDArray[np.int64], first: int) -> Rows:
        """Rows of a batch.

        Args:
            pixels_BHWC: uint8; a batch of the size that all have, but for the last one.
            label_B: the class of each; -1 where it has none.
            first: number of the first of them among all images. What is drawn at random is keyed by it.
        """


class Measure(Protocol):
    """What is measured. It is pickled and sent to workers."""

    def identity(self) -> dict[str, Any]:
        """What it is, with the hashes of its networks, as JSON."""

    def open(self, device: torch.device) -> ImageMeasure:
        """Load its networks.

        Raises:
            UsageError: if they are others by now.
        """


class MeasuredRows(Protocol):
    """The rows of all images of a set, part by part."""

    @property
    def count(self) -> int:
        """Images."""

    def parts(self, *names: str) -> Iterator[Rows]:
        """The arrays of these names, in the order of the images; a part is some hundred of them."""

    def column(self, name: str) -> npt.NDArray[Any]:
        """One array of all images, on this machine's disk: a memory map, of which a reader holds what it touches."""
