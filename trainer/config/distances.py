"""What can be set of the small-sample distance that is measured while a network trains."""

from __future__ import annotations

from pydantic import Field

from model.config import Section
from trainer.config.feature_networks import FeatureNetworkConfig
from trainer.config.training import MOST_STEPS

MOST_SECONDS = 1200
"""Of a setting that other workers wait for: they give up after 30 minutes."""
MOST_IMAGES = 10_000
"""Of a distance: their features are in memory, 80 MB at 2,048. `evaluate` measures more."""
_NAME = "validation_frechet_distance_"


def is_distance(metric: str) -> bool:
    """Whether a number of metrics.jsonl is a small-sample distance."""
    return metric.startswith(_NAME)


def distance_name(images: int) -> str:
    """What the distance of so many images is called in metrics.jsonl."""
    return f"{_NAME}{images}"


class DistanceConfig(Section):
    """A Fréchet distance of few images from held-out ones, measured while a network trains."""

    every: int | None = Field(None, gt=0, le=MOST_STEPS)
    """Steps between distances. The last step always has one. Null: as often as held-out data are looked at."""
    network: FeatureNetworkConfig | None = None
    """In whose features they are compared. Null: the run's own teacher."""
    most_seconds: float = Field(120.0, gt=0, le=MOST_SECONDS)
    """After so long no further batch is begun, as the other workers wait: then there is no distance, since fewer images
    could not be compared, and the event `validation` says so. It may take longer by one batch, and by the distance
    itself: half a second for 500 images at 2,048 features, half a minute for thousands."""


class ReconstructionDistanceConfig(DistanceConfig):
    """Of a tokenizer's reconstructions of held-out images from these."""

    images: int = Field(500, ge=2, le=MOST_IMAGES)
    """Held-out images, the first of their set. The number is part of the distance's name,
    validation_frechet_distance_500: fewer images have larger distances, so only equal numbers compare."""

    @property
    def name(self) -> str:
        """What it is called in metrics.jsonl."""
        return distance_name(self.images)


class SampleDistanceConfig(DistanceConfig):
    """Of a generator's samples from as many held-out images.

    They are drawn as `sampling` says, of the classes of these images, always by the same numbers.
    """

    samples: int = Field(500, ge=2, le=MOST_IMAGES)
    """Images to draw. The number is part of the distance's name, validation_frechet_distance_500: fewer images have
    larger distances, so only equal numbers compare."""
    guidance: float | None = Field(None, ge=0, le=10_000)
    """In place of `sampling.guidance`; null for that one."""

    @property
    def name(self) -> str:
        """What it is called in metrics.jsonl."""
        return distance_name(self.samples)
