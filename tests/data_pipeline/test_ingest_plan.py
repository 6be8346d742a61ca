"""Which image goes into which shard: each into exactly one, blocks stay whole, limits are kept.

What is asked for is spelled out in plain Python (`expected`); the plan goes through sorted tables and a file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import storage
from data_pipeline.ingest.external_sort import ExternalSort, digests
from data_pipeline.ingest.item_files import to_items, to_table
from data_pipeline.ingest.plan import (
    cut_shards,
    examine_keys,
    find_twins,
    fingerprint_shard,
    held_out_rows,
    ranks,
)
from data_pipeline.sources import RawItem

AT_ONCE = 5
"""Rows in memory: so few that a plan of a dozen images goes through the file."""


def batches(items: Sequence[RawItem]) -> Iterator[Sequence[RawItem]]:
    return (items[start : start + 3] for start in range(0, len(items), 3))


def plan(items: Sequence[RawItem], samples: int, size: int, seed: int = 0) -> list[list[RawItem]]:
    """The images of each shard."""
    with ExternalSort(len(items), AT_ONCE) as sorter:
        for batch in batches(items):
            table = to_table(batch)
            sorter.add(table, ranks(table, seed))
        return [to_items(table) for table in cut_shards(sorter.sorted(), seed, samples, size)]


def rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def shuffled(items: Sequence[RawItem], seed: int) -> list[RawItem]:
    return sorted(items, key=lambda item: rank(seed, item.key))


def expected(items: Sequence[RawItem], samples: int, size: int, seed: int = 0) -> list[list[RawItem]]:
    """Blocks by the hash of their names; each shard takes the next ones while they fit; its images by their hash."""
    blocks: dict[str, list[RawItem]] = {}
    for item in items:
        blocks.setdefault(item.key if item.block < 0 else f"{item.part}#{item.block}", []).append(item)
    shards: list[list[RawItem]] = []
    for name in sorted(blocks, key=lambda name: rank(seed, name)):
        block = blocks[name]
        together = [*shards[-1], *block] if shards else []
        if not shards or len(together) > samples or sum(item.size for item in together) > size:
            shards.append([])
        shards[-1] += block
    return [shuffled(shard, seed) for shard in shards]


single_items = st.lists(st.integers(1, 50), min_size=1, max_size=40).map(
    lambda sizes: [RawItem(f"{number:03d}", 0, size, "") for number, size in enumerate(sizes)]
)
"""Images that can be read alone."""

block_items = st.lists(st.tuples(st.integers(1, 50), st.integers(0, 5), st.sampled_from("ab")), min_size=1).map(
    lambda rows: [
        RawItem(f"{number:03d}", 0, size, "", part=part, block=block) for number, (size, block, part) in enumerate(rows)
    ]
)
"""Images of row groups in two files."""


@given(st.one_of(single_items, block_items), st.integers(1, 10), st.integers(1, 120), st.integers(0, 2**31))
def test_shards_are_what_plain_python_makes_of_the_rules(
    items: list[RawItem], samples: int, size: int, seed: int
) -> None:
    assert plan(items, samples, size, seed) == expected(items, samples, size, seed)


@given(st.one_of(single_items, block_items), st.integers(1, 10), st.integers(1, 120), st.integers(0, 2**31))
def test_each_image_is_in_exactly_one_shard(items: list[RawItem], samples: int, size: int, seed: int) -> None:
    assert sorted(item for shard in plan(items, samples, size, seed) for item in shard) == sorted(items)


@given(block_items, st.integers(1, 10), st.integers(1, 120), st.integers(0, 2**31))
def test_blocks_stay_whole_and_keep_the_limits_if_they_can(
    items: list[RawItem], samples: int, size: int, seed: int
) -> None:
    shards = plan(items, samples, size, seed)
    blocks = [{(item.part, item.block) for item in shard} for shard in shards]
    assert sum(map(len, blocks)) == len(set().union(*blocks))
    for shard, held in zip(shards, blocks, strict=True):
        fits = len(shard) <= samples and sum(item.size for item in shard) <= size
        assert fits or len(held) == 1


@given(st.one_of(single_items, block_items), st.integers(0, 2**31))
def test_the_plan_does_not_depend_on_how_the_source_was_listed(items: list[RawItem], seed: int) -> None:
    assert plan(items, 5, 100, seed) == plan(items[::-1], 5, 100, seed)


def test_another_seed_is_another_plan() -> None:
    items = [RawItem(f"{number:03d}", 0, 1, "") for number in range(20)]
    assert plan(items, 5, 100, seed=1) != plan(items, 5, 100, seed=2)


@given(single_items, st.integers(1, 50))
def test_what_is_held_out_are_the_images_whose_keys_hash_lowest(items: list[RawItem], held_out: int) -> None:
    held_out = min(held_out, len(items) - 1)
    if not held_out:
        return
    keys = examine_keys(lambda: map(to_table, batches(items)), len(items), held_out)
    is_held_out = held_out_rows(to_table(items), keys.limit)
    ordered = sorted(items, key=lambda item: hashlib.sha256(item.key.encode()).digest())
    assert sorted(item for item, held in zip(items, is_held_out, strict=True) if held) == sorted(ordered[:held_out])


@pytest.mark.parametrize("parts", ["aa", "ab"])
def test_two_images_with_one_key_are_found_and_it_is_known_whether_two_parts_share_it(parts: str) -> None:
    items = [RawItem(f"{number:03d}", 0, 1, f"image {number}", part="a") for number in range(20)]
    items += [RawItem("007", 0, 1, f"twin {part}", part=part) for part in parts[1:]]
    keys = examine_keys(lambda: map(to_table, batches(items)), len(items), 0)
    assert keys.shared == (parts == "ab")
    assert [item.name for item in find_twins(lambda: map(to_table, batches(items)), keys)] == [
        "image 7",
        f"twin {parts[1]}",
    ]


def test_of_many_images_with_twins_the_first_by_key_are_named() -> None:
    items = [RawItem(f"{number % 9:03d}", 0, 1, f"image {number:02d}") for number in range(18)]
    keys = examine_keys(lambda: map(to_table, batches(items[::-1])), len(items), 0)
    one, other = find_twins(lambda: map(to_table, batches(items[::-1])), keys)
    assert (one.name, other.name) == ("image 00", "image 09")


def test_keys_that_all_differ_have_no_twins() -> None:
    items = [RawItem(f"{number:03d}", 0, 1, "", part="ab"[number % 2]) for number in range(30)]
    keys = examine_keys(lambda: map(to_table, batches(items)), len(items), 0)
    assert (keys.twins, keys.shared, keys.limit) == (frozenset(), False, b"")


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=5), max_size=60), st.integers(1, 9))
def test_an_external_sort_orders_rows_by_sha256_and_keeps_equal_ones_in_order(texts: list[str], at_once: int) -> None:
    import pyarrow as pa

    with ExternalSort(len(texts), at_once) as sorter:
        for start in range(0, len(texts), 4):
            some = texts[start : start + 4]
            numbers = range(start, start + len(some))
            sorter.add(pa.table({"text": some, "number": list(numbers)}), digests(some))
        rows = [row for table in sorter.sorted() for row in table.to_pylist()]
    wanted = sorted(range(len(texts)), key=lambda number: hashlib.sha256(texts[number].encode()).digest())
    assert [row["number"] for row in rows] == wanted


@pytest.mark.parametrize("identity", [None, "a digest", {"layout": [1, [2]]}])
def test_a_shards_fingerprint_is_that_of_its_record(identity: object) -> None:
    items = [("a/é_1", 3, 2**40), ('quote "', 0, 1), ("line\nfeed", 7, 0)]
    record = [identity, "images-00003.tar", [list(item) for item in items]]
    assert fingerprint_shard(identity, "images-00003.tar", items) == storage.fingerprint(record)
    assert json.loads(storage.canonical_json(record)) == record
