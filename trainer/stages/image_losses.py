"""What a reconstruction costs as an image: its pixels' error, perceptual distances, what a discriminator says of it.

All of it is a function of the reconstruction alone. So its gradient to the reconstruction is computed first, and what
these networks keep for that is gone before the backward pass through the tokenizer begins; that then carries it.

Shapes: B samples, C channels, H = W side in pixels, D width of the teacher's features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from model.config.losses import PerceptualConfig, TeacherDistanceConfig
from model.families import build_perceptual
from model.losses.pixels import pixel_loss
from model.protocols import Perceptual
from trainer.config import TokenizerLossConfig
from trainer.engine.scalars import Terms
from trainer.evaluation.networks.teacher import Teacher

Judge = Callable[[Tensor], Tensor]
"""Reconstructions [B, C, H, W] -> what the discriminator has them cost, a scalar."""


@dataclass(frozen=True)
class Side:
    """One side of the image's loss: its value, and its gradient to the reconstruction."""

    terms: Terms
    """Unweighted, without gradients."""
    loss: Tensor
    """What is minimized, weighted; a scalar without gradient."""
    gradient_BCHW: Tensor
    """Of `loss`, float32."""


class ImageLosses:
    """Pixels and perceptual distances, with their frozen networks.

    Args:
        config: their weights.
        perceptual: the distances, with their weights and the names that metrics have.
        teacher: of the run, or None.
    """

    def __init__(
        self, config: TokenizerLossConfig, perceptual: Sequence[tuple[str, float, Perceptual]], teacher: Teacher | None
    ) -> None:
        self._config, self._perceptual, self._teacher = config, tuple(perceptual), teacher
        of_teacher = [each for each in config.perceptual if isinstance(each, TeacherDistanceConfig)]
        self._of_teacher = [(name_of(each, config.perceptual), each.weight) for each in of_teacher]

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The frozen networks, without the teacher."""
        return tuple(cast("nn.Module", distance) for _, _, distance in self._perceptual)

    @property
    def distance(self) -> Perceptual | None:
        """The first distance that has a network of its own, which validation reports; None if there is none."""
        return self._perceptual[0][2] if self._perceptual else None

    @torch.enable_grad()
    def similarity(self, made_BCHW: Tensor, image_BCHW: Tensor, features_BD: Tensor | None) -> Side:
        """How far reconstructions are from their images.

        Args:
            made_BCHW: reconstructions; nothing before them is kept or reached.
            image_BCHW: in [-1, 1].
            features_BD: what the teacher sees in the images, so that it sees each once; None if nobody asks.
        """
        made_BCHW = leaf(made_BCHW)
        terms: Terms = {"reconstruction": pixel_loss(made_BCHW, image_BCHW, self._config.pixels)}
        weights = {"reconstruction": self._config.reconstruction}
        for name, weight, distance in self._perceptual:
            terms[name], weights[name] = distance(made_BCHW, image_BCHW).mean(), weight
        for name, weight in self._of_teacher:
            assert self._teacher is not None
            assert features_BD is not None
            seen_BD = self._teacher.features(made_BCHW).float()
            terms[name], weights[name] = (seen_BD - features_BD).square().mean(), weight
        loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        return side_of(terms, loss, made_BCHW)


def build_distances(config: TokenizerLossConfig, device: torch.device) -> list[tuple[str, float, Perceptual]]:
    """The perceptual distances that have networks of their own, frozen, with names for metrics and weights.

    Raises:
        ValueError: if a file is not given, not there, or not what it should be; it says which, and where to get it.
    """
    found = []
    for each in config.perceptual:
        if not isinstance(each, TeacherDistanceConfig):
            distance = cast("nn.Module", build_perceptual(each)).to(device)
            found.append((name_of(each, config.perceptual), each.weight, cast("Perceptual", distance)))
    return found


def name_of(config: PerceptualConfig, among: Sequence[PerceptualConfig]) -> str:
    """What metrics call a distance: perceptual, and its kind where there are several."""
    return "perceptual" if len(among) == 1 else f"perceptual_{config.kind}"


def leaf(made_BCHW: Tensor) -> Tensor:
    """The same images in float32, where gradients end."""
    return made_BCHW.detach().float().requires_grad_()


def side_of(terms: Terms, loss: Tensor, made_BCHW: Tensor) -> Side:
    """A side from a loss that was computed of a `leaf`, whose graph goes with this call."""
    # Gradients of means over many pixels are too small for fp16. A power of two changes no other format's bits.
    factor = 2.0 ** round(math.log2(made_BCHW.numel()))
    (gradient_BCHW,) = torch.autograd.grad(loss * factor, made_BCHW)
    found = {name: term.detach() for name, term in terms.items()}
    return Side(found, loss.detach(), gradient_BCHW.float() / factor)
