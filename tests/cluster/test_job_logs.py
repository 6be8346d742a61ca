"""The output of a job: whole bytes at any time, in order, once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.jobs import logs
from cluster.jobs.logs import LogReader, LogWriter
from data_pipeline import storage
from data_pipeline.errors import StorageAwayError


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "SEGMENT_BYTES", 10)


def everything(folder: Path) -> str:
    reader, found = LogReader(str(folder)), ""
    while piece := reader.news():
        found += piece
    return found


def segments(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted((folder / "log").iterdir())]


def test_what_was_printed_is_read_in_its_order(tmp_path: Path, small_segments: None) -> None:
    writer = LogWriter(str(tmp_path))
    for text in ("first ", "second ", "third, which is longer than a segment"):
        writer.write(text.encode())
        assert writer.flush()
    assert everything(tmp_path) == "first second third, which is longer than a segment"
    assert segments(tmp_path) == ["first seco", "nd third, ", "which is l", "onger than", " a segment"]


def test_a_reader_goes_on_where_it_was(tmp_path: Path, small_segments: None) -> None:
    writer, reader = LogWriter(str(tmp_path)), LogReader(str(tmp_path))
    assert reader.news() == ""
    found = []
    for text in ("one", "two", "three and more"):
        writer.write(text.encode())
        writer.flush()
        pieces = []
        while piece := reader.news():
            pieces.append(piece)
        found.append("".join(pieces))
    assert found == ["one", "two", "three and more"]


@given(pieces=st.lists(st.text(max_size=9), max_size=12))
def test_letters_that_two_segments_share_stay_whole(
    pieces: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("job")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "SEGMENT_BYTES", 10)
        writer = LogWriter(str(folder))
        for piece in pieces:
            writer.write(piece.encode(errors="replace"))
            writer.flush()
        assert everything(folder) == "".join(pieces).encode(errors="replace").decode()


def test_a_second_start_begins_a_segment_of_its_own_and_changes_none(tmp_path: Path, small_segments: None) -> None:
    first, second = LogWriter(str(tmp_path)), LogWriter(str(tmp_path))
    first.write(b"first")
    first.flush()
    second.write(b"second")
    second.flush()
    first.write(b", still here")  # cut off from its scheduler, and not dead yet
    first.flush()
    assert segments(tmp_path) == ["first, sti", "second", "ll here"]


def test_nothing_printed_is_nothing_stored(tmp_path: Path) -> None:
    assert LogWriter(str(tmp_path)).flush()
    assert list(tmp_path.iterdir()) == []


def test_what_storage_did_not_take_is_stored_later_once(
    tmp_path: Path, small_segments: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, put, puts = LogWriter(str(tmp_path)), storage.create_bytes, list[str]()

    def away_at_the_second(uri: str, data: bytes) -> bool:
        puts.append(uri)
        if len(puts) == 2:
            raise StorageAwayError("away")
        return put(uri, data)

    monkeypatch.setattr(storage, "create_bytes", away_at_the_second)
    writer.write(b"0123456789abcdefghij")
    assert not writer.flush()
    writer.write(b"KLM")
    assert writer.flush()
    assert everything(tmp_path) == "0123456789abcdefghijKLM"


def test_of_more_than_fits_while_storage_is_away_the_end_is_kept_and_the_log_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MOST_WAITING", 4)
    writer = LogWriter(str(tmp_path))
    writer.write(b"lost and kept")
    writer.flush()
    assert everything(tmp_path) == "[9 bytes of output are not here: storage was away]\nkept"


def test_a_log_has_a_last_segment(tmp_path: Path, small_segments: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MOST_SEGMENTS", 2)
    writer = LogWriter(str(tmp_path))
    writer.write(b"x" * 50)
    assert writer.flush()
    assert everything(tmp_path) == "x" * 20


def test_the_end_of_a_log_is_read_from_its_last_segments(tmp_path: Path, small_segments: None) -> None:
    writer = LogWriter(str(tmp_path))
    writer.write(b"0123456789abcdefghijKL")
    writer.flush()
    assert logs.tail(str(tmp_path), 5) == "hijKL"
