"""What the shards of a data set come to together: each key once, as many labels as are stated, all made the same way.

`verify` (verifying.py) gives it what was found in each shard (examining.py), in the order of the shards.
"""

from __future__ import annotations

import numpy as np

from data_pipeline.errors import CorruptShardError
from data_pipeline.shards.manifest import ImageManifest, ImageShardRecord, ShardRecord, TokenManifest, differences
from data_pipeline.shards.sample_index import INDEX_NAME
from data_pipeline.tools import examining
from data_pipeline.tools.checks import MOST_PROBLEMS, Problems
from data_pipeline.tools.comparing import Comparison
from data_pipeline.tools.examining import Findings
from data_pipeline.tools.index_rows import IndexCheck, IndexRows
from data_pipeline.tools.key_spool import KeySpool, Repeated

ONCE, AGAINST, QUARANTINE = "exactly once", "against images", "quarantine"
"""Checks that need all shards."""
_PLACES = 10
"""Shards that are listed of those that have a key."""

Manifest = ImageManifest | TokenManifest


class Survey:
    """What the shards come to together; takes them in their order, and keeps no more than their counts."""

    def __init__(
        self, uri: str, manifest: Manifest, keys: KeySpool, comparison: Comparison | None, quarantined: tuple[str, ...]
    ) -> None:
        self._manifest, self._keys, self._comparison = manifest, keys, comparison
        self._quarantined = np.array([key.encode() for key in quarantined], "S")
        self._problems = Problems()
        self._index: IndexCheck | None = None
        if isinstance(manifest, ImageManifest):
            try:
                self._index = IndexCheck(IndexRows.open(uri, manifest))
            except CorruptShardError as error:
                self._problems.add(INDEX_NAME, [str(error)])
        self._first: Findings | None = None
        """The first shard of tokens that says what made it."""
        self._starts: list[int] = []
        self._next = 0
        self.repeated = 0
        """Keys that are there more than once, where they may."""
        self.label_counts = np.zeros(len(manifest.classes), np.int64)
        """Samples of each class."""

    def add(self, shard: ShardRecord, found: Findings) -> None:
        """The next shard."""
        self._starts.append(self._keys.count)
        self._keys.add(found.key)
        for name, problems in found.problems.items():
            self._problems.add(name, problems)
        classes = len(self.label_counts)
        inside = found.label[(found.label >= 0) & (found.label < classes)]
        self.label_counts += np.bincount(inside, minlength=classes)
        if self._comparison:
            self._comparison.add(self._next, shard.samples, found.key, found.label)
        if self._index and isinstance(shard, ImageShardRecord):
            self._problems.add(INDEX_NAME, self._index.compare(shard, found.index))
        self._next += shard.samples
        self._add_made_by(found)
        for key in found.key[np.isin(found.key, self._quarantined)] if len(self._quarantined) else ():
            name = bytes(key).decode(errors="replace")
            self._problems.add(QUARANTINE, [f"sample {name} is quarantined and there all the same"])

    def finish(self) -> Problems:
        """What is wrong, after all shards."""
        repeated, more = self._keys.twice(MOST_PROBLEMS)
        if _may_repeat(self._manifest):
            self.repeated = len(repeated) + more
        else:
            self._problems.add(ONCE, map(self._describe, repeated), more)
        if self._comparison:
            self._problems.add(AGAINST, self._comparison.problems(self._keys, self._manifest.samples))
        return self._problems

    def _describe(self, repeated: Repeated) -> str:
        places = np.searchsorted(self._starts, repeated.numbers[:_PLACES], "right") - 1
        where = ", ".join(self._manifest.shards[int(place)].name for place in places)
        rest = ", ..." if repeated.times > len(places) else ""
        return f"sample {repeated.key.decode(errors='replace')} is there {repeated.times} times: {where}{rest}"

    def _add_made_by(self, found: Findings) -> None:
        """What the manifest does not state, such as the batch size, is still the same in all shards."""
        if not found.made_by:
            return
        self._first = self._first or found
        listed = differences(self._first.made_by, found.made_by)
        self._problems.add(examining.LINEAGE, [f"{self._first.shard} -> {found.shard}: {each}" for each in listed])


def _may_repeat(manifest: Manifest) -> bool:
    """Whether sets were put together that may hold the same images: `verify` of each says whether one has any twice."""
    edit = manifest.edit if isinstance(manifest, TokenManifest) else None
    return edit is not None and edit.operation in {"append", "mix"}
