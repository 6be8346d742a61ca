"""What the data drill works on: a source with damaged files in it, a tokenizer that nobody trained, and a config."""

from __future__ import annotations

import gzip
import io
import random
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

IMAGES, BAD = 4000, 12
"""So many that ingest takes its pool of workers, before a kill and mostly after it, too."""
VALIDATION = 250
SHARD_SAMPLES = 250
"""16 shards of images, 15 of tokens, and one of tokens of held-out images."""
WORKERS = 2
_SIDES = (20, 72)
_HEADS = {"t10k-images-idx3-ubyte.gz": 16, "t10k-labels-idx1-ubyte.gz": 8}


def write_data(folder: Path, seed: int) -> Path:
    """Write source/, tokenizer/ and config.yaml into a folder; the same seed gives the same bytes.

    Returns:
        The config. It has to be given `run`.
    """
    _write_source(folder / "source", random.Random(seed))
    tokenizer = write_tokenizer(folder / "tokenizer", seed)
    trainer = {"steps": 1, "global_batch": 8}
    config: dict[str, Any] = {
        "run": "set by each command",
        "seed": seed,
        "data": {
            "source": {"kind": "folder", "path": str(folder / "source")},
            "validation_samples": VALIDATION,
            "shard_samples": SHARD_SAMPLES,
            "max_bad_share": 2 * BAD / IMAGES,
            "min_workers": WORKERS,
            "max_workers": WORKERS,
        },
        "tokenizer": {"model": tokenizer, "trainer": trainer},
        "tokens": {"shard_samples": SHARD_SAMPLES, "batch": 50, "min_workers": WORKERS, "max_workers": WORKERS},
        "generator": {"model": {"num_classes": 10, "depth": 1, "width": 32, "heads": 2}, "trainer": trainer},
        "cluster": {"workers": WORKERS},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def _write_source(folder: Path, drawn: random.Random) -> None:
    """Class folders of JPEG files of many sizes; some are cut, empty or no images."""
    bad = set(drawn.sample(range(IMAGES), BAD))
    for number, (pixels, label) in enumerate(garments()):
        data = jpeg(pixels, drawn.randint(*_SIDES), drawn.randint(*_SIDES), drawn.randint(60, 95))
        if number in bad:
            data = drawn.choice([data[: len(data) // 2], b"", b"this is no image"])
        path = folder / f"class_{label}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def garments() -> Iterator[tuple[bytes, int]]:
    """The first images of the embedded Fashion-MNIST: 28 x 28 grey pixels, and the label."""
    files = resources.files("data_pipeline").joinpath("embedded/fashion_mnist")
    images, labels = (gzip.decompress((files / name).read_bytes())[head:] for name, head in _HEADS.items())
    for number in range(IMAGES):
        yield images[784 * number : 784 * (number + 1)], labels[number]


def jpeg(pixels: bytes, width: int, height: int, quality: int) -> bytes:
    """One of `garments` as a JPEG file of that size in pixels."""
    from PIL import Image

    image = Image.frombytes("L", (28, 28), pixels).resize((width, height))
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def write_tokenizer(folder: Path, seed: int) -> dict[str, Any]:
    """A tokenizer's export with weights drawn from the seed. Returns its config."""
    import torch

    from data_pipeline.shards.weights import write_weights
    from model.config import ImageFolderConfig, VectorConfig, ViTConfig
    from model.tokenizers.imagefolder import ImageFolderTokenizer

    vit = ViTConfig(width=64, depth=2, heads=2)
    config = ImageFolderConfig(
        image_size=32,
        patch_size=8,
        encoder=vit,
        decoder=vit,
        scales=(1, 2, 4),
        dropout_min_scales=1,
        quantizer=VectorConfig(codebook_size=64),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ImageFolderTokenizer(config)
    record = config.model_dump(mode="json")
    write_weights(str(folder), "tokenizer", record, {"model": network.state_dict()}, {})
    return record
