"""Which image goes into which shard: pure functions of a source's listing, the config and the seed.

    1. split: validation is a source of its own, or the images whose keys hash lowest, whatever the seed
    2. order: each split is shuffled by a hash of seed and key, so that every shard holds all classes
    3. cut: the order becomes shards by number and bytes

Images that a source can only read together (a parquet row group) stay together: their blocks are shuffled in place of
the images, a shard is made of whole blocks, and its images are shuffled within it. Everything here goes through tables
of some ten thousand images, of which a few are in memory at a time (external_sort.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline import storage
from data_pipeline.ingest.external_sort import HIGH, LOW, Digests, ExternalSort, digests
from data_pipeline.ingest.item_files import to_items, to_table
from data_pipeline.sources import RawItem
from data_pipeline.sources.source import prefixed

if TYPE_CHECKING:
    import pyarrow as pa

Tables = Callable[[], Iterable["pa.Table"]]
"""Goes through a listing from its start."""
MOST_TWINS = 10_000
"""Keys that occur twice of which so many are looked at to name the first."""


class Keys(NamedTuple):
    """What is known of all keys of a listing."""

    twins: frozenset[bytes]
    """Digests of keys that occur more than once; some of them if there are very many."""
    shared: bool
    """Whether a key occurs in two parts."""
    limit: bytes
    """The lowest digest of a key that is not held out; empty if none is held out."""


def examine_keys(tables: Tables, rows: int, held_out: int) -> Keys:
    """Sort all keys by their digests.

    Args:
        tables: of the listing.
        rows: of it.
        held_out: images that are held out, less than rows.
    """
    import pyarrow as pa

    twins: set[bytes] = set()
    shared, limit, seen = False, b"", 0
    with ExternalSort(rows) as sorter:
        for table in tables():
            sorter.add(pa.table({"part": _part_digests(table)}), digests(table.column("key").to_pylist()))
        for table in sorter.sorted():
            found = _digests_of(table)
            equal = np.flatnonzero((found[1:] == found[:-1]).all(axis=1))
            parts = table.column("part").to_numpy()
            shared = shared or bool((parts[equal] != parts[equal + 1]).any())
            twins.update(_bytes(found[number]) for number in equal[: max(0, MOST_TWINS - len(twins))])
            if held_out and seen <= held_out < seen + len(found):
                limit = _bytes(found[held_out - seen])
            seen += len(found)
    return Keys(frozenset(twins), shared, limit)


def _part_digests(table: pa.Table) -> npt.NDArray[np.uint64]:
    """What tells an image's part from others; a table has few of them."""
    parts = table.column("part").combine_chunks().dictionary_encode()
    found: npt.NDArray[np.uint64] = digests(parts.dictionary.to_pylist())[parts.indices.to_numpy(), 0]
    return found


def _digests_of(table: pa.Table) -> Digests:
    return np.stack([table.column(HIGH).to_numpy(), table.column(LOW).to_numpy()], axis=1)


def _bytes(digest: npt.NDArray[np.uint64]) -> bytes:
    return digest.astype(">u8").tobytes()


def with_prefixes(table: pa.Table) -> pa.Table:
    """The images with keys that begin with the names of their tars."""
    return to_table([prefixed(item) for item in to_items(table)])


def find_twins(tables: Tables, keys: Keys) -> tuple[RawItem, RawItem]:
    """The first two images, by key and name, that have the same key."""
    found: list[RawItem] = []
    for table in tables():
        sums = digests(table.column("key").to_pylist())
        rows = [number for number, digest in enumerate(sums) if _bytes(digest) in keys.twins]
        found += to_items(table.take(np.array(rows, np.int64)))
    found.sort()
    return next((one, other) for one, other in pairwise(found) if one.key == other.key)


def held_out_rows(table: pa.Table, limit: bytes) -> npt.NDArray[np.bool_]:
    """Which images are held out, if it is those whose keys' digests lie below a limit."""
    high, low = np.frombuffer(limit, ">u8").astype(np.uint64)
    found = digests(table.column("key").to_pylist())
    below: npt.NDArray[np.bool_] = (found[:, 0] < high) | ((found[:, 0] == high) & (found[:, 1] < low))
    return below


def ranks(table: pa.Table, seed: int) -> Digests:
    """Where each image comes in the order: by a hash of seed and key, or of seed and block."""
    names = table.column("key").to_pylist()
    blocks = table.column("block").to_numpy()
    if (blocks >= 0).any():
        parts = table.column("part").to_pylist()
        names = [key if block < 0 else f"{part}#{block}" for key, part, block in zip(names, parts, blocks, strict=True)]
    return digests(f"{seed}:{name}" for name in names)


def cut_shards(tables: Iterable[pa.Table], seed: int, shard_samples: int, shard_bytes: int) -> Iterator[pa.Table]:
    """The images of one shard after another: consecutive blocks, at most so many samples and bytes.

    An image that can be read alone is a block of its own; a larger block is a shard by itself.

    Args:
        tables: the images by rank (`ExternalSort.sorted`), blocks in one piece.
        seed: of the order within a shard that has blocks.
        shard_samples: most images in a shard.
        shard_bytes: most bytes of images in a shard.
    """
    held: list[pa.Table] = []
    rows, room = 0, shard_bytes
    for table in tables:
        starts = _block_starts(table)
        counts = np.diff([*starts, table.num_rows]).tolist()
        sizes = np.add.reduceat(table.column("size").to_numpy(), starts).tolist()
        begin = stop = 0
        for count, size in zip(counts, sizes, strict=True):
            if rows and (rows + count > shard_samples or size > room):
                yield _in_order([*held, table.slice(begin, stop - begin)], seed)
                held, begin, rows, room = [], stop, 0, shard_bytes
            rows, room, stop = rows + count, room - size, stop + count
        held.append(table.slice(begin))
    if rows:
        yield _in_order(held, seed)


def _block_starts(table: pa.Table) -> npt.NDArray[np.int64]:
    found = _digests_of(table)
    return np.flatnonzero(np.r_[True, (found[1:] != found[:-1]).any(axis=1)])


def _in_order(pieces: Sequence[pa.Table], seed: int) -> pa.Table:
    """One shard's images, by the hash of seed and key."""
    import pyarrow as pa

    table = pa.concat_tables(pieces).drop_columns([HIGH, LOW])
    if (table.column("block").to_numpy() < 0).all():
        return table
    found = digests(f"{seed}:{key}" for key in table.column("key").to_pylist())
    return table.take(np.lexsort((found[:, 1], found[:, 0])))


def fingerprint_shard(identity: Any, name: str, items: Iterable[tuple[str, int, int]]) -> str:
    """sha256 of what is to be in a shard, from the source's listing alone.

    It is `storage.fingerprint([identity, name, [[key, label, size], ...]])`, spelled here since that takes six times
    as long.

    Args:
        identity: of the source.
        name: of the shard.
        items: key, label and size of each image, of which there are some.
    """
    spell = json.JSONEncoder(ensure_ascii=False).encode
    rows = ",\n".join([f"  [\n   {spell(key)},\n   {label},\n   {size}\n  ]" for key, label, size in items])
    head = storage.canonical_json([identity, name]).decode().removesuffix("\n]\n")
    return storage.sha256(f"{head},\n [\n{rows}\n ]\n]\n".encode())
