"""Frozen networks whose features regularize the tokenizer and measure distances between sets of images."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from data_pipeline.errors import UsageError
from data_pipeline.shards import weights
from model.classifier import Classifier
from model.config import ClassifierConfig


class Teacher(Protocol):
    """Images in [-1, 1] to features."""

    def features(self, image_BCHW: Tensor) -> Tensor:
        """Features [B, D]."""
        ...


_INTERPOLATIONS = ("bicubic", "bilinear")


class TimmTeacher(nn.Module):
    """A timm model, fed as it was trained: with its own mean, deviation and interpolation, at its own size or another.

    Args:
        network: its name; sizes other than its own follow as in a URL (`TeacherConfig.network`). timm resamples
            positions and patches of pretrained weights to them.
        pretrained: load the weights from timm's hub.

    Raises:
        UsageError: if there is no such model, or it has no such sizes.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: str, *, pretrained: bool = True) -> None:
        super().__init__()
        self.model = timm_network(network, pretrained=pretrained)
        settings: Any = self.model.pretrained_cfg
        patches = getattr(self.model, "patch_embed", None)
        asked = "img_size=" in network
        self.size = int(patches.img_size[-1] if asked and patches is not None else settings["input_size"][-1])
        self.mode = settings.get("interpolation") or "bicubic"
        if self.mode not in _INTERPOLATIONS:
            raise UsageError(f"teacher.timm {network}: it was trained on {self.mode} resizing, which torch has not")
        # Buffers, as numbers from the host would be copied to the device at each call.
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(settings[name]).view(1, 3, 1, 1), persistent=False)

    def features(self, image_BCHW: Tensor) -> Tensor:
        """Class-token or pooled features [B, D]."""
        image = nn.functional.interpolate(image_BCHW, size=(self.size, self.size), mode=self.mode, antialias=True)
        features: Tensor = self.model(((image + 1) / 2 - self.mean) / self.std)
        return features


def timm_network(network: str, *, pretrained: bool) -> nn.Module:
    """The timm model of a name with sizes (`TeacherConfig.network`), without a head.

    Raises:
        UsageError: if there is no such model, or it takes no such sizes.
    """
    import timm

    name, _, sizes = network.partition("?")
    if not timm.is_model(name):
        raise UsageError(f"teacher.timm {name}: timm {timm.__version__} knows no model of this name")
    given: dict[str, Any] = {
        key: int(size) for key, _, size in (part.partition("=") for part in sizes.split("&") if part)
    }
    try:
        made: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0, **given)
    except (TypeError, AssertionError, ValueError) as error:
        if not given:
            raise
        raise UsageError(
            f"teacher.timm {name} takes no image_size or patch_size, or not these ({error}): set both to null"
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
