"""Raw images to image shards: a plan, and what is done for one planned shard. Its driver may be killed at any time.

    1. plan_ingest: list the source (key, label, size of every image, no bytes), split it, order it, cut it into shards;
       listing and plan lie on storage, beside the output (planning.py)
    2. missing: the shards of the plan that are not committed yet (commits.py)
    3. write_shard: read the images of one shard, decode each to see that it is whole, commit the shard
    4. finish: quarantine.json and manifest.json of each split, from the shards' indexes

The plan is a pure function of the source and the config, and a shard's bytes are one of the plan and the source's
bytes: it does not matter which process writes it, how often, or in what order. One shard is held in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from data_pipeline import storage
from data_pipeline.config import DataConfig
from data_pipeline.errors import FoldtrainError, UsageError
from data_pipeline.ingest.commits import NAMED_BAD, Commits, too_many
from data_pipeline.ingest.finding import find_sources
from data_pipeline.ingest.planning import IngestPlan, ShardInputs, find_plan, plan_ingest, publish
from data_pipeline.ingest.screening import screen_items
from data_pipeline.ingest.shard_table import PlannedShard
from data_pipeline.shards.image_commits import ShardIndex
from data_pipeline.shards.image_shards import Quarantined, finish_images, holds_index, write_image_shard
from data_pipeline.shards.manifest import ImageManifest, ImageShardRecord
from data_pipeline.sources.source import name_some
from data_pipeline.text.counted import counted

QUARANTINE_NAME = "quarantine.json"

__all__ = [
    "Commits",
    "IngestPlan",
    "Ingested",
    "PlannedShard",
    "ShardInputs",
    "Written",
    "describe",
    "find_plan",
    "find_sources",
    "finish",
    "ingest",
    "look",
    "missing",
    "plan_ingest",
    "publish",
    "write_shard",
]

Progress = Callable[[int, int], None]
"""Called with (images done, images in all) after every committed shard."""


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
    commits = look(plan)
    left = commits.left()
    done = plan.total - sum(shard.images for shard in left)
    for shard in left:
        written = write_shard(plan.inputs, shard)
        done += shard.images
        progress(done, plan.total)
        commits.note(shard.number, written.bad, written.named)
        commits.check_bad()
    return finish(plan, commits).manifests


def look(plan: IngestPlan) -> Commits:
    """What is committed of a plan.

    Raises:
        UsageError: if the output holds another data set.
        FoldtrainError: if too many images of the committed shards are bad.
    """
    commits = Commits(plan)
    commits.look()
    commits.check_bad()
    return commits


def missing(plan: IngestPlan) -> list[PlannedShard]:
    """The shards that are not committed yet, in the plan's order; raises as `look`."""
    return look(plan).left()


@dataclass(frozen=True)
class Written:
    """A shard that was committed."""

    record: ImageShardRecord
    bad: int
    """How many of its images are bad."""
    named: tuple[Quarantined, ...]
    """The first few of them."""


def write_shard(
    inputs: ShardInputs, shard: PlannedShard, progress: Callable[[int], None] = lambda _images: None
) -> Written:
    """Commit a planned shard: its tar, then its index.

    Args:
        inputs: `plan.inputs`.
        shard: of `plan.shards`.
        progress: called with the number of images that were read and decoded since the last call.

    Returns:
        Its record, and what is bad. The driver tells `Commits.note` of it, and `Commits.check_bad` whether the run may
        go on.

    Raises:
        FoldtrainError: if more than `inputs.max_bad` images are bad in this shard alone.
    """
    samples, bad = screen_items(inputs.readers[shard.split], inputs.items(shard), progress)
    if len(bad) > inputs.max_bad:
        raise too_many(f"{shard.split}/{shard.name}", len(bad), bad, inputs.max_bad)
    record = write_image_shard(storage.join(inputs.output, shard.split), shard.name, samples, shard.plan, bad)
    return Written(record, len(bad), tuple(bad[:NAMED_BAD]))


