"""A perceptual distance without a published network: in the features of the run's own teacher."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from model.config import TeacherDistanceConfig
from model.layers.frozen import FrozenHolder
from model.protocols import FeatureTeacher


class TeacherDistance(FrozenHolder):
    """Mean squared difference of what the teacher sees in two images."""

    def __init__(self, teacher: FeatureTeacher) -> None:
        super().__init__(cast("nn.Module", teacher), shared=True)

    def forward(self, image_BCHW: Tensor, other_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] -> distances [B], float32, with gradients to both."""
        teacher = cast("FeatureTeacher", self.frozen)
        difference_BD = teacher.features(image_BCHW.float()).float() - teacher.features(other_BCHW.float()).float()
        return difference_BD.square().mean(1)


def teacher_distance(_: TeacherDistanceConfig, teacher: FeatureTeacher | None) -> TeacherDistance:
    """The distance in the features of a teacher.

    Raises:
        ValueError: if there is none.
    """
    if teacher is None:
        raise ValueError("perceptual distance of kind teacher: this run has no teacher; name one, or use another kind")
    return TeacherDistance(teacher)
