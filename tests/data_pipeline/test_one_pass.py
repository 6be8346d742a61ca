"""A file in pieces: each byte is asked for once, a piece at a time, and all count in the digest."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import storage
from data_pipeline.tools.one_pass import OnePass

DATA = bytes(range(256)) * 3


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("one_pass") / "file"
    path.write_bytes(DATA)
    return str(path)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 200))), st.integers(1, 100))
def test_what_is_read_is_what_lies_there_and_the_digest_is_that_of_the_file(
    uri: str, steps: list[tuple[bool, int]], piece: int
) -> None:
    file, at = OnePass(uri, len(DATA), piece), 0
    for is_read, length in steps:
        if is_read:
            assert file.read(length) == DATA[at : at + length]
        else:
            file.skip(length)
        at = min(len(DATA), at + length)
        assert file.at == at
    assert file.finish() == storage.sha256(DATA)


def test_each_byte_is_asked_for_once_and_a_piece_at_a_time(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    read_range = storage.read_range

    def count(uri: str, start: int, length: int) -> bytes:
        asked.append((start, length))
        return read_range(uri, start, length)

    monkeypatch.setattr(storage, "read_range", count)
    file = OnePass(uri, len(DATA), 300)
    file.read(10)
    file.skip(500)
    file.finish()
    assert asked == [(0, 300), (300, 300), (600, 168)]


def test_a_file_that_was_cut_since_it_was_listed_ends_early(uri: str) -> None:
    file = OnePass(uri, len(DATA) + 1000, 100)
    assert file.read(len(DATA) + 500) == DATA
    assert file.finish() == storage.sha256(DATA)


def test_a_file_that_has_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        OnePass(str(tmp_path / "gone"), 10).read(1)
