"""A plan on storage: which images are in which shard, for any process that is told where it lies.

    <output>/plan/<key>/part-00000.parquet ...   the images in the order of the shards; a shard is a row group
    <output>/plan/<key>/shards.bin               of each shard: split, images, where its rows lie, fingerprint
    <output>/plan/<key>/plan.json                what it is a plan of; written last

The key is a digest of the stamps of the sources and of all that the plan depends on, so another config or source has
another plan. Without plan.json there is none, and it is made from the start: whoever is killed meanwhile loses time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from data_pipeline import storage
from data_pipeline.config import DataConfig
from data_pipeline.errors import CorruptShardError, UsageError
from data_pipeline.ingest.external_sort import ExternalSort
from data_pipeline.ingest.finding import Sources, find_sources
from data_pipeline.ingest.item_files import ItemWriter, read_place
from data_pipeline.ingest.listing import STAMP_CHARACTERS, Listing, keep_listing
from data_pipeline.ingest.plan import (
    cut_shards,
    examine_keys,
    find_twins,
    fingerprint_shard,
    held_out_rows,
    ranks,
    with_prefixes,
)
from data_pipeline.ingest.shard_table import PlannedShard, ShardRows, ShardTable
from data_pipeline.shards.manifest import first_problem
from data_pipeline.sources import ItemReader, RawItem
from data_pipeline.sources.skipped import add_counts
from data_pipeline.text.names import ClassName, Count, Sha256

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = "plan"
NAME, SHARDS = "plan.json", "shards.bin"
MOST_SHARDS_BYTES = 2**32
"""Largest table of shards that is read: of 60 million."""
_SPLITS = ("train", "validation")


class PlanRecord(BaseModel):
    """plan.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    key: Sha256
    """Of all that the plan depends on."""
    classes: tuple[ClassName, ...]
    """Class names by label."""
    splits: tuple[str, ...]
    """Those that have images: train, and validation where there is one."""
    identities: dict[str, Any]
    """By split: `Facts.identity` of its source."""
    label_counts: tuple[Count, ...]
    """Images of each class that are planned for training."""
    skipped: dict[str, Count]
    """What lies in the sources and is no part of the data, by kind."""
    shards: Count
    """How many there are."""
    shards_sha256: Sha256
    """Digest of shards.bin."""


@dataclass(frozen=True)
class ShardInputs:
    """What a process needs to make planned shards, besides their places: a few hundred bytes, whatever the plan."""

    plan: str
    """URI of the folder of the plan."""
    output: str
    """URI of the folder of the splits."""
    readers: dict[str, ItemReader]
    """By split: what reads its images."""
    identities: dict[str, Any]
    """By split: `Facts.identity` of its source."""
    max_bad: int
    """Most images, of all splits, that may be left out."""

    def items(self, shard: PlannedShard) -> list[RawItem]:
        """The images that are to be in a shard, in this order.

        Raises:
            CorruptShardError: if the plan on storage is not the one that the shard comes from.
        """
        items = read_place(self.plan, shard.place)
        rows = [(item.key, item.label, item.size) for item in items]
        if fingerprint_shard(self.identities[shard.split], shard.name, rows) != shard.plan or any(
            ".." in item.part.split("/") or item.part.startswith("/") for item in items
        ):
            raise CorruptShardError(
                f"{self.plan}: the plan of {shard.split}/{shard.name} was changed: delete that folder and run "
                "foldtrain ingest again, which makes it anew"
            )
        return items


@dataclass(frozen=True)
class IngestPlan:
    """All that is to be done. Its images are on storage; what is here takes some tens of bytes a shard."""

    inputs: ShardInputs
    """For those who make the shards."""
    classes: tuple[str, ...]
    """Class names by label."""
    source: str
    """Where the images come from, for messages."""
    shards: ShardTable
    """The shards of all splits."""
    label_counts: npt.NDArray[np.int64]
    """Images of each class that are planned for training."""
    skipped: dict[str, int]
    """What lies in the sources and is no part of the data, by kind."""

    @property
    def output(self) -> str:
        """URI of the folder of the splits."""
        return self.inputs.output

    @property
    def max_bad(self) -> int:
        """Most images, of all splits, that may be left out."""
        return self.inputs.max_bad

    @property
    def total(self) -> int:
        """Images in all, good or bad."""
        return int(self.shards.images.sum())

    def items(self, shard: PlannedShard) -> list[RawItem]:
        """The images that are to be in a shard, in this order; read from storage."""
        return self.inputs.items(shard)


