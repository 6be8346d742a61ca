"""Frozen networks in whose features sets of images are compared, and by whose logits they are judged.

1. inception.py: the 2015 Inception of FID; published_classifiers.py: models of timm and torchvision
2. here: classifiers of foldtrain, and what opens any of them

Shapes: B images, C channels, H = W side, D width of the features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards import weights
from model.classifier import Classifier
from model.protocols import FeatureTeacher
from trainer.config.feature_networks import (
    ClassifierNetwork,
    FeatureNetworkConfig,
    InceptionNetwork,
    TimmNetwork,
    TorchvisionNetwork,
)
from trainer.evaluation.networks.inception import Inception
from trainer.evaluation.networks.published_classifiers import TimmFeatures, TorchvisionFeatures
from trainer.evaluation.networks.teacher import load_classifier

CLASSIFIERS = ("teacher", "judge")
"""Stages whose product is a classifier."""
_EXPORT = "export"
"""Where it is in the folder of a stage."""


class FeatureNetwork(Protocol):
    """A frozen network that looks at images one by one: what it gives does not depend on the others of a batch."""

    @property
    def name(self) -> str:
        """As in names of numbers: inception-2015, timm:NAME, torchvision:NAME, classifier."""

    @property
    def is_fid(self) -> bool:
        """Whether it is the published Inception, whose distances alone are called FID and sFID."""

    def identity(self) -> dict[str, Any]:
        """JSON: kind, name, and sha256 of the weights."""

    def __call__(self, pixels_BCHW: Tensor) -> dict[str, Tensor]:
        """uint8 -> float32, each with a row per image.

        features: [B, D]. logits: [B, K], where it has a classifier. spatial: [B, 2023], of Inception alone.
        """


class TeacherFeatures:
    """A network of a run as a `FeatureNetwork`.

    Args:
        network: teacher or judge. If it is a classifier, its logits are given, too.
        name: as in the names of numbers.
        identity: kind, name, and sha256 of its weights.
    """

    is_fid = False

    def __init__(self, network: FeatureTeacher | Classifier, name: str, identity: dict[str, Any]) -> None:
        self.network, self.name, self._identity = network, name, identity

    def identity(self) -> dict[str, Any]:
        """As given."""
        return dict(self._identity)

    @torch.inference_mode()
    def __call__(self, pixels_BCHW: Tensor) -> dict[str, Tensor]:
        """uint8 -> features, and logits if it has any."""
        features_BD = self.network.features(pixels_BCHW.float().div_(127.5).sub_(1))  # as to_model does
        found = {"features": features_BD.float()}
        if isinstance(self.network, Classifier):
            found["logits"] = self.network.head(features_BD).float()
        return found


def open_network(config: FeatureNetworkConfig, device: torch.device) -> FeatureNetwork:
    """Load a network.

    Raises:
        UsageError: if its weights are not there, or are not those of such a network.
    """
    return _OPENERS[type(config)](config, device)


def open_classifier(config: ClassifierNetwork, device: torch.device) -> TeacherFeatures:
    """The teacher or the judge of some run.

    Raises:
        UsageError: if there is none, or both.
    """
    uri, stage = _find_classifier(config.uri)
    network, card = load_classifier(uri, stage, device), weights.read_card(uri, stage)
    identity = {"kind": config.kind, "name": stage, "sha256": card.files[card.weights(ema=True)]}
    return TeacherFeatures(network, stage, identity)


def _find_classifier(uri: str) -> tuple[str, str]:
    """Where a classifier is, and its stage: the URI is its export, or the folder of its stage or of its run."""
    own = [place for place in (uri, storage.join(uri, _EXPORT)) if _has_card(place)]
    stages = [storage.join(uri, stage, _EXPORT) for stage in CLASSIFIERS]
    found = own[:1] or [place for place in stages if _has_card(place)]
    if not found:
        raise UsageError(f"{uri} has no finished classifier: name the folder teacher or judge of a run, or an export")
    if len(found) > 1:
        raise UsageError(f"{uri} has several classifiers: name one of them, {' or '.join(found)}")
    card = storage.read_json(storage.join(found[0], "card.json"))
    kind = card.get("kind") if isinstance(card, dict) else None
    if kind not in CLASSIFIERS:
        raise UsageError(
            f"{found[0]} holds something else than a classifier: name the folder teacher or judge of a run"
        )
    return found[0], kind


def _has_card(uri: str) -> bool:
    return storage.exists(storage.join(uri, "card.json"))


_OPENERS: dict[type, Callable[[Any, torch.device], FeatureNetwork]] = {
    InceptionNetwork: Inception,
    TimmNetwork: TimmFeatures,
    TorchvisionNetwork: TorchvisionFeatures,
    ClassifierNetwork: open_classifier,
}
