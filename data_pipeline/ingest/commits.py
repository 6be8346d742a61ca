"""Which planned shards are committed, and what is known of them, by few and small requests.

    1. one listing of each split says which shards have an index, and how long their tars and indexes are
    2. of each that has one, the last bytes of the index say which plan it is of, and how long its tar must be: the
       columns before them are not read. An index that names bad images is read whole
    3. what is known is not asked for again; a listing later finds what was committed since

So a resume with N finished shards takes a listing (a request per 1,000 objects) and N small reads, in parallel.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, UsageError
from data_pipeline.ingest.planning import IngestPlan
from data_pipeline.ingest.shard_table import PlannedShard
from data_pipeline.shards.image_shards import Quarantined, ShardIndex, index_name, parse_index, shard_record
from data_pipeline.shards.manifest import ImageShardRecord
from data_pipeline.text import json_records

THREADS = 64
"""Small reads at a time: they wait for storage. 12,800 of them take 6 s where an answer takes 30 ms."""
WHOLE_THREADS = 8
"""Indexes that are read and parsed at a time; each is held as a whole."""
NAMED_BAD = 5
"""Bad images that an error names."""
TAIL_BYTES = 512
"""Enough for the last fields of an index without bad images."""

_TAIL = re.compile(rb', "plan": "([0-9a-f]{64})", "sha256": "([0-9a-f]{64})", "size": (\d{1,18})\}\n\Z')


class Commit(NamedTuple):
    """A shard that is complete."""

    record: ImageShardRecord
    content: ShardIndex
    """What its index says."""

    def quarantined(self) -> list[Quarantined]:
        """Images that are not in it."""
        return [Quarantined(**entry) for entry in self.content.quarantined]


class _Known(NamedTuple):
    """What the index of a complete shard says."""

    size: int
    """Bytes of its tar."""
    digest: bytes
    """sha256 of its tar."""
    bad: list[Quarantined]


class Commits:
    """The committed shards of a plan.

    Args:
        plan: what is to be committed.
    """

    def __init__(self, plan: IngestPlan) -> None:
        self._plan = plan
        count = len(plan.shards)
        self._is_committed: npt.NDArray[np.bool_] = np.zeros(count, np.bool_)
        self._bad: npt.NDArray[np.int64] = np.zeros(count, np.int64)
        self._bytes: npt.NDArray[np.int64] = np.full(count, -1, np.int64)
        """Of tars whose index was looked at."""
        self._sha256: npt.NDArray[np.void] = np.zeros(count, "V32")
        self._named: list[Quarantined] = []

    def look(self) -> None:
        """Find what was committed since the last look; a split of which all is known is not listed again.

        Raises:
            UsageError: if the output holds another data set.
            CorruptShardError: if an index is damaged.
        """
        for split in self._plan.shards.splits:
            numbers = self._plan.shards.of_split(split)
            if not self._is_committed[numbers.start : numbers.stop].all():
                self._look_at(numbers, storage.walk(storage.join(self._plan.output, split)))

    def _look_at(self, numbers: range, sizes: dict[str, int]) -> None:
        shards = (self._plan.shards[number] for number in numbers if not self._is_committed[number])
        unknown = (shard for shard in shards if index_name(shard.name) in sizes)
        with ThreadPoolExecutor(THREADS, thread_name_prefix="indexes") as pool:
            while some := list(islice(unknown, 16 * THREADS)):
                for shard, known in zip(some, pool.map(lambda shard: self._ask(shard, sizes), some), strict=True):
                    if known is not None:
                        self._keep(shard, known)

    def note(self, number: int, bad: int, named: Iterable[Quarantined]) -> None:
        """Keep what a process that committed a shard says of it.

        Args:
            number: of the shard.
            bad: how many of its images are bad.
            named: some of them.
        """
        self._is_committed[number], self._bad[number] = True, bad
        self._name(named)

    def left(self) -> list[PlannedShard]:
        """What is not committed, in the plan's order."""
        return [self._plan.shards[int(number)] for number in np.flatnonzero(~self._is_committed)]

    def bad(self, split: str | None = None) -> int:
        """Bad images in the committed shards of a split, or of all."""
        numbers = self._plan.shards.of_split(split) if split is not None else range(len(self._bad))
        return int(self._bad[numbers.start : numbers.stop].sum())

    def check_bad(self) -> None:
        """Is the number of bad images within the limit?

        Raises:
            UsageError: if not; it names some of them.
        """
        if self.bad() > self._plan.max_bad:
            raise too_many(self._plan.source, self.bad(), self._named, self._plan.max_bad)

    def agrees(self, number: int, record: ImageShardRecord) -> bool:
        """Whether a manifest's record of a shard says what its index, which was looked at, says."""
        images = int(self._plan.shards.images[number] - self._bad[number])
        said = (int(self._bytes[number]), self._sha256[number].tobytes().hex(), images)
        return said == (record.bytes, record.sha256, record.samples)

    def images_left(self, number: int) -> int:
        """Images of a committed shard that are not bad."""
        return int(self._plan.shards.images[number] - self._bad[number])

    def read(self, split: str) -> Iterator[Commit]:
        """All of a split's shards with their indexes as a whole, in order; a few are held at a time.

        Raises:
            UsageError: if one is of another data set.
            CorruptShardError: if one is damaged, or is gone since it was looked at.
        """
        uri = storage.join(self._plan.output, split)
        numbers = self._plan.shards.of_split(split)
        with ThreadPoolExecutor(WHOLE_THREADS, thread_name_prefix="indexes") as pool:
            for start in range(numbers.start, numbers.stop, 4 * WHOLE_THREADS):
                some = self._plan.shards[start : min(numbers.stop, start + 4 * WHOLE_THREADS)]
                yield from pool.map(lambda shard: _read_again(uri, shard), some)

    def _ask(self, shard: PlannedShard, sizes: dict[str, int]) -> _Known | None:
        """What the index of a shard says; None if it is not complete."""
        uri, name = storage.join(self._plan.output, shard.split), index_name(shard.name)
        start = max(0, sizes[name] - TAIL_BYTES)
        try:
            found = _TAIL.search(storage.read_range(storage.join(uri, name), start, sizes[name] - start))
            if found is None:
                return self._ask_whole(uri, shard, sizes.get(shard.name))
        except FileNotFoundError:
            return None
        plan, sha256, size = found.groups()
        _check_plan(uri, shard, plan.decode())
        return _Known(int(size), bytes.fromhex(sha256.decode()), []) if int(size) == sizes.get(shard.name) else None

    def _ask_whole(self, uri: str, shard: PlannedShard, size: int | None) -> _Known | None:
        commit = _read_commit(uri, shard)
        if commit.content.size != size:
            return None
        return _Known(commit.content.size, bytes.fromhex(commit.content.sha256), commit.quarantined())

    def _keep(self, shard: PlannedShard, known: _Known) -> None:
        self.note(shard.number, len(known.bad), known.bad)
        self._bytes[shard.number] = known.size
        self._sha256[shard.number] = np.void(known.digest)

    def _name(self, bad: Iterable[Quarantined]) -> None:
        self._named += list(bad)[: NAMED_BAD - len(self._named)]