def find_plan(config: DataConfig, output_uri: str, seed: int, sources: Sources | None = None) -> IngestPlan | None:
    """The plan, if it is on storage already; nothing is written.

    Args:
        config: of the data.
        output_uri: the folder of the splits.
        seed: of the order.
        sources: as `find_sources` found them just now.

    Raises:
        UsageError: if a source is not there, or the config does not fit.
        CorruptShardError: if what is on storage is damaged.
    """
    output = storage.absolute(output_uri)
    sources = sources or find_sources(config, output_uri, seed)
    folder = plan_folder(output, sources.key)
    record = _read_record(storage.join(folder, NAME), sources.key)
    if record is None:
        return None
    return _open(config, output, sources, record, _read_shards(storage.join(folder, SHARDS), record), output)


def plan_ingest(
    config: DataConfig,
    output_uri: str,
    seed: int,
    require: Callable[[], object] = lambda: None,
    sources: Sources | None = None,
    place: str | None = None,
) -> IngestPlan:
    """The plan: the one on storage, or else a new one, from the sources' listings.

    Args:
        config: of the data.
        output_uri: the folder of the splits; listing/ and plan/ lie in it, too.
        seed: of the order.
        require: called before each write; raises if this process may not write any more.
        sources: as `find_sources` found them just now.
        place: another folder for listing/ and plan/, where nothing is to be written to the output yet.

    Raises:
        UsageError: if a source is wrong, the splits do not fit each other, or nothing is left for training.
    """
    output = storage.absolute(output_uri)
    sources = sources or find_sources(config, output_uri, seed)
    found = find_plan(config, output_uri, seed, sources)
    if found is not None:
        return found
    place = place or output
    kept = {
        split: keep_listing(source, sources.stamps[split], output, place, require)
        for split, source in sources.by_split.items()
    }
    listings = {split: listing for split, (listing, _) in kept.items()}
    if "validation" in listings:
        _check_same_classes(sources, listings)
    writer = _PlanWriter(config, place, sources.key, seed, require)
    for split, (listing, base) in kept.items():
        writer.add(split, sources.by_split[split].name, listing, base)
    record, shards = writer.finish(listings)
    return _open(config, output, sources, record, shards, place)


def publish(place: str, output: str, require: Callable[[], object]) -> None:
    """Put what `plan_ingest` wrote to another place where it belongs; the files that say "complete" last.

    Args:
        place: a folder of this machine.
        output: URI of the folder of the splits.
        require: called before each write; raises if this process may not write any more.
    """
    for name in sorted(storage.walk(place), key=lambda name: (name.endswith(".json"), name)):
        require()
        storage.write_bytes(storage.join(output, name), storage.read_bytes(storage.join(place, name)))


def plan_folder(output: str, key: str) -> str:
    """Where the plan with a key lies."""
    return storage.join(output, FOLDER, key[:STAMP_CHARACTERS])


def _open(
    config: DataConfig, output: str, sources: Sources, record: PlanRecord, shards: ShardTable, place: str
) -> IngestPlan:
    by_split = sources.by_split
    readers = {split: by_split.get(split, by_split["train"]).reader for split in record.splits}
    max_bad = math.floor(Fraction(str(config.max_bad_share)) * int(shards.images.sum()))
    inputs = ShardInputs(plan_folder(place, record.key), output, readers, record.identities, max_bad)
    source = " and ".join(dict.fromkeys(source.name for source in by_split.values()))
    counts = np.array(record.label_counts, np.int64)
    return IngestPlan(inputs, record.classes, source, shards, counts, dict(record.skipped))


def _check_same_classes(sources: Sources, listings: dict[str, Listing]) -> None:
    train, validation = (listings[split].classes for split in _SPLITS)
    if train == validation:
        return
    one, other = (sources.by_split[split].name for split in _SPLITS)
    difference = (
        [f"- {name}" for name in train if name not in set(validation)]
        + [f"+ {name}" for name in validation if name not in set(train)]
    )  # fmt: skip
    shown = ", ".join(difference[:10]) + (", ..." if len(difference) > 10 else "")
    raise UsageError(
        f"{other} has other classes ({len(validation)}) than {one} ({len(train)}): "
        f"{shown or 'they are the same, in another order'}. Both splits need the same labels: see "
        "data.validation_source in the config"
    )


