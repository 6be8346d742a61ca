"""Records survive the death of their writer, on disk and on object storage."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline import storage
from trainer.jsonl import JsonlWriter, read_records


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


@pytest.mark.xdist_group("s3")
def test_object_storage_has_all_records_when_the_writer_closes(s3_uri: str) -> None:
    uri = f"{s3_uri}/metrics.jsonl"
    writer = JsonlWriter(uri, keep=[{"step": 1}], interval=0.01)
    for step in range(2, 20):
        writer.write({"step": step})
    writer.close()
    assert [record["step"] for record in read_records(uri)] == list(range(1, 20))


@pytest.mark.xdist_group("s3")
def test_a_failed_upload_is_made_up_for_by_the_next(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = JsonlWriter(f"{s3_uri}/metrics.jsonl", keep=[], interval=1000)
    with monkeypatch.context() as patched:
        patched.setattr(storage, "write_bytes", lambda *_: (_ for _ in ()).throw(ConnectionError("gone")))
        writer.write({"step": 1})
        writer._upload()
    writer.close()
    assert read_records(f"{s3_uri}/metrics.jsonl") == [{"step": 1}]
