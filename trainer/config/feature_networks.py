"""Which frozen network looks at images: distances are of its features, classes of its logits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from data_pipeline.storage.places import InputPlace
from model.config import Section

INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of the 2015 Inception as a file of torch. Two projects publish the same bytes: torch-fidelity as
weights-inception-2015-12-05-6726825d.pth, pytorch-fid as pt_inception-2015-12-05-6726825d.pth."""


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
    """Of its export, of the folder of its stage, or of the run that trained it."""


FeatureNetworkConfig = Annotated[
    InceptionNetwork | TimmNetwork | TorchvisionNetwork | ClassifierNetwork, Field(discriminator="kind")
]