class _PlanWriter:
    """Writes a plan, split after split."""

    def __init__(self, config: DataConfig, place: str, key: str, seed: int, require: Callable[[], object]) -> None:
        self._config, self._key, self._seed, self._require = config, key, seed, require
        self._folder = plan_folder(place, key)
        self._rows = ItemWriter(self._folder, require)
        self._shards = ShardRows()
        self._counts: npt.NDArray[np.int64] = np.zeros(0, np.int64)

    def add(self, split: str, name: str, listing: Listing, base: str) -> None:
        """Plan the images of a listing: for a split, or, where some are held out of it, for both.

        Raises:
            UsageError: if two have the same key, or nothing is left for training.
        """
        import pyarrow as pa

        held_out = self._config.validation_samples if split == "train" else 0
        if held_out >= listing.rows:
            raise UsageError(
                f"data.validation_samples is {held_out}, but the source has {listing.rows} images in all: lower it"
            )
        tables, limit = _checked(name, listing, base, held_out)
        if not held_out:
            with ExternalSort(listing.rows) as whole:
                for table in tables():
                    whole.add(table, ranks(table, self._seed))
                self._cut(split, listing, whole.sorted())
            return
        with ExternalSort(listing.rows - held_out) as train, ExternalSort(held_out) as validation:
            for table in tables():
                is_held_out = held_out_rows(table, limit)
                for sorter, mask in ((train, ~is_held_out), (validation, is_held_out)):
                    mine = table.filter(pa.array(mask))
                    sorter.add(mine, ranks(mine, self._seed))
            self._cut("train", listing, train.sorted())
            self._cut("validation", listing, validation.sorted())

    def _cut(self, split: str, listing: Listing, tables: Iterator[pa.Table]) -> None:
        counts = np.zeros(len(listing.classes), np.int64)
        shards = cut_shards(tables, self._seed, self._config.shard_samples, self._config.shard_bytes)
        for number, table in enumerate(shards):
            keys, labels, sizes = (table.column(name).to_pylist() for name in ("key", "label", "size"))
            name = f"images-{number:05d}.tar"
            plan = fingerprint_shard(listing.identity, name, zip(keys, labels, sizes, strict=True))
            self._shards.add(split, table.num_rows, self._rows.add(table), plan)
            counts += np.bincount(labels, minlength=len(counts))
        if split == "train":
            self._counts = counts

    def finish(self, listings: dict[str, Listing]) -> tuple[PlanRecord, ShardTable]:
        """Write what is left, and plan.json as the last."""
        self._rows.close()
        shards = self._shards.table()
        data = shards.encode()
        record = PlanRecord(
            key=self._key,
            classes=listings["train"].classes,
            splits=shards.splits,
            identities={split: listings.get(split, listings["train"]).identity for split in shards.splits},
            label_counts=tuple(self._counts.tolist()),
            skipped=add_counts(listing.skipped for listing in listings.values()),
            shards=len(shards),
            shards_sha256=storage.sha256(data),
        )
        self._require()
        storage.write_bytes(storage.join(self._folder, SHARDS), data)
        storage.write_json(storage.join(self._folder, NAME), record.model_dump(mode="json"))
        return record, shards


def _checked(name: str, listing: Listing, output: str, held_out: int) -> tuple[Callable[[], Iterator[pa.Table]], bytes]:
    """The images of a listing, once it is known that no two have the same key; and what is held out of them."""

    def plain() -> Iterator[pa.Table]:
        return listing.tables(output)

    def with_parts() -> Iterator[pa.Table]:
        return (with_prefixes(table) for table in listing.tables(output))

    tables = plain
    keys = examine_keys(lambda: listing.tables(output, ["key", "part"]), listing.rows, held_out)
    if listing.prefixes and keys.shared:
        tables = with_parts
        keys = examine_keys(tables, listing.rows, held_out)
    if keys.twins:
        one, other = find_twins(tables, keys)
        raise UsageError(f"{name}: {one.name} and {other.name} would both have the key {one.key}: rename one")
    return tables, keys.limit


def _read_record(path: str, key: str) -> PlanRecord | None:
    try:
        record = PlanRecord.model_validate(storage.read_json(path))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise _damaged(path, first_problem(error)) from None
    if record.key != key or set(record.identities) != set(record.splits) or record.splits not in (_SPLITS, _SPLITS[:1]):
        raise _damaged(path, "it is of another config")
    return record


def _read_shards(path: str, record: PlanRecord) -> ShardTable:
    try:
        data = storage.read_bytes(path, MOST_SHARDS_BYTES)
    except FileNotFoundError:
        raise _damaged(path, "it is missing") from None
    if storage.sha256(data) != record.shards_sha256:
        raise _damaged(path, "sha256 differs")
    try:
        return ShardTable.decode(record.splits, record.shards, data)
    except ValueError as error:
        raise _damaged(path, str(error)) from None


def _damaged(path: str, reason: str) -> CorruptShardError:
    return CorruptShardError(
        f"{path} is damaged ({reason}): delete {path.rpartition('/')[0]} and run foldtrain ingest again, which makes "
        "it anew"
    )
