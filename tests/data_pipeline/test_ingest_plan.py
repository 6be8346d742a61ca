"""Which image goes into which shard: each into exactly one, blocks stay whole, limits are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import UsageError
from data_pipeline.ingest.plan import PlannedShard, plan_shards, shuffle_items, split_items
from data_pipeline.sources import ItemReader, RawItem


class Listed:
    """A source that is no more than its listing."""

    name = "listed"
    classes = ("a",)
    reader: ItemReader
    skipped: Mapping[str, int]

    def __init__(self, items: list[RawItem]) -> None:
        self.items = items

    def identity(self) -> Any:
        return None


def plan(items: list[RawItem], samples: int, size: int, seed: int = 0) -> list[PlannedShard]:
    return plan_shards("train", Listed(items), items, seed, samples, size)


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
def test_each_image_is_in_exactly_one_shard(items: list[RawItem], samples: int, size: int, seed: int) -> None:
    held = [item for shard in plan(items, samples, size, seed) for item in shard.items]
    assert sorted(held) == sorted(items)


@given(single_items, st.integers(1, 10), st.integers(1, 120))
def test_shards_keep_the_order_of_the_hash_and_the_limits(items: list[RawItem], samples: int, size: int) -> None:
    shards = plan(items, samples, size, seed=3)
    assert [item for shard in shards for item in shard.items] == shuffle_items(items, 3)
    for shard in shards:
        assert len(shard.items) <= samples
        assert len(shard.items) == 1 or sum(item.size for item in shard.items) <= size


@given(block_items, st.integers(1, 10), st.integers(1, 120), st.integers(0, 2**31))
def test_blocks_stay_whole_and_keep_the_limits_if_they_can(
    items: list[RawItem], samples: int, size: int, seed: int
) -> None:
    shards = plan(items, samples, size, seed)
    blocks = [{(item.part, item.block) for item in shard.items} for shard in shards]
    assert sum(map(len, blocks)) == len(set().union(*blocks))
    for shard, held in zip(shards, blocks, strict=True):
        fits = len(shard.items) <= samples and sum(item.size for item in shard.items) <= size
        assert fits or len(held) == 1


@given(block_items, st.integers(0, 2**31))
def test_images_of_several_blocks_are_shuffled_within_their_shard(items: list[RawItem], seed: int) -> None:
    (shard,) = plan(items, 10**6, 10**9, seed)
    assert list(shard.items) == shuffle_items(items, seed)


@given(st.one_of(single_items, block_items), st.integers(0, 2**31))
def test_the_plan_does_not_depend_on_how_the_source_was_listed(items: list[RawItem], seed: int) -> None:
    assert [shard.items for shard in plan(items, 5, 100, seed)] == [
        shard.items for shard in plan(items[::-1], 5, 100, seed)
    ]


@given(single_items, st.integers(0, 50))
def test_splits_share_no_image_and_lose_none(items: list[RawItem], held_out: int) -> None:
    held_out = min(held_out, len(items) - 1)
    splits = split_items(items, held_out)
    assert sorted(item for held in splits.values() for item in held) == items
    assert len(splits.get("validation", [])) == held_out


def test_a_split_that_leaves_nothing_for_training_is_refused() -> None:
    with pytest.raises(UsageError, match="validation_samples is 2, but the source has 2 images"):
        split_items([RawItem("a", 0, 1, ""), RawItem("b", 0, 1, "")], 2)


def test_another_seed_is_another_plan() -> None:
    items = [RawItem(f"{number:03d}", 0, 1, "") for number in range(20)]
    assert plan(items, 5, 100, seed=1)[0].plan != plan(items, 5, 100, seed=2)[0].plan
