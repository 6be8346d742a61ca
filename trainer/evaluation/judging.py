"""How good a tokenizer and a generator are: errors, Fréchet distances in the teacher's feature space, class accuracy.

The distances are not FID: FID means Inception features by the ADM protocol. They compare runs that share a teacher.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipeline.images.transforms import Transform, to_model
from data_pipeline.loading.loader import decode_all
from data_pipeline.node.node_cache import NodeCache
from data_pipeline.shards.image_shards import ImageShards
from data_pipeline.shards.token_dataset import TokenShards
from data_pipeline.shards.token_windows import TokenWindows
from model.classifier import Classifier
from model.protocols import Tokenizer
from trainer.evaluation.quality import psnr, squared_error, ssim
from trainer.evaluation.sampler import Sampler
from trainer.evaluation.teacher import Teacher
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


def evaluate_tokenizer(tokenizer: Tokenizer, teacher: Teacher | None, real: RealImages) -> dict[str, Any]:
    """Squared error, PSNR and SSIM of reconstructions by positions kept; the distance of full ones from originals."""
    prefixes = tokenizer.prefixes
    sums = np.zeros((3, len(prefixes)))
    full = []
    with torch.inference_mode():
        for image_BCHW in torch.split(real.image_NCHW, _BATCH):
            tokens_BLF = tokenizer.tokenize(image_BCHW)
            parts = [tokenizer.detokenize(tokens_BLF, keep) for keep in prefixes]
            sums += np.array([_qualities(part, image_BCHW) for part in parts]).T
            full.append(parts[-1])
    distance = None
    if teacher is not None:
        distance = frechet_distance(statistics(teacher, torch.cat(full)), statistics(teacher, real.image_NCHW))
    means = dict(zip(("mse", "psnr", "ssim"), (sums / len(real.image_NCHW)).tolist(), strict=True))
    found = {f"{name}_of_prefixes": values for name, values in means.items()}
    return {"prefixes": list(prefixes)} | found | {"frechet_distance": distance}


def _qualities(made_BCHW: Tensor, image_BCHW: Tensor) -> list[float]:
    """Sums over images of squared error, PSNR and SSIM."""
    error_B = squared_error(made_BCHW, image_BCHW)
    return [float(each.sum()) for each in (error_B, psnr(error_B), ssim(made_BCHW, image_BCHW))]


def codebook_use(tokens: TokenShards | TokenWindows) -> list[list[float]]:
    """Share of each fold's codebook that occurs in each group of a token data set, [folds][groups]."""
    layout = tokens.layout
    seen = [[np.array([], layout.dtype) for _ in layout.groups] for _ in layout.vocabularies]
    for first in range(0, tokens.count, 4096):
        part = tokens.tokens(np.arange(first, min(first + 4096, tokens.count), dtype=np.int64))
        for fold in range(layout.folds):
            for group in range(len(layout.groups)):
                seen[fold][group] = np.union1d(seen[fold][group], part[:, :, layout.span(group), fold])
    return [[len(used) / codes for used in row] for row, codes in zip(seen, layout.vocabularies, strict=True)]


def evaluate_generator(
    sampler: Sampler, teacher: Teacher | None, judge: Classifier | None, real: RealImages, count: int
) -> dict[str, Any]:
    """Draw `count` images spread evenly over the classes that the generator was trained on, and judge them.

    A class of which no image was drawn has None as its accuracy. `judge_accuracy_on_real` says how far the judge itself
    can be trusted.
    """
    classes = len(sampler.class_names)
    label_N = torch.arange(count) % classes
    with torch.inference_mode():
        image_NCHW = torch.cat(list(sampler.draw(label_N)))
    result: dict[str, Any] = {"samples": count, "frechet_distance": None, "class_accuracy": None}
    result |= {"class_accuracy_per_class": None, "judge_accuracy_on_real": None}
    if teacher is not None:
        result["frechet_distance"] = frechet_distance(
            statistics(teacher, image_NCHW), statistics(teacher, real.image_NCHW)
        )
    if judge is not None:
        right_N = predict(judge, image_NCHW) == label_N
        per_class = [float(right_N[label_N == c].float().mean()) if c < count else None for c in range(classes)]
        on_real = float((predict(judge, real.image_NCHW) == real.label_N).float().mean())
        result |= {"class_accuracy": float(right_N.float().mean()), "class_accuracy_per_class": per_class}
        result["judge_accuracy_on_real"] = on_real
    return result


def predict(judge: Classifier, image_NCHW: Tensor) -> Tensor:
    """The class that the judge sees in each image, int64 [N]."""
    with torch.inference_mode():
        return torch.cat([judge(part).argmax(1).cpu() for part in torch.split(image_NCHW, _BATCH)])
