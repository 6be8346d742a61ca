"""Raw images to image shards: a plan, and what is done for one planned shard. Its driver may be killed at any time.

    1. plan_ingest: list the source (key, label, size of every image, no bytes), split it, order it, cut it into shards
    2. missing: the shards of the plan that are not committed yet
    3. write_shard: read the images of one shard, decode each to see that it is whole, commit the shard
    4. finish: quarantine.json and manifest.json of each split, from the shards' indexes

The plan is a pure function of the source and the config, and a shard's bytes are one of the plan and the source's
bytes: it does not matter which process writes it, how often, or in what order. One shard is held in memory at a time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction

from data_pipeline import storage
from data_pipeline.config import DataConfig
from data_pipeline.errors import FoldtrainError, UsageError
from data_pipeline.ingest.plan import PlannedShard, open_splits, plan_shards
from data_pipeline.ingest.screening import screen_items
from data_pipeline.shards.image_shards import (
    Quarantined,
    ShardIndex,
    index_name,
    parse_index,
    shard_record,
    write_image_shard,
)
from data_pipeline.shards.manifest import ImageManifest, ImageShardRecord
from data_pipeline.sources import ImageSource, ItemReader
from data_pipeline.sources.nesting import refuse_nesting
from data_pipeline.sources.source import name_some
from data_pipeline.text import json_records

QUARANTINE_NAME = "quarantine.json"
NAMED_BAD = 5
"""Bad images that an error names."""
THREADS = 16
"""Indexes that are read at a time."""

__all__ = [
    "IngestPlan",
    "Ingested",
    "PlannedShard",
    "check_quarantine",
    "describe",
    "finish",
    "ingest",
    "missing",
    "plan_ingest",
    "write_shard",
]

Progress = Callable[[int, int], None]
"""Called with (images done, images in all) after every committed shard."""


@dataclass(frozen=True)
class IngestPlan:
    """All that is to be done. It is plain data: it can be sent to any process."""

    output: str
    """URI of the folder of the splits."""
    classes: tuple[str, ...]
    """Class names by label."""
    source: str
    """Where the images come from, for messages."""
    shards: tuple[PlannedShard, ...]
    """The shards of all splits."""
    readers: dict[str, ItemReader]
    """By split: what reads its images."""
    max_bad: int
    """Most images, of all splits, that may be left out."""
    skipped: dict[str, int]
    """What lies in the sources and is no part of the data, by kind."""

    @property
    def total(self) -> int:
        """Images in all, good or bad."""
        return sum(len(shard.items) for shard in self.shards)


def plan_ingest(config: DataConfig, output_uri: str, seed: int) -> IngestPlan:
    """List the source and cut it into shards.

    Raises:
        UsageError: if the source is wrong, or the splits do not fit each other.
    """
    try:
        refuse_nesting(config, {"the folder of the image shards": output_uri})
    except ValueError as error:
        raise UsageError(str(error)) from None
    splits = open_splits(config)
    shards = [
        shard
        for split, (source, items) in splits.items()
        for shard in plan_shards(split, source, items, seed, config.shard_samples, config.shard_bytes)
    ]
    total = sum(len(shard.items) for shard in shards)
    return IngestPlan(
        output=storage.absolute(output_uri),
        classes=splits["train"][0].classes,
        source=" and ".join(dict.fromkeys(source.name for source, _ in splits.values())),
        shards=tuple(shards),
        readers={split: source.reader for split, (source, _) in splits.items()},
        max_bad=math.floor(Fraction(str(config.max_bad_share)) * total),
        skipped=_sum_skipped(source for source, _ in splits.values()),
    )


def _sum_skipped(sources: Iterable[ImageSource]) -> dict[str, int]:
    """Over all sources; both splits may be of the same."""
    counts: Counter[str] = Counter()
    for source in {id(source): source for source in sources}.values():
        counts.update(source.skipped)
    return dict(sorted(counts.items()))


def ingest(
    config: DataConfig, output_uri: str, seed: int, progress: Progress = lambda _done, _total: None
) -> dict[str, ImageManifest]:
    """Do all of it in this process: write `<output_uri>/train` and, if there is one, `<output_uri>/validation`.

    Returns:
        The manifest of each split.

    Raises:
        UsageError: if the source is wrong, or the output holds another data set.
        FoldtrainError: if too many images are bad.
    """
    plan = plan_ingest(config, output_uri, seed)
    left = missing(plan)
    done = plan.total - sum(len(shard.items) for shard in left)
    for shard in left:
        record = write_shard(plan.readers[shard.split], shard, plan.output, plan.max_bad)
        done += len(shard.items)
        progress(done, plan.total)
        if record.samples < len(shard.items):
            check_quarantine(plan)
    return finish(plan).manifests


def missing(plan: IngestPlan) -> list[PlannedShard]:
    """The shards that are not committed yet, in the plan's order.

    Raises:
        UsageError: if the output holds another data set.
        FoldtrainError: if too many images of the committed shards are bad.
    """
    found = _committed(plan)
    _check_bad(plan, found)
    return [shard for shard, index in zip(plan.shards, found, strict=True) if index is None]


def write_shard(
    reader: ItemReader,
    shard: PlannedShard,
    output: str,
    max_bad: int,
    progress: Callable[[int], None] = lambda _images: None,
) -> ImageShardRecord:
    """Commit a planned shard: its tar, then its index.

    Args:
        reader: `plan.readers[shard.split]`.
        shard: of `plan.shards`.
        output: `plan.output`.
        max_bad: `plan.max_bad`.
        progress: called with the number of images that were read and decoded since the last call.

    Returns:
        Its record; `len(shard.items) - record.samples` images are bad. If there are any, the driver asks
        `check_quarantine` whether the run may go on.

    Raises:
        FoldtrainError: if more than `max_bad` images are bad in this shard alone.
    """
    samples, bad = screen_items(reader, shard.items, progress)
    if len(bad) > max_bad:
        raise _too_many(f"{shard.split}/{shard.name}", bad, max_bad)
    return write_image_shard(storage.join(output, shard.split), shard.name, samples, shard.plan, bad)


def check_quarantine(plan: IngestPlan) -> None:
    """Is the number of bad images, in the shards that are committed, within the limit?

    Raises:
        FoldtrainError: if not; it names the first of them.
    """
    _check_bad(plan, _committed(plan))


@dataclass(frozen=True)
class Ingested:
    """What an ingest has come to."""

    manifests: dict[str, ImageManifest]
    """Of each split."""
    without_images: tuple[str, ...]
    """Classes of which there is nothing to train on."""


def finish(plan: IngestPlan) -> Ingested:
    """Write quarantine.json of each split that has bad images, then its manifest.json.

    A shard whose images are all bad is committed, but the manifest leaves it out.

    Raises:
        FoldtrainError: if a shard is missing, or too many images are bad.
        UsageError: if the output holds another data set.
    """
    found = _committed(plan)
    _check_bad(plan, found)
    lost = [shard for shard, index in zip(plan.shards, found, strict=True) if index is None]
    if lost:
        raise FoldtrainError(
            f"{plan.output}: {len(lost)} of {len(plan.shards)} shards are missing, the first is "
            f"{lost[0].split}/{lost[0].name}: run foldtrain ingest again"
        )
    manifests = {split: _finish_split(plan, split, found) for split in plan.readers}
    return Ingested(manifests, _without_images(plan, found))


def _without_images(plan: IngestPlan, found: Sequence[_Committed | None]) -> tuple[str, ...]:
    held: set[int] = set()
    for shard, entry in zip(plan.shards, found, strict=True):
        if shard.split == "train" and entry is not None:
            held.update(entry.index.label)
    return tuple(name for label, name in enumerate(plan.classes) if label not in held)


def describe(plan: IngestPlan, ingested: Ingested) -> str:
    """What has become of all that the sources hold, in a line."""
    counts = {split: manifest.samples for split, manifest in ingested.manifests.items()}
    splits = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    aside = {split: manifest.quarantined for split, manifest in ingested.manifests.items() if manifest.quarantined}
    lists = " and ".join(storage.join(plan.output, split, QUARANTINE_NAME) for split in aside)
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in plan.skipped.items())
    parts = [
        _counted(sum(counts.values()), "image", "images") + (f" ({splits})" if len(counts) > 1 else ""),
        _counted(len(plan.classes), "class", "classes"),
        f"{sum(aside.values()):,} set aside" + (f" (listed in {lists})" if lists else ""),
        f"skipped: {kinds or 'nothing'}",
    ]
    if empty := ingested.without_images:
        names = name_some(name if name.isprintable() else ascii(name) for name in empty)
        parts.append(f"{_counted(len(empty), 'class', 'classes')} without an image to train on: {names}")
    return "; ".join(parts)


def _counted(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _finish_split(plan: IngestPlan, split: str, found: Sequence[_Committed | None]) -> ImageManifest:
    uri = storage.join(plan.output, split)
    held = [
        entry for shard, entry in zip(plan.shards, found, strict=True) if shard.split == split and entry is not None
    ]
    bad = sorted(image for entry in held for image in entry.quarantined())
    records = tuple(entry.record for entry in held if entry.record.samples)
    if bad:
        storage.write_json(storage.join(uri, QUARANTINE_NAME), [image._asdict() for image in bad])
    manifest = ImageManifest.build(
        samples=sum(record.samples for record in records),
        classes=plan.classes,
        split=split,
        quarantined=len(bad),
        shards=records,
    )
    manifest.write(uri)
    return manifest


@dataclass(frozen=True)
class _Committed:
    """A shard that is complete."""

    record: ImageShardRecord
    index: ShardIndex

    def quarantined(self) -> list[Quarantined]:
        return [Quarantined(**entry) for entry in self.index.quarantined]


def _committed(plan: IngestPlan) -> list[_Committed | None]:
    """What there is of each shard of the plan; None for one that is not complete."""
    sizes = {split: storage.walk(storage.join(plan.output, split)) for split in plan.readers}

    def look(shard: PlannedShard) -> _Committed | None:
        there = sizes[shard.split]
        if index_name(shard.name) not in there:
            return None
        return _read_commit(storage.join(plan.output, shard.split), shard, there.get(shard.name))

    with ThreadPoolExecutor(THREADS, thread_name_prefix="indexes") as pool:
        return list(pool.map(look, plan.shards))


def _read_commit(uri: str, shard: PlannedShard, size: int | None) -> _Committed | None:
    path = storage.join(uri, index_name(shard.name))
    try:
        data = storage.read_bytes(path, json_records.MOST_BYTES)
    except FileNotFoundError:
        return None
    index = parse_index(path, data)
    if index.plan != shard.plan:
        raise UsageError(
            f"{uri} already holds another data set: {shard.name} was planned from another source, seed, "
            "validation_samples or shard size. Choose another data.images, or delete that folder"
        )
    return _Committed(shard_record(shard.name, index, data), index) if size == index.size else None


def _check_bad(plan: IngestPlan, found: Iterable[_Committed | None]) -> None:
    bad = [image for entry in found if entry is not None for image in entry.quarantined()]
    if len(bad) > plan.max_bad:
        raise _too_many(plan.source, bad, plan.max_bad)


def _too_many(where: str, bad: Sequence[Quarantined], max_bad: int) -> UsageError:
    named = "\n".join(f"  {image.source} (key {image.key}) {image.reason}" for image in bad[:NAMED_BAD])
    return UsageError(
        f"{where}: {len(bad)} images are bad, but only {max_bad} may be (data.max_bad_share):\n{named}\n"
        "Raise data.max_bad_share to leave them out and go on; or mend the source and ingest into another folder "
        "(another source is another data set)"
    )
