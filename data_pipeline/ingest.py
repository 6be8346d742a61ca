"""Raw images to image shards, in five steps.

    1. list the source: key, label and size of every image, no bytes
    2. split: validation gets the images whose keys hash lowest, whatever the seed
    3. order: each split is shuffled by a hash of seed and key, so that every shard holds all classes
    4. plan: cut the order into shards by number and bytes
    5. write: read the images of one shard, commit it, go on; manifest.json comes last

Steps 1 to 4 are pure functions of the source and the config. So a run that was interrupted finds the same plan, keeps
the shards that are there, and ends in the same bytes. One shard is held in memory at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data_pipeline import storage
from data_pipeline.config import DataConfig
from data_pipeline.errors import UsageError
from data_pipeline.image_shards import (
    ImageSample,
    index_name,
    parse_index,
    shard_record,
    write_image_shard,
)
from data_pipeline.manifest import ImageManifest, ImageShardRecord
from data_pipeline.sources import ImageSource, RawItem, image_extension, open_source

Progress = Callable[[int, int], None]
"""Called with (samples done, samples in all) after every committed shard."""


@dataclass(frozen=True)
class PlannedShard:
    """A shard before it is written."""

    name: str
    items: tuple[RawItem, ...]

    def fingerprint(self, source: ImageSource) -> str:
        """sha256 of what is to be in it, from the source's listing alone."""
        return storage.fingerprint(
            [source.identity(), self.name, [[item.key, item.label, item.size] for item in self.items]]
        )


def ingest(
    config: DataConfig, output_uri: str, seed: int, progress: Progress = lambda _done, _total: None
) -> dict[str, ImageManifest]:
    """Write `<output_uri>/train` and, if the config asks for it, `<output_uri>/validation`. Returns their manifests.

    Raises:
        UsageError: if the source is wrong, or the output holds another data set.
    """
    source = open_source(config.source)
    splits = split_items(source.items, config.validation_samples)
    total, done = len(source.items), 0
    manifests = {}
    for split, items in splits.items():
        uri = storage.join(output_uri, split)
        records = []
        for shard in plan_shards(shuffle_items(items, seed), config.shard_samples, config.shard_bytes):
            records.append(write_shard(source, shard, uri))
            done += len(shard.items)
            progress(done, total)
        manifests[split] = ImageManifest.build(
            samples=len(items), classes=source.classes, split=split, shards=tuple(records)
        )
        manifests[split].write(uri)
    return manifests


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


def shuffle_items(items: Sequence[RawItem], seed: int) -> list[RawItem]:
    """The items in the order of sha256("seed:key")."""
    return sorted(items, key=lambda item: hashlib.sha256(f"{seed}:{item.key}".encode()).digest())


def plan_shards(items: Sequence[RawItem], shard_samples: int, shard_bytes: int) -> list[PlannedShard]:
    """Consecutive items in shards of at most so many samples and bytes; a larger image has a shard to itself."""
    groups: list[list[RawItem]] = []
    room = 0
    for item in items:
        if not groups or len(groups[-1]) == shard_samples or item.size > room:
            groups.append([])
            room = shard_bytes
        groups[-1].append(item)
        room -= item.size
    return [PlannedShard(f"images-{number:05d}.tar", tuple(group)) for number, group in enumerate(groups)]


def write_shard(source: ImageSource, shard: PlannedShard, uri: str) -> ImageShardRecord:
    """Commit a planned shard, unless it is there already.

    Raises:
        UsageError: if another data set is there, or an image is empty or none.
    """
    plan = shard.fingerprint(source)
    found = _committed(shard, uri, plan)
    if found is not None:
        return found
    samples = (_read_sample(source, item) for item in shard.items)
    return write_image_shard(uri, shard.name, samples, plan)


def _read_sample(source: ImageSource, item: RawItem) -> ImageSample:
    data = source.read(item)
    return ImageSample(item.key, item.label, image_extension(data, source.name, item), data)


def _committed(shard: PlannedShard, uri: str, plan: str) -> ImageShardRecord | None:
    """The record of a shard that is complete, or None."""
    path = storage.join(uri, index_name(shard.name))
    try:
        data = storage.read_bytes(path)
        size = storage.size(storage.join(uri, shard.name))
    except FileNotFoundError:
        return None
    index = parse_index(path, data)
    if index.plan != plan:
        raise UsageError(
            f"{uri} already holds another data set: {shard.name} was planned from another source, seed, "
            "validation_samples or shard size. Choose another data.images, or delete that folder"
        )
    return shard_record(shard.name, index, data) if size == index.size else None
