"""Images that `foldtrain sample` has drawn, with all that made them.

Shapes: B images, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.errors import UsageError
from data_pipeline.images.transforms import Pixels
from trainer.evaluation.samples.sample_files import SamplePlan, read_pixels
from trainer.evaluation.samples.sample_record import read_sampling
from trainer.evaluation.sets.image_set import ImageReader, Labels

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SampledSet:
    """The first images of a finished sampling, as PNG or tars; those of an npz are an NpzSet."""

    plan: SamplePlan
    count: int
    files: str
    """sha256 over the names and hashes of all files."""

    @classmethod
    def of(cls, uri: str, most: int | None = None) -> SampledSet:
        """All images, or the first `most`.

        Raises:
            UsageError: if the sampling is not finished.
        """
        found = read_sampling(uri)
        if found is None:
            raise UsageError(f"{uri} has no sampling.json: run the same `foldtrain sample` again, until it is finished")
        plan, files = found
        images = plan.labels.images
        return cls(plan, images if most is None else min(most, images), files)

    @property
    def made_by(self) -> dict[str, Any]:
        """What the images follow from (`SamplePlan.drawn_by`)."""
        return self.plan.drawn_by

    def identity(self) -> dict[str, Any]:
        """The hash of its files, and what they were drawn with."""
        return {"kind": "samples", "sha256": self.files, "count": self.count, "plan": self.plan.fingerprint}

    def open(self, device: torch.device) -> ImageReader:  # noqa: ARG002 - images of files are read anywhere
        """Nothing is read yet."""
        return _SampledReader(self.plan)


@dataclass
class _SampledReader:
    """Reads whole parts, and keeps the last one."""

    plan: SamplePlan
    _held: tuple[int, Pixels] | None = field(default=None, repr=False)

    def read(self, start: int, stop: int) -> tuple[Pixels, Labels]:
        size = self.plan.part_images
        parts = [self._part(part) for part in range(start // size, -(-stop // size))]
        first = start // size * size
        pixels = np.concatenate(parts)[start - first : stop - first]
        return pixels, self.plan.labels.between(start, stop)

    def _part(self, part: int) -> Pixels:
        if self._held is None or self._held[0] != part:
            self._held = (part, read_pixels(self.plan, part, self.plan.part_images))
        return self._held[1]
