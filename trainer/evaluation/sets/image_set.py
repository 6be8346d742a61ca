"""What a set of images that is measured is: how many, which, and any of them by number.

Imports no torch. Shapes: B images, H height, W width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from data_pipeline.images.transforms import Pixels

if TYPE_CHECKING:
    import torch

Labels = npt.NDArray[np.int64]
NO_LABEL = -1


class ImageReader(Protocol):
    """An opened set."""

    def read(self, start: int, stop: int) -> tuple[Pixels, Labels]:
        """Images `start` to `stop`, uint8 [B, H, W, 3], and their classes; -1 where there is none.

        Raises:
            CorruptShardError: if one cannot be read; it names the file.
        """


class ImageSet(Protocol):
    """Images by number. It is pickled and sent to workers."""

    @property
    def count(self) -> int:
        """Images."""

    def identity(self) -> dict[str, Any]:
        """What the images are, as JSON: two sets of the same identity have the same images."""

    def open(self, device: torch.device) -> ImageReader:
        """To read them in this process, or to draw them on this device."""
