"""Whole stages on a few small images, trained in one process from files to an export: what other tests look at.

There are as many images as samples in a batch, and each is its own mirror image. So every step sees the same images,
whatever their order, and the mean over a batch is known without knowing it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from data_pipeline.config import DataConfig, FolderSource, ReadingConfig
from data_pipeline.ingest.ingesting import ingest
from model.config import ClassifierConfig
from trainer.config import ClassifierStageConfig, TrainerConfig
from trainer.job import StageSection, TrainJob
from trainer.loop.worker import run_worker

SIZE, COUNT = 16, 16
"""Side of an image in pixels; images, which is samples of a batch, and classes: each has one image."""
CLASSES = tuple(f"class{label:02d}" for label in range(COUNT))
"""Their names."""
NO_STEP = 1e-30
"""A learning rate that moves no weight: the export of such a run is what others begin with."""
SEED = 3
CLASSIFIER = ClassifierConfig(image_size=SIZE, num_classes=COUNT, widths=(8, 16), dropout=0)


def pixels() -> np.ndarray:
    """The images by class, uint8 [COUNT, SIZE, SIZE, 3]: smooth, and symmetric."""
    corners = np.random.default_rng(0).integers(0, 256, (COUNT, 4, 4, 3), dtype=np.uint8)
    smooth = [np.asarray(Image.fromarray(each).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for each in corners]
    left = np.stack(smooth)[:, :, : SIZE // 2]
    return np.concatenate([left, left[:, :, ::-1]], axis=2)


def images() -> Tensor:
    """The images by class as networks see them: bytes to [-1, 1]."""
    return torch.from_numpy(pixels()).permute(0, 3, 1, 2).float() / 127.5 - 1


def write_images(folder: Path) -> str:
    """Image shards of them, every image under a class of its own. Returns their URI."""
    for label, image in enumerate(pixels()):
        path = folder / "raw" / f"class{label:02d}" / "image.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(image).save(path)
    source = FolderSource(path=str(folder / "raw"))
    ingest(DataConfig(source=source, shard_samples=8), str(folder / "images"), seed=0)
    return str(folder / "images" / "train")


def trainer(**changes: Any) -> TrainerConfig:
    """A trainer that sees all images in every step, and records each."""
    values = {"steps": 1, "global_batch": COUNT, "log_every": 1, "zero_stage": 0}
    return TrainerConfig.model_validate(values | changes)


def classifier(**changes: Any) -> ClassifierStageConfig:
    """A judge or a teacher that draws nothing at random."""
    return ClassifierStageConfig(model=CLASSIFIER, trainer=trainer(**changes))


def train(
    stage: str, folder: Path, section: StageSection, lineage: dict[str, str] | None = None, **inputs: str
) -> None:
    """Train a stage to its end in this process, which is in a group of one, with its export in `folder`/export.

    Args:
        stage: its name.
        folder: of the stage.
        section: what is trained, and how.
        lineage: fingerprints of what it is trained from, where somebody compares them.
        inputs: URIs of what it is trained from.
    """
    arguments = (section, SEED, "pad", ReadingConfig(cache_dir=str(folder.parent / "cache")), inputs, lineage or {}, {})
    run_worker(TrainJob(stage, str(folder), *arguments, classes=CLASSES), torch.device("cpu"))


def exported(folder: Path, weights: str = "model") -> dict[str, Tensor]:
    """The trained weights, or their moving average (`ema`)."""
    return load_file(folder / "export" / f"{weights}.safetensors")


def records(folder: Path, name: str) -> list[float]:
    """A number of metrics.jsonl at each step."""
    return [json.loads(line)[name] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def plain_features(weights: dict[str, Tensor], image_BCHW: Tensor) -> Tensor:
    """What a classifier with such weights computes up to its head, [B, D], in plain torch."""
    maps = image_BCHW
    for layer in (0, 3):
        maps = torch.nn.functional.conv2d(maps, weights[f"body.{layer}.weight"], stride=2, padding=1)
        scale, shift = weights[f"body.{layer + 1}.weight"], weights[f"body.{layer + 1}.bias"]
        maps = torch.relu(torch.nn.functional.group_norm(maps, 8, scale, shift))
    return maps.mean((2, 3))


def plain_logits(weights: dict[str, Tensor], image_BCHW: Tensor) -> Tensor:
    """The logits of such a classifier, [B, classes]."""
    return plain_features(weights, image_BCHW) @ weights["head.weight"].T + weights["head.bias"]
