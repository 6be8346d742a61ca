"""What the cluster drill submits: a run of tiny stages, from images to a generator, that takes some seconds at each."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from cluster.drills.drilled_data import garments, jpeg
from cluster.drills.drilled_training import CLASSES, small_generator

STEPS, CHECKPOINT_EVERY = 16, 4
WORKERS = 2
SHARD_SAMPLES, SHARDS, HELD_OUT = 16, 8, 16
FOLDERS = {"ingest": "images", "train-tokenizer": "tokenizer", "tokenize": "tokens", "train-generator": "generator"}
"""The stages, and what each fills in the run."""
TRAINED = ("tokenizer", "generator")
_SIDE = 32


def write_graph(folder: Path, seed: int) -> Path:
    """Write source/ and config.yaml into a folder.

    Returns:
        The config. It has to be given `run`.
    """
    _write_source(folder / "source")
    vit = {"width": 32, "depth": 1, "heads": 2, "drop_path": 0.1}
    tokenizer = {
        "image_size": _SIDE,
        "patch_size": 8,
        "encoder": vit,
        "decoder": vit,
        "scales": [1, 2, 4],
        "dropout_min_scales": 1,
        "quantizer_dropout": 0.4,
        "quantizer": {"codebook_size": 64, "code_dim": 8},
    }
    config: dict[str, Any] = {
        "run": "set by each command",
        "seed": seed,
        "data": {
            "source": {"kind": "folder", "path": str(folder / "source")},
            "validation_samples": HELD_OUT,
            "shard_samples": SHARD_SAMPLES,
            "reading": {"cache_dir": str(folder / "cache")},
        },
        "tokenizer": {"model": tokenizer, "trainer": _trainer()},
        "tokens": {"shard_samples": SHARD_SAMPLES, "batch": 8, "min_workers": WORKERS, "max_workers": WORKERS},
        "generator": {"model": small_generator("next-scale"), "trainer": _trainer()},
        "tracking": {"wandb": "off"},
        "cluster": {"workers": WORKERS, "preflight": "never"},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def _trainer() -> dict[str, Any]:
    return {
        "steps": STEPS,
        "global_batch": 16,
        "warmup_steps": 4,
        "checkpoint_every": CHECKPOINT_EVERY,
        "log_every": 1,
    }


def _write_source(folder: Path) -> None:
    """A folder for each class, with JPEG files."""
    for number in range(CLASSES):
        (folder / f"class_{number}").mkdir(parents=True)
    for number, (pixels, label) in enumerate(islice(garments(), SHARD_SAMPLES * SHARDS + HELD_OUT)):
        data = jpeg(pixels, _SIDE, _SIDE, quality=90)
        (folder / f"class_{label}" / f"{number:05d}.jpg").write_bytes(data)
