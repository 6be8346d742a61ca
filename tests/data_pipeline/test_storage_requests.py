"""Every request to remote storage is counted, and neighbours in an object are read in one."""

from __future__ import annotations

import itertools
import threading
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import storage
from data_pipeline.storage import object_reads
from data_pipeline.storage.object_reads import GAP_BYTES, PIECE_BYTES, coalesce
from data_pipeline.storage.request_counts import count


@pytest.fixture
def memory() -> str:
    """A folder of another scheme than S3, of no server."""
    return f"memory://{uuid4().hex}"


def test_each_kind_is_counted_by_itself(memory: str) -> None:
    with storage.counted() as found:
        storage.write_bytes(f"{memory}/a", b"0123456789")
        assert storage.read_range(f"{memory}/a", 2, 3) == b"234"
        assert storage.size(f"{memory}/a") == 10
        storage.list_names(memory)
        storage.remove_file(f"{memory}/a")
    assert found == {"put": 1, "get": 1, "head": 1, "list": 1, "delete": 1}


def test_storage_of_another_kind_creates_an_object_once(memory: str) -> None:
    assert storage.create_bytes(f"{memory}/a", b"first")
    assert not storage.create_bytes(f"{memory}/a", b"second")
    assert storage.read_bytes(f"{memory}/a") == b"first"
    storage.commit_bytes(f"{memory}/a", b"third")
    assert storage.holds(f"{memory}/a", b"third")


def test_what_is_on_a_disk_is_no_request(tmp_path: object) -> None:
    with storage.counted() as found:
        storage.write_bytes(f"{tmp_path}/a", b"x")
        storage.read_ranges(f"{tmp_path}/a", [(0, 1)])
    assert found == {}


def test_all_threads_count_and_none_is_lost() -> None:
    def send() -> None:
        for _ in range(5000):
            count("get")

    threads = [threading.Thread(target=send) for _ in range(8)]
    with storage.counted() as found:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {"get": 40_000}


def test_a_copy_is_handed_out() -> None:
    storage.requests()["get"] += 1000
    with storage.counted() as found:
        pass
    assert found == {}


def test_ranges_come_in_the_order_in_which_they_were_asked_for(memory: str) -> None:
    data = bytes(range(256)) * 4
    storage.write_bytes(f"{memory}/a", data)
    ranges = [(700, 20), (0, 5), (3, 9), (0, 5), (1000, 100), (5, 0), (2000, 4)]
    with storage.counted() as found:
        assert storage.read_ranges(f"{memory}/a", ranges) == [data[at : at + n] for at, n in ranges]
    assert found["get"] == 1


@pytest.mark.parametrize(("gap", "requests"), [(GAP_BYTES, 1), (GAP_BYTES + 1, 2)])
def test_a_gap_is_read_along_up_to_its_bound(memory: str, gap: int, requests: int) -> None:
    storage.write_bytes(f"{memory}/a", b"a" * 10 + b"." * gap + b"b" * 10)
    with storage.counted() as found:
        assert storage.read_ranges(f"{memory}/a", [(10 + gap, 10), (0, 10)]) == [b"b" * 10, b"a" * 10]
    assert found["get"] == requests


def test_of_a_missing_object_no_range_is_read(memory: str) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read_ranges(f"{memory}/missing", [(0, 1)])


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_no_range_is_no_request(kind: str, memory: str, tmp_path: object) -> None:
    uri = f"{tmp_path}/a" if kind == "local" else f"{memory}/missing"
    with storage.counted() as found:
        assert storage.read_ranges(uri, []) == []
        assert storage.read_ranges(uri, [(4, 0), (-1, 5)]) == [b"", b""]
    assert found == {}


def test_no_request_grows_past_a_piece_but_for_a_range_that_has_more() -> None:
    half = PIECE_BYTES // 2
    groups = coalesce([(0, half), (half + 10, half), (4 * PIECE_BYTES, 2 * PIECE_BYTES)])
    assert [(start, length) for start, length, _ in groups] == [
        (0, half),
        (half + 10, half),
        (4 * PIECE_BYTES, 2 * PIECE_BYTES),
    ]


@given(ranges=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 400)), max_size=12), gap=st.integers(0, 300))
def test_any_ranges_are_those_bytes(ranges: list[tuple[int, int]], gap: int) -> None:
    data = bytes(number * 7 % 251 for number in range(2500))
    asked: list[tuple[int, int]] = []

    def read(start: int, length: int) -> bytes:
        asked.append((start, length))
        return data[start : start + length]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(object_reads, "GAP_BYTES", gap)
        assert object_reads.read_coalesced(read, ranges) == [data[at : at + n] for at, n in ranges]
    ends = sorted((start, start + length) for start, length in asked)
    assert all(after[0] - before[1] > gap for before, after in itertools.pairwise(ends))
