"""Keys on scratch disk: each that is there twice is found, none that is there once is named, in little memory."""

from __future__ import annotations

import errno
import tempfile
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import DiskError
from data_pipeline.tools import key_spool
from data_pipeline.tools.key_spool import KeySpool, hash_keys, missing_from


def spool(keys: list[bytes], run_keys: int = 4, shard: int = 3) -> KeySpool:
    """The keys, added a shard at a time: each has the width of its own longest key, as shards have."""
    made = KeySpool(len(keys), run_keys)
    for first in range(0, len(keys), shard):
        made.add(np.array(keys[first : first + shard], "S"))
    return made


@given(st.lists(st.sampled_from([f"class{c}/photo_{n}".encode() for c in range(3) for n in range(9)])))
def test_the_keys_that_are_there_twice_are_those_of_a_count(keys: list[bytes]) -> None:
    with spool(keys) as made:
        found, more = made.twice(1000)
    assert {each.key: each.times for each in found} == {key: n for key, n in Counter(keys).items() if n > 1}
    assert all(each.numbers == [i for i, key in enumerate(keys) if key == each.key] for each in found)
    assert [each.numbers[0] for each in found] == sorted(each.numbers[0] for each in found)
    assert more == 0


@given(st.sets(st.integers(0, 60)), st.sets(st.integers(0, 60)))
def test_what_another_set_has_more_is_the_difference(one: set[int], other: set[int]) -> None:
    here, there = ([f"k{n}".encode() for n in sorted(each)] for each in (one, other))
    samples = 60
    with KeySpool(samples, 4) as first, KeySpool(samples, 4) as second:
        first.add(np.array(here, "S"))
        second.add(np.array(there, "S"))
        lost = [i for i, key in enumerate(there) if key not in here]
        assert missing_from(first, second) == (len(lost), lost[0] if lost else -1)


def test_keys_of_equal_hashes_are_compared_byte_for_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_spool, "hash_keys", lambda keys: np.full(len(keys), 7, np.uint64))
    with spool([b"a", b"b", b"c", b"b", b"d"]) as made:
        (found,), more = made.twice(10)
    assert (found.key, found.numbers, found.times, more) == (b"b", [1, 3], 2, 0)


def test_a_hash_does_not_depend_on_the_width_of_the_array() -> None:
    narrow, wide = np.array([b"abc"], "S3"), np.array([b"abc"], "S60")
    assert hash_keys(narrow) == hash_keys(wide)


@pytest.mark.parametrize(("width", "place"), [(16, 7), (16, 15), (24, 0), (30, 29)])
def test_one_character_changes_half_of_the_bits(width: int, place: int) -> None:
    """A hash that only moves characters about would put names such as ImageNet's into a few buckets."""
    keys = np.full((26, width), ord("a"), np.uint8)
    keys[:, place] += np.arange(26, dtype=np.uint8)
    hashes = hash_keys(keys.reshape(-1).view(f"S{width}"))
    changed = [bin(int(a) ^ int(b)).count("1") for i, a in enumerate(hashes) for b in hashes[:i]]
    assert 24 < np.mean(changed) < 40
    assert min(changed) > 8


def test_more_than_are_listed_are_counted() -> None:
    keys = [f"k{n}".encode() for n in range(10)] * 2
    with spool(keys) as made:
        found, more = made.twice(3)
    assert (len(found), more) == (3, 7)


def test_a_set_of_one_key_alone_is_told_without_reading_it_all() -> None:
    keys, run = 40_000, 1000
    with KeySpool(keys, run) as made:
        made.add(np.full(keys, b"the same", "S8"))
        tracemalloc.start()
        (found,), more = made.twice(5)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert found.key == b"the same"
    assert found.times + more == keys
    assert peak < 16 * keys / 2  # all of its records would take 16 bytes each, and as much again to sort them


def test_memory_does_not_grow_with_the_keys() -> None:
    peaks = []
    for samples in (20_000, 100_000):
        tracemalloc.start()
        with KeySpool(samples, 5000) as made:
            for first in range(0, samples, 1000):
                made.add(np.arange(first, first + 1000).astype("S12"))
            assert made.twice(5) == ([], 0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


@pytest.mark.parametrize("samples", [0, 1, 10**6, 10**9, 10**12])
def test_a_bucket_has_less_than_a_run_on_average(samples: int) -> None:
    with KeySpool(samples) as made:
        buckets = len(list(made.buckets()))
    assert samples / buckets < key_spool.RUN_KEYS or buckets == key_spool.MOST_BUCKETS


def test_a_full_scratch_disk_is_told_with_the_variable_that_moves_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(DiskError, match=r"No space left on device: .* set TMPDIR"):
        KeySpool(10)


def test_a_disk_that_fills_up_while_keys_are_added_is_told() -> None:
    full = Path("/dev/full")
    with KeySpool(10) as made, full.open("r+b", buffering=0) as file:
        made._keys = file
        with pytest.raises(DiskError, match="set TMPDIR"):
            made.add(np.array([b"a"], "S"))
