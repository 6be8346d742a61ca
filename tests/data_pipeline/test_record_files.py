"""Files of records in object storage: a list of segments and the newest lines."""

from __future__ import annotations

import itertools
import json
import zlib
from pathlib import Path
from uuid import uuid4

import pytest

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, UsageError
from data_pipeline.record_files.cursor import Cursor, News
from data_pipeline.record_files.layout import Segment, decode, encode, segments_folder
from data_pipeline.record_files.reading import open_state, whole_lines


@pytest.fixture
def uri() -> str:
    """A file of no server, that is treated as one in object storage."""
    return f"memory://{uuid4().hex}/stage/metrics.jsonl"


def lines(first: int, stop: int) -> bytes:
    return b"".join(b'{"step": %d}\n' % step for step in range(first, stop))


def put(uri: str, pieces: list[bytes], newest: bytes) -> list[Segment]:
    """Store a file of records as pieces and newest lines."""
    segments = []
    for number, text in enumerate(pieces):
        segments.append(Segment(f"{number:016x}", text.count(b"\n"), len(text), zlib.crc32(text)))
        storage.write_bytes(storage.join(segments_folder(uri), segments[-1].name), text)
    storage.write_bytes(uri, encode(segments, newest))
    return segments


def test_segments_and_the_newest_lines_are_one_run_of_bytes(uri: str) -> None:
    put(uri, [lines(0, 5), lines(5, 30)], lines(30, 33))
    state, whole = open_state(uri), lines(0, 33)
    assert state.size == len(whole)
    for start in range(0, len(whole), 7):
        for stop in (start + 1, start + 90, len(whole)):
            assert state.read(start, stop) == whole[start:stop]
    assert [record["step"] for record in whole_lines(uri).records] == list(range(33))


def test_a_file_that_has_no_segments_is_plain_lines(uri: str) -> None:
    storage.write_bytes(uri, lines(0, 3))
    assert (open_state(uri).segments, open_state(uri).newest) == ((), lines(0, 3))


@pytest.mark.parametrize(
    "entries",
    [
        "[]]",
        "7",
        '[["../../etc/passwd",1,1,1,0]]',
        '[["0123456789abcdef",1,1,1]]',
        '[["0123456789abcdef",1,-1,1,0]]',
        '[["0123456789abcdef",1,true,1,0]]',
        '[["0123456789abcdef",1,1e3,1,0]]',
        f'[["0123456789abcdef",1,{2**40},1,0]]',
        '[["0123456789abcdef",9,1,1,0]]',
    ],
)
def test_a_damaged_list_of_segments_is_refused_with_the_file(entries: str) -> None:
    with pytest.raises(UsageError, match=r"^s3://b/m\.jsonl: its first line is no list of segments"):
        decode("s3://b/m.jsonl", f'{{"segments":{entries}}}\n'.encode())


def test_a_segment_with_other_bytes_is_refused_by_name(uri: str) -> None:
    (segment,) = put(uri, [lines(0, 5)], b"")
    storage.write_bytes(storage.join(segments_folder(uri), segment.name), lines(1, 6))
    with pytest.raises(CorruptShardError, match=f"{segment.name} has other bytes than were put there"):
        whole_lines(uri)


def test_a_segment_that_is_gone_for_good_is_named(uri: str) -> None:
    (segment,) = put(uri, [lines(0, 5)], b"")
    storage.remove_file(storage.join(segments_folder(uri), segment.name))
    with pytest.raises(CorruptShardError, match=f"{segment.name} is missing"):
        whole_lines(uri)


def test_a_reader_whose_segments_are_put_together_meanwhile_reads_the_new_ones(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(uri, [lines(0, 5), lines(5, 30)], b"")
    read, state = storage.read_bytes, iter([True])

    def read_late(name: str, *more: int) -> bytes:
        data = read(name, *more)
        if name == uri and next(state, False):  # between the list and the segments
            for number in range(2):
                storage.remove_file(storage.join(segments_folder(uri), f"{number:016x}"))
            text = lines(0, 30)
            merged = Segment("f" * 16, 30, len(text), zlib.crc32(text))
            storage.write_bytes(storage.join(segments_folder(uri), merged.name), text)
            storage.write_bytes(uri, encode([merged], lines(30, 31)))
        return data

    monkeypatch.setattr(storage, "read_bytes", read_late)
    assert [record["step"] for record in whole_lines(uri).records] == list(range(31))


class TestCursor:
    """Reads what is new since the last look."""

    @pytest.fixture(params=["disk", "storage"])
    def place(self, request: pytest.FixtureRequest, tmp_path: Path, uri: str) -> str:
        return str(tmp_path / "metrics.jsonl") if request.param == "disk" else uri

    def write(self, place: str, text: bytes) -> None:
        """All lines; in object storage some of them in segments."""
        ends = [end for end in (100, 400, 2000) if end < len(text)]
        cuts = [0, *(text.rfind(b"\n", 0, end) + 1 for end in ends)]
        pieces = [text[a:b] for a, b in itertools.pairwise(cuts)]
        if storage.is_remote(place):
            put(place, pieces, text[cuts[-1] :])
        else:
            storage.write_bytes(place, text)

    def test_each_line_comes_once(self, place: str) -> None:
        cursor, seen = Cursor(place), b""
        assert cursor.news() == News(b"", False)
        for stop in (1, 2, 9, 40, 41, 200, 300):
            self.write(place, lines(0, stop))
            news = cursor.news()
            assert not news.is_other
            seen += news.lines
            assert seen == lines(0, stop)
            assert cursor.news() == News(b"", False)

    def test_a_line_that_is_being_written_comes_once_it_has_an_end(self, place: str) -> None:
        cursor = Cursor(place)
        self.write(place, lines(0, 3) + b'{"st')
        assert cursor.news().lines == lines(0, 3)
        self.write(place, lines(0, 4))
        assert cursor.news() == News(lines(3, 4), False)

    def test_lines_that_were_taken_back_do_not_count_any_more(self, place: str) -> None:
        cursor = Cursor(place)
        self.write(place, lines(0, 50))
        cursor.news()
        again = lines(0, 40) + b'{"step": 40, "again": 1}\n' + lines(41, 80)
        self.write(place, again)
        assert cursor.news() == News(again, True)

    def test_a_file_that_is_gone_takes_its_lines_along(self, place: str) -> None:
        cursor = Cursor(place)
        self.write(place, lines(0, 5))
        cursor.news()
        storage.remove_file(place)
        assert cursor.news() == News(b"", True)
        self.write(place, lines(0, 2))
        assert cursor.news() == News(lines(0, 2), False)

    def test_the_first_look_reads_the_end_and_no_cut_line(self, place: str) -> None:
        self.write(place, lines(0, 300))
        assert Cursor(place, 100).news().lines in {lines(first, 300) for first in range(290, 300)}

    def test_a_look_at_what_has_not_changed_is_one_request(self, uri: str) -> None:
        self.write(uri, lines(0, 300))
        cursor = Cursor(uri)
        cursor.news()
        with storage.counted() as found:
            cursor.news()
        assert found.total() == 1


def test_the_list_of_segments_is_one_line_of_json() -> None:
    segment = Segment("0123456789abcdef", 2, 30, 4_000_000_000, 8192)
    data = encode([segment], b"{}\n")
    assert json.loads(data.partition(b"\n")[0]) == {"segments": [["0123456789abcdef", 2, 30, 4_000_000_000, 8192]]}
    assert decode("x", data) == ((segment,), b"{}\n")
