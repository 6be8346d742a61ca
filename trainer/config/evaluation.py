"""What can be set of an evaluation: what is measured, of how many images, in the features of which networks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from model.config import Section
from trainer.config.feature_networks import FeatureNetworkConfig, InceptionNetwork
from trainer.config.stages import ClassifierStageConfig
from trainer.config.workers import Workers

Rounding = Literal["nearest", "floor", "adm"]
"""How values v of [-1, 1] become bytes; x is (v + 1) / 2, and all are clipped to 0 and 255.

nearest: floor(255 x + 0.5), halves up; ImageFolder's and LlamaGen's trunc(127.5 v + 128) is the same.
floor: floor(255 x), as VAR and TiTok.
adm: trunc(127.5 (v + 1)) in float32, as ADM's sampling scripts: floor, but for values within rounding of a whole byte.
"""


def _by_file(value: object) -> object:
    return {"file": value} if isinstance(value, str) else value


class MemorizationConfig(Section):
    """How copies of training images are looked for among samples."""

    samples: int = Field(200, gt=0, le=1_000_000)
    """Samples whose nearest training image is looked for, the first of those that are judged."""
    held_out: int = Field(1000, gt=0, le=1_000_000)
    """Held-out images whose distances say what is near, the first of those that are measured."""
    shown: int = Field(8, gt=0, le=64)
    """Samples in samples/nearest.png, those closest to a training image."""
    network: str = Field("teacher", min_length=1, max_length=200)
    """By whose features: teacher, judge, inception, or the name of one of `networks`, as torchvision:mobilenet_v2."""


class EvaluationConfig(Section):
    """How a tokenizer and a generator are judged."""

    samples: int = Field(1000, gt=0, le=100_000_000)
    """Generated images, spread evenly over the classes."""
    probe_images: int = Field(3000, ge=0, le=1_000_000)
    """Training images that linear probes of the tokenizer's branches, and of pixels, are trained on, at most as
    many as 512 MiB hold; 0 for no probe."""
    baselines: bool = True
    """Compare the tokenizer with the mean image and with principal components at equal bits, of the training images."""
    judge: ClassifierStageConfig | None = None
    """A classifier, trained on the real images only, that says which class a sample is. Null leaves that out."""
    inception: Annotated[InceptionNetwork, BeforeValidator(_by_file)] | None = None
    """Measure FID, sFID, Inception score, precision and recall with the 2015 Inception of this file; a path alone will
    do. Null leaves that out."""
    networks: tuple[FeatureNetworkConfig, ...] = Field((), max_length=8)
    """Further networks in whose features Fréchet distances, precision and recall are measured, beside the teacher."""
    memorization: MemorizationConfig | None = None
    """Look for the training image that is nearest to each of some samples. The features of all training images are
    measured for it, once. Null leaves that out."""
    workers: Workers | None = None
    """Measure images on Ray with so many workers, N or MIN:MAX, which `foldtrain scale` changes meanwhile. Null: in the
    command's own process. The numbers are the same, to the digit."""
    resamples: int = Field(0, ge=0, le=10_000)
    """Resamples of the bootstrap that gives Fréchet distances their ±; each computes the distance again. 0: no ±."""
    precision_recall: bool = True
    """Compute precision and recall, too, which takes images times images: 10 minutes of a core for 50,000 at 2,048
    features."""
    rounding: Rounding = "nearest"
    """How images become bytes before they are measured."""
