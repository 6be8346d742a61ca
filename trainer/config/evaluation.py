"""What can be set of an evaluation: what is measured, of how many images, in the features of which networks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from data_pipeline.storage.places import InputPlace
from model.config import Section
from trainer.config.stages import ClassifierStageConfig

INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of the 2015 Inception as a file of torch. Two projects publish the same bytes: torch-fidelity as
weights-inception-2015-12-05-6726825d.pth, pytorch-fid as pt_inception-2015-12-05-6726825d.pth."""

Rounding = Literal["nearest", "floor", "adm"]
"""How values v of [-1, 1] become bytes; x is (v + 1) / 2, and all are clipped to 0 and 255.

nearest: floor(255 x + 0.5), halves up; ImageFolder's and LlamaGen's trunc(127.5 v + 128) is the same.
floor: floor(255 x), as VAR and TiTok.
adm: trunc(127.5 (v + 1)) in float32, as ADM's sampling scripts: floor, but for values within rounding of a whole byte.
"""


class InceptionNetwork(Section):
    """The Inception of FID, sFID, Inception score, precision and recall, from a file. Nothing is fetched."""

    kind: Literal["inception"] = "inception"
    file: InputPlace
    """Its weights, as torch-fidelity and pytorch-fid publish them, at any URI."""
    sha256: str = Field(INCEPTION_SHA256, pattern=r"[0-9a-f]{8,64}")
    """How the file's sha256 begins. With another than the published one, no distance is called FID."""


class TimmNetwork(Section):
    """A timm model: the features before its head, and its logits where it has a head."""

    kind: Literal["timm"]
    network: str = Field(min_length=1, max_length=200)
    """Its name, with sizes other than its own as in a URL (`TeacherConfig.network`)."""
    file: InputPlace | None = None
    """Its weights; null for those of timm's hub."""


class TorchvisionNetwork(Section):
    """A torchvision classifier: the features before its last layer, and its logits."""

    kind: Literal["torchvision"]
    network: str = Field(pattern=r"[a-z0-9_]{1,100}")
    """Its name, for instance mobilenet_v2."""
    file: InputPlace
    """Its weights (a state dict), at any URI."""


class ClassifierNetwork(Section):
    """A classifier of foldtrain: the teacher or the judge of some run."""

    kind: Literal["classifier"]
    uri: InputPlace
    """Of its export, or of the run that trained it."""


FeatureNetworkConfig = Annotated[
    InceptionNetwork | TimmNetwork | TorchvisionNetwork | ClassifierNetwork, Field(discriminator="kind")
]


def _by_file(value: object) -> object:
    return {"file": value} if isinstance(value, str) else value


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
    rounding: Rounding = "nearest"
    """How images become bytes before they are measured."""
