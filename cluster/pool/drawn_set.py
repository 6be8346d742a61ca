"""Images that a generator draws while they are measured: no file of them is written.

They are those that `foldtrain sample` would draw with the same settings, seed and labels.
Shapes: B images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.pool.sampling import SampleWork
from data_pipeline.images.transforms import Pixels
from trainer.config.evaluation import Rounding
from trainer.evaluation.sets import ImageReader, Labels

if TYPE_CHECKING:
    import torch

    from trainer.evaluation.samples.sampler import Sampler


@dataclass(frozen=True)
class DrawnSet:
    """All images of a plan."""

    work: SampleWork
    rounding: Rounding
    sampler: Sampler | None = field(default=None, compare=False, repr=False)
    """Both networks, where this process has them; workers load their own."""

    def __getstate__(self) -> dict[str, Any]:
        """What workers get."""
        return vars(self) | {"sampler": None}

    @property
    def count(self) -> int:
        """Images."""
        return self.work.plan.labels.images

    @property
    def made_by(self) -> dict[str, Any]:
        """What the images follow from (`SamplePlan.drawn_by`)."""
        return self.work.plan.drawn_by

    def identity(self) -> dict[str, Any]:
        """What they are drawn with, and how values become bytes."""
        return {"kind": "drawn", "rounding": self.rounding, "count": self.count} | self.made_by

    def open(self, device: torch.device) -> ImageReader:
        """Load both networks.

        Raises:
            UsageError: if they are others than the plan was made for.
        """
        return DrawnReader(self.work, self.sampler or self.work.load(device), self.rounding)


@dataclass(frozen=True)
class DrawnReader:
    """Draws what is asked for."""

    work: SampleWork
    sampler: Sampler
    rounding: Rounding

    def read(self, start: int, stop: int) -> tuple[Pixels, Labels]:
        """Images `start` to `stop`, drawn now, and their classes."""
        label_B = self.work.plan.labels.between(start, stop)
        return np.concatenate(list(self._pixels(label_B, start))), label_B

    def _pixels(self, label_B: Labels, start: int) -> Iterator[Pixels]:
        import torch

        from trainer.evaluation.images import to_bytes

        asked_B = np.where(label_B < 0, self.sampler.generator.null_class, label_B)
        kept = None if self.work.kept_LF is None else torch.from_numpy(self.work.kept_LF)[None]
        for images in self.sampler.draw(torch.from_numpy(asked_B), start, kept):
            yield to_bytes(images, self.rounding)
