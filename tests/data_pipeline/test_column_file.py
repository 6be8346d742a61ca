"""A file of columns that anybody may have written is what it says, or is refused before a column is looked at."""

from __future__ import annotations

import json
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.errors import CorruptShardError
from data_pipeline.node.node_cache import NodeCache
from data_pipeline.shards.column_file import (
    Column,
    Place,
    column,
    encode_columns,
    is_whole,
    measure_columns,
    narrowest,
    open_columns,
    parse_columns,
    write_columns,
)

ARRAYS = {
    "number": np.arange(5, dtype="<i8") - 2,
    "digest": np.arange(64, dtype="|u1").reshape(2, 32),
    "name": np.array([b"a", b"bcd"], "|S3"),
    "none": np.empty(0, "<u4"),
}
COLUMNS = {name: column(array) for name, array in ARRAYS.items()}
TEXTS = {"colours": ["rot", "grün"]}
WHOLE = b"".join(encode_columns("things", COLUMNS, TEXTS))


def parse(data: bytes, kind: str = "things") -> Any:
    return parse_columns(np.frombuffer(data, np.uint8), kind)


def test_columns_and_texts_come_back_and_lie_at_multiples_of_64_bytes() -> None:
    found = parse(WHOLE)
    assert found.texts == TEXTS
    for name, array in ARRAYS.items():
        assert found.arrays[name].dtype == array.dtype
        assert np.array_equal(found.arrays[name], array)
        place = found.arrays[name].__array_interface__["data"][0] - np.frombuffer(WHOLE, np.uint8).ctypes.data
        assert place % 64 == 0


