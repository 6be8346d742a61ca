"""Numbers of metrics.jsonl in columns are those of its lines, on a disk and in object storage, whoever wrote them."""

from __future__ import annotations

import itertools
import json
import zlib
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import storage
from data_pipeline.record_files.layout import columns_folder, segments_folder
from data_pipeline.record_files.reading import open_state
from trainer.records import columns, local_file, reading_columns, segmented_object
from trainer.records.columns import HEAD_BYTES, MOST_NAMES, Columns
from trainer.records.jsonl import Continued, JsonlWriter, read_records
from trainer.records.reading_columns import ColumnCursor, read_columns
from trainer.records.record_shapes import is_metrics

LATER = 3600.0


def record(step: int) -> dict[str, Any]:
    base = {"time": 1e9 + step / 3, "step": step, "loss": 1 / (step + 1), "note": "x"}
    window = {"window_steps": 1, "window_seconds": 0.25, "data_wait_share": None} if step % 3 else {}
    return base | window | ({"late": step * 1.5} if step > 70 else {})


def by_hand(records: list[dict[str, Any]], name: str) -> list[float | None]:
    return [record.get(name) if isinstance(record.get(name), int | float) else None for record in records]


def listed(numbers: Columns, name: str) -> list[float | None]:
    return [None if np.isnan(value) else value for value in numbers[name]]


def everything(_name: str) -> bool:
    return True


