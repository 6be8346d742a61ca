"""Records survive the death of their writer, on disk and on object storage."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from uuid import uuid4

import pytest

from data_pipeline import storage
from data_pipeline.errors import DiskError, FoldtrainError, StorageAwayError
from data_pipeline.leases.lease import LeaseLostError
from data_pipeline.storage import retries as storage_retries
from trainer.records.jsonl import Continued, JsonlWriter, read_last_records, read_records


def test_a_record_is_on_disk_as_soon_as_it_is_written(tmp_path: Path) -> None:
    uri = str(tmp_path / "metrics.jsonl")
    writer = JsonlWriter(uri, keep=[{"step": 1}])
    writer.write({"step": 2})
    assert read_records(uri) == [{"step": 1}, {"step": 2}]
    writer.close()


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_records(str(path)) == [{"step": 1}]


def test_there_are_no_records_where_there_is_no_file(tmp_path: Path) -> None:
    assert read_records(str(tmp_path / "none.jsonl")) == []


def test_the_last_records_are_whole_ones(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(1, 10)) + '{"step": 10, "lo')
    line = len('{"step": 1}\n')
    cut = len('{"step": 10, "lo')
    assert read_last_records(str(path), most=2 * line + 3 + cut) == [{"step": 8}, {"step": 9}]
    assert read_last_records(str(path)) == read_records(str(path))
    assert read_last_records(str(tmp_path / "none.jsonl")) == []


@pytest.mark.xdist_group("s3")
def test_object_storage_has_all_records_when_the_writer_closes(s3_uri: str) -> None:
    uri = f"{s3_uri}/metrics.jsonl"
    writer = JsonlWriter(uri, keep=[{"step": 1}], interval=0.01)
    for step in range(2, 20):
        writer.write({"step": step})
    writer.close()
    assert [record["step"] for record in read_records(uri)] == list(range(1, 20))


def test_dropped_records_are_gone_and_the_next_are_appended(tmp_path: Path) -> None:
    uri = str(tmp_path / "metrics.jsonl")
    writer = JsonlWriter(uri, keep=[{"step": 1}])
    writer.write({"step": 2})
    writer.drop(lambda record: record["step"] > 1)
    writer.write({"step": 3})
    writer.close()
    assert read_records(uri) == [{"step": 1}, {"step": 3}]


@pytest.mark.xdist_group("s3")
def test_object_storage_loses_dropped_records_too(s3_uri: str) -> None:
    uri = f"{s3_uri}/metrics.jsonl"
    writer = JsonlWriter(uri, keep=[{"step": 1}, {"step": 2}], interval=1000)
    assert writer.flush(60)
    writer.drop(lambda record: record["step"] > 1)
    assert writer.flush(60)
    assert read_records(uri) == [{"step": 1}]
    writer.close()


@pytest.mark.xdist_group("s3")
def test_a_failed_upload_is_made_up_for_by_the_next(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()

    def refuse(*_: object) -> None:
        failed.set()
        raise ConnectionError("gone")

    with monkeypatch.context() as patched:
        patched.setattr(storage, "write_bytes", refuse)
        writer = JsonlWriter(f"{s3_uri}/metrics.jsonl", keep=[], interval=1000)
        writer.write({"step": 1})
        assert failed.wait(60)
        assert not writer.flush(0.0)
    assert writer.flush(60)
    assert read_records(f"{s3_uri}/metrics.jsonl") == [{"step": 1}]
    writer.close()


def test_storage_that_hangs_holds_up_no_write_flush_or_close(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    freed, bounds = threading.Event(), list[float | None]()

    def hang(*_: object) -> None:
        bounds.append(storage_retries._bound.get())
        freed.wait()

    monkeypatch.setattr(storage, "write_bytes", hang)
    writer = JsonlWriter("s3://bucket/metrics.jsonl", keep=[{"step": 1}])
    writer.write({"step": 2})
    assert not writer.flush(0.0)
    writer.close(0.0)
    assert "lacks the last 2 records" in caplog.text
    freed.set()
    writer.close(60.0)
    assert set(bounds) == {5.0}  # an upload that fails is not tried again for longer


def test_a_number_that_is_not_finite_is_written_as_null(tmp_path: Path) -> None:
    """NaN is no JSON, so every reader would leave its line out."""
    path = tmp_path / "metrics.jsonl"
    writer = JsonlWriter(str(path), keep=[])
    writer.write({"step": 1, "loss": float("nan"), "parts": [float("inf"), {"a": float("-inf")}]})
    writer.close()
    assert path.read_text() == '{"step": 1, "loss": null, "parts": [null, {"a": null}]}\n'


def test_a_line_that_is_no_record_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"step": 1}\n' + "[" * 100_000 + '\nnull\n{"step": 2}\n')
    assert read_records(str(path)) == [{"step": 1}, {"step": 2}]
    assert "2 lines left out, the first is line 2" in caplog.text


def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = JsonlWriter(str(path), keep=[])
    writer._file._file = Path("/dev/full").open("ab")  # noqa: SIM115 - the writer closes it
    with pytest.raises(DiskError, match=rf"{path}: No space left on device: the disk is full"):
        writer.write({"step": 1})
    with contextlib.suppress(OSError):  # what it could not write is still in its buffer
        writer.close()


def test_nothing_is_put_any_more_once_another_driver_took_over() -> None:
    uri, other = f"memory://{uuid4().hex}/ledger.jsonl", threading.Event()

    def guard() -> None:
        if other.is_set():
            raise LeaseLostError("another driver took over")

    writer = JsonlWriter(uri, keep=[], interval=0.01, guard=guard)
    writer.write({"step": 1})
    assert writer.flush(10)
    storage.write_bytes(uri, b'{"of": "the other"}\n')
    other.set()
    writer.write({"step": 2})
    assert not writer.flush(0.1)
    other.clear()
    writer.write({"step": 3})
    writer.close()
    assert read_records(uri) == [{"of": "the other"}]


def test_a_guard_that_cannot_ask_is_asked_again() -> None:
    uri, calls = f"memory://{uuid4().hex}/ledger.jsonl", list[int]()

    def guard() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise StorageAwayError("no answer")

    writer = JsonlWriter(uri, keep=[], interval=0.01, guard=guard)
    writer.write({"step": 1})
    assert writer.flush(10)
    writer.close()
    assert read_records(uri) == [{"step": 1}]


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_a_file_elsewhere_that_records_are_linked_to_is_left_alone(tmp_path: Path, kind: str) -> None:
    other, path = tmp_path / "profile", tmp_path / "metrics.jsonl"
    other.write_text('{"step": 1}\n')
    if kind == "symbolic":
        path.symlink_to(other)
    else:
        path.hardlink_to(other)
    writer = JsonlWriter(str(path), keep=Continued(lambda _record: True))
    writer.write({"step": 2})
    writer.drop(lambda record: record["step"] == 2)
    writer.write({"step": 3})
    writer.close()
    assert other.read_text() == '{"step": 1}\n'
    assert read_records(str(path)) == [{"step": 1}, {"step": 3}]


def test_a_pipe_in_place_of_a_file_is_an_error_and_no_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(FoldtrainError, match=r"metrics\.jsonl"):
        JsonlWriter(str(tmp_path / "metrics.jsonl"), keep=Continued(lambda _record: True))


def test_a_drop_takes_the_end_of_a_file_in_place_and_a_bad_line_in_it_too(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nbad\n{"step": 2}\n{"step": 3}\n{"st')
    writer = JsonlWriter(str(path), keep=Continued(lambda _record: True, lambda record: record["step"] == 3))
    assert writer.left_out == 1
    writer.write({"step": 4})
    writer.close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 4}\n'
