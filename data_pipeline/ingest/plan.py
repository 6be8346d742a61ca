"""Which image goes into which shard: pure functions of a source's listing, the config and the seed.

    1. split: validation is a source of its own, or the images whose keys hash lowest, whatever the seed
    2. order: each split is shuffled by a hash of seed and key, so that every shard holds all classes
    3. cut: the order becomes shards by number and bytes

Images that a source can only read together (a parquet row group) stay together: their blocks are shuffled in place of
the images, a shard is made of whole blocks, and its images are shuffled within it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from data_pipeline import storage
from data_pipeline.config import DataConfig
from data_pipeline.errors import UsageError
from data_pipeline.sources import ImageSource, RawItem, open_source


@dataclass(frozen=True)
class PlannedShard:
    """A shard before it is written."""

    split: str
    """train or validation."""
    name: str
    """File name of its tar."""
    items: tuple[RawItem, ...]
    """What is to be in it, in this order."""
    plan: str
    """sha256 of what is to be in it, from the source's listing alone."""


def open_splits(config: DataConfig) -> dict[str, tuple[ImageSource, Sequence[RawItem]]]:
    """The source and the images of each split that has any.

    Raises:
        UsageError: if a source is wrong, the splits do not fit each other, or nothing is left for training.
    """
    if config.validation_source is not None and config.validation_samples:
        raise UsageError(
            f"data.validation_samples is {config.validation_samples} and data.validation_source is set: validation "
            "images are held out of the training source, or are a source of their own. Set one of them to 0 or null"
        )
    if config.source is None:
        raise UsageError(
            "data.source is missing: ingest needs raw images. A stage that is to read image shards that are there "
            "already finds them by inputs.images"
        )
    train = open_source(config.source)
    if config.validation_source is None:
        held = split_items(train.items, config.validation_samples)
        return {split: (train, items) for split, items in held.items()}
    validation = open_source(config.validation_source)
    _check_same_classes(train, validation)
    return {"train": (train, train.items), "validation": (validation, validation.items)}


def _check_same_classes(train: ImageSource, validation: ImageSource) -> None:
    if train.classes == validation.classes:
        return
    difference = (
        [f"- {name}" for name in train.classes if name not in set(validation.classes)]
        + [f"+ {name}" for name in validation.classes if name not in set(train.classes)]
    )  # fmt: skip
    shown = ", ".join(difference[:10]) + (", ..." if len(difference) > 10 else "")
    raise UsageError(
        f"{validation.name} has other classes ({len(validation.classes)}) than {train.name} ({len(train.classes)}): "
        f"{shown or 'they are the same, in another order'}. Both splits need the same labels: see "
        "data.validation_source in the config"
    )


def split_items(items: Sequence[RawItem], validation_samples: int) -> dict[str, list[RawItem]]:
    """The items of each split that has any.

    Raises:
        UsageError: if nothing is left for training.
    """
    if validation_samples >= len(items):
        raise UsageError(
            f"data.validation_samples is {validation_samples}, but the source has {len(items)} images in all: lower it"
        )
    ordered = sorted(items, key=lambda item: hashlib.sha256(item.key.encode()).digest())
    splits = {"train": ordered[validation_samples:], "validation": ordered[:validation_samples]}
    return {name: held for name, held in splits.items() if held}


def shuffle_items(items: Iterable[RawItem], seed: int) -> list[RawItem]:
    """The items in the order of sha256("seed:key")."""
    return sorted(items, key=lambda item: _rank(seed, item.key))


def shuffle_blocks(items: Iterable[RawItem], seed: int) -> list[list[RawItem]]:
    """The items of each block, blocks in the order of a hash; an item that can be read alone is a block of its own."""
    blocks: dict[str, list[RawItem]] = {}
    for item in items:
        name = item.key if item.block < 0 else f"{item.part}#{item.block}"
        blocks.setdefault(name, []).append(item)
    return [blocks[name] for name in sorted(blocks, key=lambda name: _rank(seed, name))]


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def group_blocks(blocks: Iterable[list[RawItem]], shard_samples: int, shard_bytes: int) -> list[list[RawItem]]:
    """Consecutive blocks in groups of at most so many samples and bytes; a larger block is a group by itself."""
    groups: list[list[RawItem]] = []
    room = 0
    for block in blocks:
        size = sum(item.size for item in block)
        if not groups or len(groups[-1]) + len(block) > shard_samples or size > room:
            groups.append([])
            room = shard_bytes
        groups[-1] += block
        room -= size
    return groups


def plan_shards(
    split: str, source: ImageSource, items: Iterable[RawItem], seed: int, shard_samples: int, shard_bytes: int
) -> list[PlannedShard]:
    """The shards of a split.

    Args:
        split: its name.
        source: where its items come from.
        items: its images.
        seed: of the order.
        shard_samples: most images in a shard.
        shard_bytes: most bytes of images in a shard.
    """
    groups = group_blocks(shuffle_blocks(items, seed), shard_samples, shard_bytes)
    identity = source.identity()
    planned = []
    for number, group in enumerate(groups):
        name, held = f"images-{number:05d}.tar", shuffle_items(group, seed)
        content = [[item.key, item.label, item.size] for item in held]
        planned.append(PlannedShard(split, name, tuple(held), storage.fingerprint([identity, name, content])))
    return planned
