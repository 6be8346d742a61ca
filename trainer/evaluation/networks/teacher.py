"""Frozen networks whose features regularize the tokenizer and measure distances between sets of images."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from data_pipeline.errors import UsageError
from data_pipeline.shards import weights
from model.classifier import Classifier
from model.config import ClassifierConfig
from model.layers.timm_files import input_size
from model.layers.vision_features import VisionFeatures
from model.protocols import FeatureTeacher

Teacher = FeatureTeacher


class TimmTeacher(VisionFeatures):
    """A timm model, fed as it was trained: with its own mean, deviation and interpolation, at its own size or another.

    Args:
        network: its name; sizes other than its own follow as in a URL (`TeacherConfig.network`). timm resamples
            positions and patches of pretrained weights to them.
        pretrained: load the weights from timm's hub.

    Raises:
        UsageError: if there is no such model, or it has no such sizes.
    """

    def __init__(self, network: str, *, pretrained: bool = True) -> None:
        model = timm_network(network, pretrained=pretrained)
        try:
            super().__init__(model, input_size(model, network))
        except ValueError as error:
            raise UsageError(f"teacher.timm {network}: {error}") from None


def timm_network(network: str, *, pretrained: bool, head: bool = False, setting: str = "teacher.timm") -> nn.Module:
    """The timm model of a name with sizes (`TeacherConfig.network`).

    Args:
        network: its name.
        pretrained: load the weights from timm's hub.
        head: leave it the classifier that it has.
        setting: where in the config it is named, for messages.

    Raises:
        UsageError: if there is no such model, or it takes no such sizes.
    """
    import timm

    name, _, sizes = network.partition("?")
    if not timm.is_model(name):
        raise UsageError(f"{setting} {name}: timm {timm.__version__} knows no model of this name")
    given: dict[str, Any] = {
        key: int(size) for key, _, size in (part.partition("=") for part in sizes.split("&") if part)
    }
    if not head:
        given["num_classes"] = 0
    try:
        made: nn.Module = timm.create_model(name, pretrained=pretrained, **given)
    except (TypeError, AssertionError, ValueError) as error:
        if not sizes:
            raise
        raise UsageError(
            f"{setting} {name} takes no image_size or patch_size, or not these ({error}): set both to null"
        ) from None
    return made


def load_classifier(uri: str, stage: str, device: torch.device) -> Classifier:
    """A trained classifier, frozen: the teacher or the judge."""
    card, state = weights.read_weights(uri, stage)
    config = weights.read_config(uri, card, ClassifierConfig)
    network = weights.restore(uri, state, lambda: Classifier(config))
    return network.to(device).eval().requires_grad_(False)


def load_teacher(network: str | None, uri: str, device: torch.device) -> Teacher:
    """The teacher of a run: a timm model (`TeacherConfig.network`), or the classifier that `train-teacher` made."""
    if network is None:
        return load_classifier(uri, "teacher", device)
    return TimmTeacher(network).to(device).eval().requires_grad_(False)
