"""The small-sample distance of a tokenizer's reconstructions while it trains.

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from torch import Tensor

from model.protocols import Tokenizer
from trainer.config import TokenizerStageConfig
from trainer.engine.batches import normalized
from trainer.job import TrainJob
from trainer.stages.fixed_images import FixedImages
from trainer.stages.inputs import open_held_out
from trainer.stages.small_sample_distance import Distance, HeldOutImages, SmallSampleDistance, distance_network


class Reconstructs(Protocol):
    """A tokenizer that makes no tokens (`TokenizerConfig.has_tokens`)."""

    def reconstruct(self, image_BCHW: Tensor) -> Tensor:
        """Images behind the bottleneck."""
        ...


class ReconstructionDistance:
    """The distance of reconstructions of held-out images from these. Only the first rank has one.

    Args:
        measured: what compares.
        images: that are reconstructed.
        device: of the network.
        made_of: what the reconstructions are of besides, as in names of numbers.
    """

    def __init__(
        self, measured: SmallSampleDistance, images: FixedImages, device: torch.device, made_of: dict[str, Any]
    ) -> None:
        self._measured, self._images, self._device, self._made_of = measured, images, device, made_of

    def measure(self, network: Tokenizer, step: int) -> Distance:
        """Of what all positions of the network's tokens give after so many steps."""
        made = (self._reconstructed(network, pixels_BCHW) for _, pixels_BCHW in self._images.mine())
        return self._measured.measure(made, {"tokenizer": {"step": step}} | self._made_of)

    def _reconstructed(self, network: Tokenizer, pixels_BCHW: Tensor) -> Tensor:
        image_BCHW = normalized(pixels_BCHW.to(self._device))
        if network.config.has_tokens:
            return network.detokenize(network.tokenize(image_BCHW))
        return cast("Reconstructs", network).reconstruct(image_BCHW)


def reconstruction_distance(
    job: TrainJob, section: TokenizerStageConfig, device: torch.device
) -> ReconstructionDistance | None:
    """What a job asks for; None if it asks for none. On the first rank.

    Raises:
        UsageError: if the network in whose features images are compared is not there, or is another one.
    """
    config = section.validation
    if config is None or config.distance is None:
        return None
    asked, network = config.distance, distance_network(job, config.distance, device)
    held_out = HeldOutImages.of(open_held_out(job), section.model.image_size, job.fit, asked.images, config.batch)
    measured = SmallSampleDistance(asked.name, asked.most_seconds, network, held_out, device)
    weights = "ema" if section.trainer.ema_decay else "raw"
    made_of = {"weights": weights, "images": held_out.measured_by["reference"]}
    return ReconstructionDistance(measured, held_out.images, device, made_of)
