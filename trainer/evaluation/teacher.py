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


class TimmTeacher(nn.Module):
    """A pretrained timm model, fed as it was trained: its own mean, deviation and image size."""

    def __init__(self, name: str, *, pretrained: bool = True) -> None:
        super().__init__()
        import timm

        if not timm.is_model(name):
            raise UsageError(f"teacher.timm {name}: timm {timm.__version__} knows no model of this name")
        self.model = timm.create_model(name, pretrained=pretrained, num_classes=0)
        settings: Any = self.model.pretrained_cfg
        self.size = int(settings["input_size"][-1])
        self.mean, self.std = tuple(settings["mean"]), tuple(settings["std"])

    def features(self, image_BCHW: Tensor) -> Tensor:
        """Class-token or pooled features [B, D]."""
        image = nn.functional.interpolate(image_BCHW, size=(self.size, self.size), mode="bicubic", antialias=True)
        mean, std = (image.new_tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        features: Tensor = self.model(((image + 1) / 2 - mean) / std)
        return features


def load_classifier(uri: str, stage: str, device: torch.device) -> Classifier:
    """A trained classifier, frozen: the teacher or the judge."""
    card, state = weights.read_weights(uri, stage)
    config = weights.read_config(uri, card, ClassifierConfig)
    network = weights.restore(uri, state, lambda: Classifier(config))
    return network.to(device).eval().requires_grad_(False)


def load_teacher(timm_name: str | None, uri: str, device: torch.device) -> Teacher:
    """The teacher of a run: a timm model by name, or the classifier that `train-teacher` made."""
    if timm_name is None:
        return load_classifier(uri, "teacher", device)
    return TimmTeacher(timm_name).to(device).eval().requires_grad_(False)