@pytest.fixture(params=["disk", "storage"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file of either kind, of which every few lines are in columns."""
    monkeypatch.setattr(local_file, "_BLOCK_BYTES", 1500)
    for name, size in (("SEAL_BYTES", 400), ("MIDDLE_BYTES", 1500), ("LARGEST_BYTES", 6000)):
        monkeypatch.setattr(segmented_object, name, size)
    return str(tmp_path / "metrics.jsonl") if request.param == "disk" else f"memory://{uuid4().hex}/metrics.jsonl"


def write(uri: str, records: list[dict[str, Any]], keep: Any = ()) -> None:
    writer = JsonlWriter(uri, keep=keep, interval=LATER, in_columns=True)
    for number, each in enumerate(records):
        writer.write(each)
        if storage.is_remote(uri):
            assert number % 5 or writer.flush(60)
        elif writer._file._making:
            writer._file._making.result()
    writer.close()


def columns_of(uri: str) -> list[str]:
    """Files that hold columns."""
    if not storage.is_remote(uri):
        return [storage.join(columns_folder(uri), name) for name in storage.list_names(columns_folder(uri))]
    segments = [segment.name for segment in open_state(uri).segments if segment.column_bytes]
    return [storage.join(segments_folder(uri), name + segmented_object.COLUMNS) for name in segments]


def test_they_are_the_numbers_of_the_lines(uri: str) -> None:
    records = [record(step) for step in range(200)]
    write(uri, records)
    assert len(columns_of(uri)) > 3 - storage.is_remote(uri)
    found = read_columns(uri, everything)
    for name in ("time", "step", "loss", "window_seconds", "late"):
        assert listed(found, name) == by_hand(records, name)
    assert "note" not in found
    assert "data_wait_share" not in found


def test_they_are_read_without_the_lines_that_they_are_of(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(uri, [record(step) for step in range(200)])
    parsed = list[int]()
    of_lines = reading_columns._of_lines
    monkeypatch.setattr(
        reading_columns, "_of_lines", lambda text, wanted: parsed.append(len(text)) or of_lines(text, wanted)
    )
    read_columns(uri, everything)
    assert sum(parsed) < 3500
    assert open_state(uri).size > 15_000


def test_only_what_is_wanted_is_read_and_what_says_when_a_step_was(uri: str) -> None:
    write(uri, [record(step) for step in range(200)])
    assert read_columns(uri, lambda name: name == "late").keys() == {
        *("step", "time", "window_steps", "window_seconds", "late")
    }


def test_after_a_resume_they_are_those_of_the_lines_that_stay(uri: str) -> None:
    write(uri, [record(step) for step in range(200)])
    again = [record(step) | {"loss": 7.0} for step in range(101, 220)]
    write(uri, again, Continued(is_metrics, lambda each: each["step"] > 100))
    found = read_columns(uri, everything)
    assert found["step"].tolist() == list(range(220))
    assert set(found["loss"][101:]) == {7.0}
    if not storage.is_remote(uri):
        there = local_file.columns_there(uri)
        assert all(one.stop == other.start for one, other in itertools.pairwise(there))
        assert all(zlib.crc32(storage.read_range(uri, a, b - a)) == crc for a, b, crc in there)
        assert there[-1].stop > storage.size(uri) - 3000
    assert listed(found, "loss") == by_hand(read_records(uri), "loss")


@pytest.mark.parametrize("change", ["cut", "other head", "no step", "infinite", "no time", "too many", "gone"])
def test_columns_that_are_none_are_not_used_and_the_lines_are_read(
    uri: str, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    records = [record(step) for step in range(200)]
    write(uri, records)
    for place in columns_of(uri):
        data = bytearray(storage.read_bytes(place))
        head = json.loads(data[:HEAD_BYTES])
        first = HEAD_BYTES + 8 * head["rows"] * head["names"].index({"no time": "time"}.get(change, "step"))
        bad = {"no step": -1.0, "infinite": np.inf, "no time": np.nan}.get(change)
        if bad is not None:
            data[first : first + 8 * head["rows"]] = np.full(head["rows"], bad).tobytes()
        if change == "other head":
            data[:HEAD_BYTES] = json.dumps(head | {"rows": head["rows"] + 1}).encode().ljust(HEAD_BYTES)
        if change == "too many":
            names = [f"n{number}" for number in range(MOST_NAMES + 1)]
            data[:HEAD_BYTES] = json.dumps(head | {"names": names}).encode().ljust(HEAD_BYTES)
        storage.remove_file(place)
        if change != "gone":
            storage.write_bytes(place, bytes(data[:-8] if change == "cut" else data))
    assert listed(read_columns(uri, everything), "loss") == by_hand(records, "loss")
    assert ("is not used" in caplog.text) == (change != "gone")


def test_lines_that_are_no_records_are_left_out_and_said(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    write(uri, [record(step) for step in range(50)])
    text = storage.read_bytes(uri)
    storage.write_bytes(uri, text + b'{"step": -1}\n[]\n' + json.dumps(record(50)).encode() + b"\n")
    found = read_columns(uri, everything)
    assert found["step"].tolist() == list(range(51))
    assert "2 lines left out, the first is line 51: no record" in caplog.text


def test_there_are_none_without_a_file(uri: str) -> None:
    assert read_columns(uri, everything)["step"].tolist() == []


def test_a_file_on_a_disk_that_somebody_edited_is_read_from_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_file, "_BLOCK_BYTES", 1500)
    path = tmp_path / "metrics.jsonl"
    write(str(path), [record(step) for step in range(200)])
    path.write_text(path.read_text().replace('"loss": 1.0,', '"loss": 9.0,'))
    assert read_columns(str(path), everything)["loss"][0] == 9.0


@pytest.mark.parametrize(("old", "new"), [('"loss": 0.01,', '"loss": 0.02,'), ('"step": 99,', '"step": 98,')])
def test_a_cursor_finds_within_some_looks_that_somebody_edited_a_file_on_a_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    monkeypatch.setattr(local_file, "_BLOCK_BYTES", 1500)
    monkeypatch.setattr(reading_columns, "_CHECKED_BYTES", 3000)
    path = tmp_path / "metrics.jsonl"
    write(str(path), [record(step) for step in range(200)])
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    cursor, rows = ColumnCursor(str(path)), columns.joined([])
    looks = [cursor.look() for _ in range(12)]
    for new_rows, is_other in looks:
        rows = new_rows if is_other else columns.joined([rows, new_rows])
    expected = read_columns(str(path), everything)
    assert all(np.array_equal(rows[name], expected[name], equal_nan=True) for name in expected)
    assert [is_other for _, is_other in looks].count(True) == 1
    assert cursor.look()[1] is False


def test_a_cursor_takes_no_columns_whose_ends_are_other_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_file, "_BLOCK_BYTES", 1500)
    path = tmp_path / "metrics.jsonl"
    write(str(path), [record(step) for step in range(200)])
    path.write_text('{"step": 1000, "loss": 7.0}\n' + path.read_text())  # all blocks stand elsewhere now
    found, _ = ColumnCursor(str(path)).look()
    assert listed(found, "step") == [1000, *range(200)]
    path.write_text(path.read_text().partition("\n")[2].replace('"step": 0,', '"step": 7,', 1))  # as long as before
    found, _ = ColumnCursor(str(path)).look()
    assert listed(found, "step") == [7, *range(1, 200)]


def test_a_block_with_a_line_that_is_no_record_has_no_columns() -> None:
    lines = [json.dumps(record(step)).encode() + b"\n" for step in range(3)]
    assert columns.encode(b"".join(lines)) is not None
    assert columns.encode(b"".join([*lines, b'{"step": 1, "loss": "x"}\n'])) is None


def test_names_are_bound_whatever_records_hold() -> None:
    records = [{"step": step, f"name {step}": 1.0} for step in range(3 * MOST_NAMES)]
    assert len(columns.from_records(records)) == MOST_NAMES
    parts = [columns.from_records(records[start : start + 90]) for start in range(0, 270, 90)]
    assert len(columns.joined(parts)) <= MOST_NAMES


@given(st.binary(max_size=200), st.integers(0, 40))
def test_no_bytes_break_the_reader_of_columns(noise: bytes, at: int) -> None:
    good = columns.encode(b"".join(json.dumps(record(step)).encode() + b"\n" for step in range(9)))
    assert good is not None
    data = good[: at * 20] + noise + good[at * 20 + len(noise) :]
    try:
        found = columns.read(lambda ranges: [data[a : a + n] for a, n in ranges], len(data), everything)
    except ValueError:
        return
    assert all(len(column) == len(found["step"]) for column in found.values())


def test_a_disk_that_takes_no_columns_stops_no_writer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "metrics.columns").write_text("in the way")
    uri = str(tmp_path / "metrics.jsonl")
    writer = JsonlWriter(uri, keep=[], in_columns=True)
    for step in range(3):
        writer.write({"step": step, "note": "x" * 2**19})
    writer.close()
    assert "its numbers are not kept in columns" in caplog.text
    assert len(read_records(uri)) == 3


def test_a_cursor_gives_each_row_once_and_none_twice(uri: str) -> None:
    cursor = ColumnCursor(uri)
    assert (listed(cursor.look()[0], "step"), cursor.look()[1]) == ([], False)
    write(uri, [record(step) for step in range(1, 200)])
    first, is_other = cursor.look()
    assert (listed(first, "loss"), is_other) == (by_hand([record(step) for step in range(1, 200)], "loss"), False)
    write(uri, [record(200), record(201)], keep=Continued(is_metrics))
    again, is_other = cursor.look()
    assert (listed(again, "step"), is_other) == ([200, 201], False)
    assert listed(cursor.look()[0], "step") == []


def test_a_cursor_says_that_rows_were_taken_back_and_gives_those_that_stay(uri: str) -> None:
    cursor = ColumnCursor(uri)
    write(uri, [record(step) for step in range(1, 200)])
    cursor.look()
    write(uri, [record(11)], keep=Continued(is_metrics, lambda each: each["step"] > 10))
    after, is_other = cursor.look()
    assert (listed(after, "step"), is_other) == (list(range(1, 12)), True)


def test_a_cursor_leaves_a_line_that_is_being_written_for_the_next_look(tmp_path: Path) -> None:
    path, cursor = tmp_path / "metrics.jsonl", ColumnCursor(str(tmp_path / "metrics.jsonl"))
    path.write_text('{"step": 1}\n{"step": 2')
    assert listed(cursor.look()[0], "step") == [1]
    with path.open("a") as file:
        file.write('2}\n{"step": 23}\n')
    assert listed(cursor.look()[0], "step") == [22, 23]


def test_what_a_cursor_reads_again_and_again_is_not_the_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "metrics.jsonl")
    write(path, [record(step) for step in range(1, 3000)])
    cursor, read = ColumnCursor(path), []
    cursor.look()
    plain = storage.read_range
    monkeypatch.setattr(
        storage, "read_range", lambda uri, start, length: read.append(length) or plain(uri, start, length)
    )
    write(path, [record(3000)], keep=Continued(is_metrics))
    read.clear()
    assert listed(cursor.look()[0], "step") == [3000]
    assert 0 < sum(read) < 5_000
