"""The networks that judge what a tokenizer makes: perceptual distances, which are frozen, and the discriminator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from data_pipeline.errors import UsageError
from model.families import build_discriminator
from model.layers.frozen import FrozenHolder
from model.protocols import Discriminator, Perceptual
from trainer.config import TokenizerStageConfig
from trainer.evaluation.networks.teacher import Teacher
from trainer.stages.image_losses import build_distances


@dataclass(frozen=True)
class Judges:
    """What looks at images."""

    distances: Sequence[tuple[str, float, Perceptual]]
    """Perceptual distances with networks of their own: names that metrics have, weights, networks."""
    discriminator: Discriminator | None
    """New; None without one."""

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """All of them, without the frozen networks inside."""
        found = [distance for _, _, distance in self.distances]
        return tuple(cast("nn.Module", each) for each in (*found, self.discriminator) if each is not None)

    def frozen(self, known: Sequence[nn.Module] = ()) -> tuple[nn.Module, ...]:
        """The frozen ones: distances, and networks inside of others; each once, and none that is known already."""
        inside = [each.frozen for top in self.modules for each in top.modules() if isinstance(each, FrozenHolder)]
        distances = [cast("nn.Module", distance) for _, _, distance in self.distances]
        found = {id(each): each for each in (*distances, *inside)}
        return tuple(each for number, each in found.items() if number not in {id(other) for other in known})


def build_judges(config: TokenizerStageConfig, teacher: Teacher | None, device: torch.device) -> Judges:
    """Those that a config asks for, on a device; the discriminator is new.

    Raises:
        UsageError: if a file of weights is not given, not there, or not what it should be; or there can be no such
            discriminator.
    """
    asked = config.loss.adversarial
    try:
        distances = build_distances(config.loss, device)
        if asked is None:
            return Judges(distances, None)
        network = build_discriminator(asked.discriminator, config.model.image_size, teacher)
    except ValueError as error:
        raise UsageError(f"tokenizer.loss: {error}") from None
    return Judges(distances, cast("Discriminator", cast("nn.Module", network).to(device)))