def test_an_independent_reader_finds_the_columns_by_the_head_alone() -> None:
    magic, version, length, crc32 = struct.unpack("<8sIII", WHOLE[:20])
    head = WHOLE[20 : 20 + length]
    assert (magic, version, crc32) == (b"foldcols", 1, zlib.crc32(head))
    place = json.loads(head)["columns"]["number"]
    start = -(-(20 + length) // 64) * 64 + place["offset"]
    assert struct.unpack_from("<5q", WHOLE, start) == (-2, -1, 0, 1, 2)


def test_pieces_give_the_bytes_of_the_whole(tmp_path: Path) -> None:
    pieces = Column("<i8", (5,), iter([np.array([-2, -1]), np.empty(0), np.array([0, 1, 2], np.int8)]))
    written = write_columns(str(tmp_path / "x.bin"), "things", {**COLUMNS, "number": pieces}, TEXTS)
    assert (tmp_path / "x.bin").read_bytes() == WHOLE
    assert written == measure_columns("things", COLUMNS, TEXTS)
    assert written.bytes == len(WHOLE)


@pytest.mark.parametrize(("most", "dtype"), [(0, "|u1"), (255, "|u1"), (256, "<u2"), (2**16, "<u4"), (2**32, "<u8")])
def test_codes_take_the_bytes_that_they_need(most: int, dtype: str) -> None:
    assert narrowest(most) == dtype


def with_head(edit: Callable[[dict[str, Any]], object]) -> bytes:
    """Another head, with the CRC-32 that belongs to it."""
    length = struct.unpack_from("<I", WHOLE, 12)[0]
    record = json.loads(WHOLE[20 : 20 + length])
    edit(record)
    head = json.dumps(record).encode()
    start = struct.pack("<8sIII", b"foldcols", 1, len(head), zlib.crc32(head)) + head
    return start + bytes(-len(start) % 64) + WHOLE[-(-(20 + length) // 64) * 64 :]


def place(name: str, **fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda record: record["columns"][name].update(fields)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it has 0 bytes"),
        (WHOLE[:19], "it has 19 bytes"),
        (b"x" + WHOLE[1:], "it does not begin as one"),
        (WHOLE[:8] + b"\2" + WHOLE[9:], "it has version 2 of the format, and version 1 is read here"),
        (WHOLE[:12] + b"\xff\xff\xff\x7f" + WHOLE[16:], "its head should have 2,147,483,647 bytes"),
        (WHOLE[:100], "its head should have"),
        (WHOLE[:30] + b"?" + WHOLE[31:], "the CRC-32 of its head differs"),
        (WHOLE[:-1], "its columns have"),
        (WHOLE + b"x", "its columns have"),
        (with_head(lambda record: record.update(kind="others")), "it is of the kind 'others'"),
        (with_head(lambda record: record.update(bytes=2**60)), "its head: bytes"),
        (with_head(lambda record: record.update(more=1)), "its head: more"),
        (with_head(lambda record: record.update(texts={"colours": [1]})), "its head: texts.colours.0"),
        (with_head(place("number", dtype="O")), "its head: columns.number.dtype"),
        (with_head(place("number", dtype="|S0")), "its head: columns.number.dtype"),
        (with_head(place("number", dtype=">i8")), "its head: columns.number.dtype"),
        (with_head(place("number", dtype="<i8\n")), "its head: columns.number.dtype"),
        (with_head(place("number", offset=8)), "its head: columns.number.offset"),
        (with_head(place("number", offset=-64)), "its head: columns.number.offset"),
        (with_head(place("number", offset=2**40)), "its column 'number' reaches beyond its end"),
        (with_head(place("number", shape=[2**40])), "its column 'number' reaches beyond its end"),
        (with_head(place("number", shape=[2**50, 2**50])), "its column 'number' reaches beyond its end"),
        (with_head(place("number", shape=[])), "its head: columns.number.shape"),
        (with_head(place("number", shape=[1, 1, 1])), "its head: columns.number.shape"),
        (with_head(place("number", shape=[1.5])), "its head: columns.number.shape"),
    ],
)
def test_what_is_no_such_file_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse(data)


def test_a_head_that_would_be_too_long_is_not_written() -> None:
    with pytest.raises(ValueError, match=r"the head of a things would have .* at most 1,048,576"):
        measure_columns("things", {}, {"names": ["x" * 1000] * 2000})


def test_whether_a_file_is_whole_is_told_by_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    stated = write_columns(str(path), "things", COLUMNS, TEXTS)
    where = Place(str(path), "things", stated, "mend it")
    assert is_whole(where)
    for damaged in (WHOLE[:-1], WHOLE[:-1] + b"x"):
        path.write_bytes(damaged)
        assert not is_whole(where)
    path.unlink()
    assert not is_whole(where)


def test_content_that_cannot_be_is_refused_with_the_remedy(tmp_path: Path) -> None:
    def refuse(_: object) -> None:
        raise ValueError("no such thing")

    stated = write_columns(str(tmp_path / "x.bin"), "things", COLUMNS, TEXTS)
    with pytest.raises(CorruptShardError, match=r"x\.bin is no things \(no such thing\): mend it"):
        open_columns(Place(str(tmp_path / "x.bin"), "things", stated, "mend it"), refuse)


def test_a_copy_is_made_with_one_piece_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_pipeline.shards.column_file.PIECE_BYTES", 2**20)
    numbers = np.arange(2**20, dtype="<i8")
    place = Place("memory://columns-of-a-test/x.bin", "things", measure_columns("things", {"n": column(numbers)}), "")
    write_columns(place.uri, "things", {"n": column(numbers)})
    cache = NodeCache(str(tmp_path))
    tracemalloc.start()
    found = open_columns(place, lambda _: None, "things", cache)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(found.arrays["n"], numbers)
    assert peak < 1.5 * 2**20


def test_pages_that_were_checked_are_not_counted_as_the_process_s(tmp_path: Path) -> None:
    big = np.arange(4 * 2**20, dtype="<i8")
    stated = write_columns(str(tmp_path / "x.bin"), "things", {"number": column(big)})
    before = mapped_bytes(tmp_path)
    found = open_columns(Place(str(tmp_path / "x.bin"), "things", stated, ""), lambda _: None)
    assert mapped_bytes(tmp_path) - before < big.nbytes / 4
    assert np.array_equal(found.arrays["number"], big)
    assert mapped_bytes(tmp_path) - before >= big.nbytes


def mapped_bytes(folder: Path) -> int:
    """Resident pages of files of a folder."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    found, within = 0, False
    for line in lines:
        if "-" in line.split(" ", 1)[0]:
            within = str(folder) in line
        elif within and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found
