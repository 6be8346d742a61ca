"""What frozen networks see in the images of a step: the run's teacher, and teachers of other terms.

Each network looks at an image once for each kind of feature, however many terms ask for it.

Shapes: B samples, C channels, H = W side in pixels, D width of a teacher's features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from model.config.losses import TeacherDistanceConfig
from trainer.config import TokenizerLossConfig
from trainer.evaluation.networks.teacher import Teacher, load_teacher

PERCEPTUAL = "perceptual"
"""Of a perceptual distance in the run's teacher's features."""


class Guides:
    """Teachers, by the names of the terms that ask for their features.

    Args:
        config: of the loss.
        teacher: of the run; None without one.
        own: teachers of contrastive losses that have one of their own, by their names.
    """

    def __init__(
        self, config: TokenizerLossConfig, teacher: Teacher | None, own: Mapping[str, Teacher] | None = None
    ) -> None:
        self.teacher, self._own = teacher, dict(own or {})
        self._asked = {name: each.feature for name, each in config.contrasts.items()}
        if any(isinstance(each, TeacherDistanceConfig) for each in config.perceptual):
            self._asked[PERCEPTUAL] = "class"

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """All of them."""
        found = [*self._own.values()] + ([] if self.teacher is None else [self.teacher])
        return tuple(cast("nn.Module", each) for each in found)

    @torch.no_grad()
    def look(self, image_BCHW: Tensor) -> dict[str, Tensor]:
        """Features [B, D], float32, of images in [-1, 1], by the terms that ask for them."""
        seen: dict[tuple[int, str], Tensor] = {}
        found = {}
        for name, feature in self._asked.items():
            teacher = self._own.get(name, self.teacher)
            assert teacher is not None, name  # the config was checked
            key = id(teacher), feature
            if key not in seen:
                look = teacher.features if feature == "class" else teacher.patch_features
                seen[key] = look(image_BCHW).float()
            found[name] = seen[key]
        return found


def load_guides(config: TokenizerLossConfig, teacher: Teacher | None, device: torch.device) -> Guides:
    """The teachers that a loss asks for; those of its own from timm.

    Raises:
        UsageError: if timm has no such model.
    """
    detail, own = config.detail, {}
    if detail is not None and detail.teacher is not None:
        own["detail"] = load_teacher(detail.teacher, "", device)
    return Guides(config, teacher, own)
