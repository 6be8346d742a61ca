"""Real images in memory, and what a classifier says of images: for benchmarks, which look at a thousand at once.

The numbers of a run are computed from rows (trainer/evaluation/set_numbers.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from drawing import draw
from torch import Tensor

from data_pipeline.images.transforms import Transform, to_model
from data_pipeline.loading.loader import decode_all
from data_pipeline.node.node_cache import NodeCache
from data_pipeline.shards.image_shards import ImageShards
from model.classifier import Classifier
from trainer.evaluation.networks.teacher import Teacher
from trainer.evaluation.samples.sampler import Sampler
from trainer.metrics.frechet import FeatureStatistics, frechet_distance

_BATCH = 250


@dataclass(frozen=True)
class RealImages:
    """Images in [-1, 1] with their classes: [N, 3, H, W] and [N]."""

    image_NCHW: Tensor
    label_N: Tensor

    @classmethod
    def load(
        cls, uri: str, size: int, fit: str, most: int, device: torch.device, cache: NodeCache | None = None
    ) -> RealImages:
        """The first `most` images of a data set (shards are in shuffled order); images on the device, classes not.

        `cache` is where this node keeps the index of the data set, if it is remote.
        """
        shards = ImageShards(uri, index_cache=cache)
        pixels = decode_all(shards, Transform(size, fit), most)
        labels = torch.from_numpy(np.asarray(shards.labels[: len(pixels)], dtype=np.int64))
        return cls(torch.from_numpy(to_model(pixels)).to(device), labels)


def statistics(teacher: Teacher, image_NCHW: Tensor) -> FeatureStatistics:
    """The Gaussian of the teacher's features of some images."""
    with torch.inference_mode():
        features = torch.cat([teacher.features(part).float().cpu() for part in torch.split(image_NCHW, _BATCH)])
    return FeatureStatistics.from_features(features)


def judge_samples(sampler: Sampler, judge: Classifier, real: FeatureStatistics, count: int) -> dict[str, float]:
    """So many samples of all classes in turn: the share that the judge gives to its class, how far they are from the
    real ones in its features, and how many were drawn per second of processor time, with decoding."""
    image_NCHW, rate = draw(sampler, count)
    label_N = torch.arange(count) % len(sampler.class_names)
    right = (predict(judge, image_NCHW) == label_N).float().mean()
    distance = frechet_distance(statistics(judge, image_NCHW), real)
    return {"judged": float(right), "distance": distance, "images_per_second": rate}


def predict(judge: Classifier, image_NCHW: Tensor) -> Tensor:
    """The class that the judge sees in each image, int64 [N]."""
    with torch.inference_mode():
        return torch.cat([judge(part).argmax(1).cpu() for part in torch.split(image_NCHW, _BATCH)])
