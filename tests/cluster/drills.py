"""A run that is small enough to be killed many times, and what it leaves. cluster/drills/victims.py kills it."""

from __future__ import annotations

import gzip
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

IMAGES, HEADS = 400, {"t10k-images-idx3-ubyte.gz": (16, 784), "t10k-labels-idx1-ubyte.gz": (8, 1)}
STEPS, CHECKPOINT_EVERY = 60, 10


def write_source(folder: Path) -> dict[str, Any]:
    """The first images of the embedded data set as idx files of their own; the source section that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (head, width) in HEADS.items():
        packed = resources.files("data_pipeline").joinpath("embedded/fashion_mnist", name).read_bytes()
        data = bytearray(gzip.decompress(packed)[: head + IMAGES * width])
        data[4:8] = IMAGES.to_bytes(4, "big")
        (folder / name.removesuffix(".gz")).write_bytes(data)
    images, labels = (str(folder / name.removesuffix(".gz")) for name in HEADS)
    return {"kind": "idx", "images": images, "labels": labels}


def write_config(folder: Path) -> Path:
    """The quickstart at a size that takes seconds."""

    def trainer(**changes: Any) -> dict[str, Any]:
        small = {"steps": STEPS, "global_batch": 8, "warmup_steps": 2, "checkpoint_every": CHECKPOINT_EVERY}
        return small | {"log_every": 1} | changes

    vit = {"width": 16, "depth": 1, "heads": 2}
    model = {
        "kind": "imagefolder",
        "image_size": 28,
        "patch_size": 14,
        "encoder": vit | {"layer_scale": None},
        "decoder": vit | {"layer_scale": None},
        "branches": 2,
        "quantizer": {"codebook_size": 32, "code_dim": 8},
        "quantizer_dropout": 0.1,
    }
    config = {
        "extends": str(resources.files("configs") / "quickstart.yaml"),
        "run": str(folder / "run"),
        "data": {"source": write_source(folder / "source"), "validation_samples": 100, "shard_samples": 100},
        "teacher": {"model": {"widths": [8, 16]}, "trainer": trainer()},
        "tokenizer": {
            "model": model | {"scales": [1, 2], "dropout_min_scales": 1, "teacher_width": 16},
            "dead_code_steps": 5,
            "trainer": trainer(micro_batch=2),
        },
        "tokens": {"shard_samples": 5},
        "generator": {"model": {"depth": 1, "width": 16, "heads": 2}, "trainer": trainer(precision="bf16")},
        "sampling": {"samples_per_class": 2, "top_k": 0},
        "evaluation": {"samples": 40, "judge": {"model": {"widths": [8]}, "trainer": trainer(steps=10)}},
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    """Whole records of a JSONL file."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def digests(folder: Path, *patterns: str) -> dict[str, str]:
    """sha256 of the files of a folder, by name."""
    files = [path for pattern in patterns for path in folder.rglob(pattern)]
    assert files, folder
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