def _read_commit(uri: str, shard: PlannedShard) -> Commit:
    path = storage.join(uri, index_name(shard.name))
    data = storage.read_bytes(path, json_records.MOST_BYTES)
    index = parse_index(path, data)
    _check_plan(uri, shard, index.plan)
    return Commit(shard_record(shard.name, index, data), index)


def _read_again(uri: str, shard: PlannedShard) -> Commit:
    try:
        return _read_commit(uri, shard)
    except FileNotFoundError:
        raise CorruptShardError(f"{uri}/{index_name(shard.name)} is gone: run foldtrain ingest again") from None


def _check_plan(uri: str, shard: PlannedShard, plan: str) -> None:
    if plan != shard.plan:
        raise UsageError(
            f"{uri} already holds another data set: {shard.name} was planned from another source, seed, "
            "validation_samples or shard size. Choose another data.images, or delete that folder"
        )


def too_many(where: str, bad: int, some: Iterable[Quarantined], most: int) -> UsageError:
    """More images are bad than may be."""
    named = "\n".join(f"  {image.source} (key {image.key}) {image.reason}" for image in list(some)[:NAMED_BAD])
    return UsageError(
        f"{where}: {bad} images are bad, but only {most} may be (data.max_bad_share):\n{named}\n"
        "Raise data.max_bad_share to leave them out and go on; or mend the source and ingest into another folder "
        "(another source is another data set)"
    )
