"""What the tests of the data pipeline make their small data sets with."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_pipeline.config import DataConfig
from data_pipeline.shards.image_shards import ImageShards
from data_pipeline.shards.manifest import TokenizerRecord, TokenManifest
from data_pipeline.shards.token_shards import TokenBlock, write_token_shard
from data_pipeline.shards.weights import Card
from data_pipeline.tokens.tokenizing import TokenPlan, finish, missing, tokenize_shard
from model.config import ImageFolderConfig, VectorConfig
from model.layout import TokenLayout

TOKENIZER = ImageFolderConfig(
    image_size=16, patch_size=4, scales=(1, 2, 4), quantizer=VectorConfig(codebook_size=64, code_dim=8)
)


def jpeg(seed: int, width: int = 20, height: int = 24) -> bytes:
    """A smooth colour picture."""
    corners = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


def write_photos(folder: Path, classes: int = 2, per_class: int = 10) -> Path:
    """A class-per-folder tree of JPEG files."""
    for label in range(classes):
        for number in range(per_class):
            path = folder / f"class{label}" / f"photo {number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(label * per_class + number))
    return folder


def encode(image_BCHW: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """A tokenizer that takes no time: tokens that depend on every pixel of their own image alone."""
    layout = TOKENIZER.layout
    pixels = ((image_BCHW + 1) * 127.5).round().astype(np.int64).reshape(len(image_BCHW), -1)
    weights = np.arange(pixels.shape[1])[:, None] * np.arange(1, layout.positions * layout.folds + 1)
    tokens = (pixels @ (weights % 61)) % layout.vocabulary()
    return tokens.reshape(-1, layout.positions, layout.folds).astype(np.uint16)


def tokenizer_card(weights: str = "a" * 64) -> Card:
    """The card of a tokenizer, without its weights."""
    return Card("tokenizer", TOKENIZER.model_dump(mode="json"), {"model": weights}, {})


def tokenize_all(plan: TokenPlan) -> None:
    """What a driver does, in this process."""
    images = ImageShards(plan.images)
    for shard in missing(plan):
        tokenize_shard(plan, shard, images, encode)
    finish(plan)


def write_tokens(
    folder: Path,
    sizes: Sequence[int],
    views: tuple[str, ...] = ("center",),
    layout: TokenLayout = TOKENIZER.layout,
    classes: tuple[str, ...] = ("cat", "dog"),
    prefix: str = "sample",
    **fields: Any,
) -> str:
    """A token set with shards of these sizes; each token, key and class follows from the sample's number and `prefix`.

    Keys are as long as their number asks for, so that they are not as wide in each shard.
    """
    rng, start, shards = np.random.default_rng(len(prefix)), 0, []
    for number, size in enumerate(sizes):
        shape = (size, len(views), layout.positions, layout.folds)
        tokens = rng.integers(0, layout.vocabularies, shape).astype(layout.dtype)
        numbers = range(start, start + size)
        keys = np.array([f"{prefix}/{number * 'x'}{each}".encode() for each in numbers] or [b""], "S")[:size]
        block = TokenBlock(tokens, np.array([each % len(classes) for each in numbers], np.int32), keys)
        made_by = {
            "layout": layout.to_json(),
            "views": list(views),
            "image_size": 16,
            "fit": "crop",
            "source": "d" * 64,
        }
        meta = made_by | {"tokenizer": TokenizerRecord(encoder="e" * 64, config={}).model_dump(mode="json")} | fields
        shards.append(write_token_shard(str(folder), f"tokens-{number:05d}.tar", block, meta))
        start += size
    manifest = TokenManifest.build(
        samples=start,
        classes=classes,
        layout=layout,
        views=views,
        **{
            "image_size": 16,
            "fit": "crop",
            "tokenizer": TokenizerRecord(encoder="e" * 64, config={}),
            "source": "d" * 64,
            "software": {},
        }
        | fields,
        shards=tuple(shards),
    )
    manifest.write(str(folder))
    return str(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def data_sets(folder: Path) -> dict[str, bytes]:
    """Every file of the splits below a folder, without the listings and plans that they were made by."""
    return {name: data for name, data in contents(folder).items() if name.split("/")[0] not in {"listing", "plan"}}


def flip_byte(path: Path, offset: int) -> None:
    """Damage a file without changing its size."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 0xFF
    path.write_bytes(data)


@dataclass(frozen=True)
class Images:
    """Twenty pictures of two classes in three shards."""

    uri: str
    config: DataConfig

    @property
    def folder(self) -> Path:
        return Path(self.uri)
