"""A Fréchet distance of few images from held-out ones, measured between two steps of a training by the first worker.

1. features of the first held-out images, once for each start: the reference. Where that takes longer than a look may,
   the next look goes on with it
2. what the network makes, batch by batch, as bytes, and their features
3. the distance of the two (trainer/metrics/small_sample.py); none where the time was over before, since the distance of
   fewer images could not be compared with the others

Nothing is drawn at random, and nothing of the training is written to.

Shapes: B images, C channels, H height, W width, D features.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline.images.transforms import Transform
from data_pipeline.shards.image_shards import ImageShards
from trainer.config import DistanceConfig
from trainer.config.feature_networks import ClassifierNetwork, FeatureNetworkConfig, TimmNetwork
from trainer.evaluation.images import to_uint8
from trainer.evaluation.naming.numbers import Number
from trainer.evaluation.networks.feature_networks import FeatureNetwork, open_network
from trainer.evaluation.sets.shard_set import ShardSet
from trainer.job import TrainJob
from trainer.metrics.small_sample import small_sample_distance
from trainer.stages.fixed_images import FixedImages

Device = torch.device
Features = npt.NDArray[np.float32]
"""[B, D]."""
EVENT_KEY = "distance"
"""Where the event `validation` has what was found."""


@dataclass(frozen=True)
class Distance:
    """What was found."""

    numbers: dict[str, float | None] = field(default_factory=dict)
    """The distance by its name; empty if there is none."""
    details: dict[str, Any] = field(default_factory=dict)
    """For the event: the number with its full name (trainer/evaluation/naming/numbers.py), or why there is none."""


@dataclass(frozen=True)
class HeldOutImages:
    """Images that nothing is trained on, each cut to a square, on the rank that compares with them."""

    images: FixedImages
    measured_by: dict[str, Any]
    """What the reference is, as in names of numbers."""

    @classmethod
    def of(cls, shards: ImageShards, size: int, fit: str, count: int, batch: int) -> HeldOutImages:
        """The first `count` of a data set, as `evaluate` reads them."""
        found = FixedImages(shards, Transform(size, fit), count, batch, alone=True)
        named = ShardSet(shards.uri, shards.manifest.fingerprint, found.count, size, fit)
        reference = {"images": named.fingerprint, "count": named.count}
        return cls(found, {"reference": reference, "crop": named.how_cut})


class SmallSampleDistance:
    """Distances from the same held-out images, on the rank that measures them.

    Args:
        name: of the distance in metrics.jsonl.
        most_seconds: after which no further batch is begun.
        network: in whose features images are compared.
        held_out: the reference; as many images are made.
        device: of the network.
        clock: seconds.
    """

    def __init__(
        self,
        name: str,
        most_seconds: float,
        network: FeatureNetwork,
        held_out: HeldOutImages,
        device: Device,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._name, self._most_seconds, self._network, self._device = name, most_seconds, network, device
        self._count, self._clock = held_out.images.count, clock
        self._measured_by = held_out.measured_by | {"rounding": "nearest", "network": network.identity()}
        self._unseen: FixedImages | None = held_out.images
        self._reference: list[Features] = []
        """Of each batch of held-out images."""

    def measure(self, made: Iterable[Tensor], made_of: dict[str, Any]) -> Distance:
        """The distance of images.

        Without room for it on a GPU, or where images are no numbers, there is none, and the reason is told: looking on
        ends no training.

        Args:
            made: batches of them, [B, 3, H, W] in [-1, 1], as many in all as there are held-out ones. A batch is asked
                for when the one before has been looked at.
            made_of: what they are of, as in names of numbers.
        """
        began = self._clock()
        try:
            found = self._measure(made, began + self._most_seconds)
        except torch.OutOfMemoryError as error:
            found = str(error).partition("\n")[0][:500]
        except ValueError as error:
            found = str(error)[:500]
        details = {"name": self._name, "seconds": round(self._clock() - began, 3)}
        if isinstance(found, str):
            named = {"images": self._count, "measured_by": self._measured_by, "measured_of": made_of}
            return Distance({}, details | named | {"left_out": found})
        number = Number("frechet_distance", found, self._count, self._measured_by, made_of)
        return Distance({self._name: found}, details | number.to_json())

    def _measure(self, made: Iterable[Tensor], until: float) -> float | str:
        """The distance, or why there is none."""
        if not self._knows_reference(until):
            return self._late(f"of {_count(self._reference):,} of {self._count:,} held-out images features were known")
        found: list[Features] = []
        for image_BCHW in made:
            found.append(self._features(torch.from_numpy(to_uint8(image_BCHW)).permute(0, 3, 1, 2)))
            if _count(found) < self._count and self._clock() > until:
                return self._late(f"{_count(found):,} of {self._count:,} images were made")
        return small_sample_distance(np.concatenate(found), np.concatenate(self._reference))

    def _knows_reference(self, until: float) -> bool:
        """Whether the features of all held-out images are known when the time is over."""
        while self._unseen is not None:
            self._reference.append(self._features(self._unseen.part(len(self._reference))))
            if len(self._reference) == self._unseen.batches:
                self._unseen = None  # with pixels that nobody else needs
            elif self._clock() > until:
                return False
        return True

    def _features(self, pixels_BCHW: Tensor) -> Features:
        features_BD = self._network(pixels_BCHW.contiguous().to(self._device))["features"]
        return features_BD.float().cpu().numpy()

    def _late(self, what: str) -> str:
        return f"after {self._most_seconds:g} s {what}"


def _count(features: Sequence[Features]) -> int:
    return sum(map(len, features))


def of_first(found: Distance | None) -> Distance:
    """What the first rank has found, on every rank (a collective)."""
    shared: list[Distance | None] = [found]
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(shared, src=0)
    assert shared[0] is not None, "the first rank measures"
    return shared[0]


def distance_network(job: TrainJob, config: DistanceConfig, device: Device) -> FeatureNetwork:
    """The network that is asked for, or the run's own teacher.

    Raises:
        UsageError: if its weights are not there, or are not those of such a network.
    """
    return open_network(config.network or _own_teacher(job), device)


def _own_teacher(job: TrainJob) -> FeatureNetworkConfig:
    timm = job.inputs.get("teacher_timm")
    if timm is not None:
        return TimmNetwork(kind="timm", network=timm)
    return ClassifierNetwork(kind="classifier", uri=job.inputs["teacher"])
