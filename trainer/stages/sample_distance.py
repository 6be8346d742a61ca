"""The small-sample distance of what a generator draws while it trains.

Shapes: N samples, as many as held-out images.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipeline.shards.weights import Card
from model.protocols import Generator, Tokenizer
from trainer.config import SampleDistanceConfig, SamplingConfig
from trainer.evaluation.samples.sampler import Sampler
from trainer.job import HELD_OUT_IMAGES, TrainJob
from trainer.stages.inputs import open_held_out
from trainer.stages.small_sample_distance import Distance, HeldOutImages, SmallSampleDistance, distance_network


class SampleDistance:
    """The distance of the same samples each time from held-out images. Only the first rank has one.

    Args:
        measured: what compares.
        tokenizer: that makes images of the tokens.
        sampling: how they are drawn.
        label_N: classes of the samples, those of the held-out images; a generator that knows none takes none.
        seed: of the numbers that choose tokens.
        made_of: what the samples are of besides, as in names of numbers.
    """

    def __init__(
        self,
        measured: SmallSampleDistance,
        tokenizer: Tokenizer,
        sampling: SamplingConfig,
        label_N: Tensor,
        seed: int,
        made_of: dict[str, Any],
    ) -> None:
        self._measured, self._tokenizer, self._sampling = measured, tokenizer, sampling
        self._label_N, self._seed = label_N, seed
        self._made_of = made_of | {
            "sampling": sampling.record("samples_per_class", "classes", "ema"),
            "seed": seed,
            "labels": "of the reference",
        }

    def measure(self, network: Generator, step: int) -> Distance:
        """Of what the network draws after so many steps. Nothing is taken from torch's own random numbers."""
        sampler = Sampler(network, self._tokenizer, {}, self._sampling, self._seed)
        label_N = self._label_N if network.config.classes else torch.full_like(self._label_N, network.null_class)
        return self._measured.measure(sampler.draw(label_N), {"generator": {"step": step}} | self._made_of)


def sample_distance(
    job: TrainJob, asked: SampleDistanceConfig, tokenizer: Tokenizer, card: Card, device: torch.device
) -> SampleDistance:
    """What a job asks for, with the settings of its section `sampling`.

    Raises:
        UsageError: if the network in whose features images are compared is not there, or is another one.
    """
    sampling = SamplingConfig.model_validate(job.config.get("sampling") or {})
    if asked.guidance is not None:
        sampling = sampling.model_copy(update={"guidance": asked.guidance})
    shards = open_held_out(job, HELD_OUT_IMAGES)
    batch = sampling.cpu_batch if device.type == "cpu" else sampling.batch
    held_out = HeldOutImages.of(shards, tokenizer.config.image_size, job.fit, asked.samples, batch)
    network = distance_network(job, asked, device)
    label_N = torch.from_numpy(np.asarray(shards.labels[: held_out.images.count], np.int64))
    made_of = {
        "weights": "ema" if job.section.trainer.ema_decay else "raw",
        "tokenizer": {"encoder": card.encoder(), "decoder": card.decoder()},
    }
    measured = SmallSampleDistance(asked.name, asked.most_seconds, network, held_out, device)
    return SampleDistance(measured, tokenizer, sampling, label_N, job.seed, made_of)