@dataclass(frozen=True)
class Ingested:
    """What an ingest has come to."""

    manifests: dict[str, ImageManifest]
    """Of each split."""
    without_images: tuple[str, ...]
    """Classes of which there is nothing to train on."""


def finish(plan: IngestPlan, commits: Commits | None = None) -> Ingested:
    """Write quarantine.json of each split that has bad images, then its manifest.json, if they are not there already.

    A shard whose images are all bad is committed, but the manifest leaves it out.

    Args:
        plan: of which all is done.
        commits: what is known of its shards, if anything.

    Raises:
        FoldtrainError: if a shard is missing, or too many images are bad.
        UsageError: if the output holds another data set.
    """
    commits = commits or Commits(plan)
    commits.look()
    commits.check_bad()
    lost = commits.left()
    if lost:
        raise FoldtrainError(
            f"{plan.output}: {len(lost)} of {len(plan.shards)} shards are missing, the first is "
            f"{lost[0].split}/{lost[0].name}: run foldtrain ingest again"
        )
    manifests = {
        split: _kept_manifest(plan, split, commits) or _finish_split(plan, split, commits)
        for split in plan.shards.splits
    }
    return Ingested(manifests, _without_images(plan, commits))


def _without_images(plan: IngestPlan, commits: Commits) -> tuple[str, ...]:
    held = plan.label_counts.copy()
    planned = held[held > 0]
    if commits.bad("train") >= planned.min():  # fewer cannot empty a class
        held[:] = 0
        for commit in commits.read("train"):
            np.add.at(held, commit.content.label, 1)
    return tuple(plan.classes[label] for label in np.flatnonzero(held == 0).tolist())


def describe(plan: IngestPlan, ingested: Ingested) -> str:
    """What has become of all that the sources hold, in a line."""
    counts = {split: manifest.samples for split, manifest in ingested.manifests.items()}
    splits = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    aside = {split: manifest.quarantined for split, manifest in ingested.manifests.items() if manifest.quarantined}
    lists = " and ".join(storage.join(plan.output, split, QUARANTINE_NAME) for split in aside)
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in plan.skipped.items())
    parts = [
        counted(sum(counts.values()), "image") + (f" ({splits})" if len(counts) > 1 else ""),
        counted(len(plan.classes), "class", "classes"),
        f"{sum(aside.values()):,} set aside" + (f" (listed in {lists})" if lists else ""),
        f"skipped: {kinds or 'nothing'}",
    ]
    if empty := ingested.without_images:
        names = name_some(name if name.isprintable() else ascii(name) for name in empty)
        parts.append(f"{counted(len(empty), 'class', 'classes')} without an image to train on: {names}")
    return "; ".join(parts)


def _kept_manifest(plan: IngestPlan, split: str, commits: Commits) -> ImageManifest | None:
    """The manifest of a split, if it is there and says what the shards' indexes say."""
    uri = storage.join(plan.output, split)
    numbers = [number for number in plan.shards.of_split(split) if commits.images_left(number)]
    try:
        manifest = ImageManifest.read(uri)
        stated = (manifest.classes, manifest.split, manifest.quarantined, len(manifest.shards))
        is_kept = stated == (plan.classes, split, commits.bad(split), len(numbers)) and all(
            record.name == plan.shards[number].name and commits.agrees(number, record)
            for number, record in zip(numbers, manifest.shards, strict=True)
        )
        return manifest if is_kept and holds_index(uri, manifest) else None
    except UsageError:  # there is none, it is of another version, or it or what it names is damaged: it is written anew
        return None


def _finish_split(plan: IngestPlan, split: str, commits: Commits) -> ImageManifest:
    uri = storage.join(plan.output, split)

    def shards() -> Iterator[tuple[ImageShardRecord, ShardIndex]]:
        bad: list[Quarantined] = []
        for commit in commits.read(split):
            bad += commit.quarantined()
            if commit.record.samples:
                yield commit.record, commit.content
        if bad:
            storage.write_json(storage.join(uri, QUARANTINE_NAME), [image._asdict() for image in sorted(bad)])

    return finish_images(uri, shards(), classes=plan.classes, split=split, quarantined=commits.bad(split))
