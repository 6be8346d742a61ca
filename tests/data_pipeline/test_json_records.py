"""JSON from storage means one thing, or it is refused with the reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from data_pipeline import storage
from data_pipeline.errors import FoldtrainError, UsageError
from data_pipeline.text import json_records


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "nested deeper"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested deeper"),
        (b"[" * 65 + b"]" * 65, "nested deeper"),
        (b'{"a": NaN}', "NaN"),
        (b"[-Infinity]", "-Infinity"),
        (b"[1e999]", "too large"),
        (b'{"a": 1, "a": 2}', "the key 'a' twice"),
        (b'["\\ud800"]', "surrogate"),
        (b"[" + b"9" * 5000 + b"]", "64 bits"),
        (b"[-18446744073709551616]", "64 bits"),
        (b'{"a": 1', "delimiter"),
        (b"\xff\xfe{\x00}\x00", "utf-8"),
        (b"", "Expecting value"),
    ],
    ids=lambda value: repr(value[:16]),
)
def test_what_has_no_one_meaning_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        json_records.parse(data)


def test_a_record_as_deep_as_is_allowed_and_full_of_brackets_is_read() -> None:
    deep = b"[" * 64 + b"]" * 64
    assert (
        json_records.parse(b'{"a": [' + b"[]," * 500 + b'{"b": "[[[\\ud83d\\ude00"}]}')["a"][-1]["b"] == "[[[\U0001f600"
    )
    assert json_records.parse(deep) is not None


def test_numbers_of_up_to_64_bits_are_read() -> None:
    assert json_records.parse(b'[18446744073709551615, -9223372036854775808, 1.5e300, "99999999999999999999999"]') == [
        *(2**64 - 1, -(2**63), 1.5e300, "9" * 23)
    ]


def test_a_line_that_is_no_record_takes_no_other_with_it() -> None:
    bad = [
        b"[" * 100_000,
        b'{"a": NaN}',
        b"7",
        b"null",
        b"[]",
        b"\xff",
        b'{"a": 1} x',
        b'{"a": "' + b"x" * 2**20 + b'"}',
    ]
    lines = json_records.parse_lines(b'{"n": 1}\n' + b"\n".join(bad) + b'\n\n{"n": 2}\n{"cut": ')
    assert lines.records == [{"n": 1}, {"n": 2}]
    assert lines.left_out == list(range(2, 10))


def test_a_record_beyond_the_size_limit_is_neither_read_nor_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_records, "MOST_BYTES", 20)
    (tmp_path / "large.json").write_bytes(b'"' + b"x" * 30 + b'"')
    with pytest.raises(UsageError, match=r"large\.json has more than the 20 bytes"):
        storage.read_json(str(tmp_path / "large.json"))
    with pytest.raises(FoldtrainError, match=r"new\.json would have 33 bytes"):
        storage.write_json(str(tmp_path / "new.json"), "y" * 30)
    assert not (tmp_path / "new.json").exists()


def test_a_record_that_is_a_pipe_or_an_endless_device_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    for name in ("pipe.json", "zero.json"):
        with pytest.raises(UsageError, match="is no regular file"):
            storage.read_json(str(tmp_path / name))


@pytest.mark.parametrize(("start", "length"), [(0, 2**62), (2, 2**62), (100, 5), (-5, 5), (0, -1)])
def test_a_range_beyond_a_file_costs_no_more_than_the_file(tmp_path: Path, start: int, length: int) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    assert storage.read_range(str(tmp_path / "f"), start, length) == b"0123456789"[start:] * (start >= 0 and length > 0)


def test_a_remote_record_beyond_the_size_limit_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_records, "MOST_BYTES", 20)
    storage.write_bytes("memory://records/large.json", b'"' + b"x" * 30 + b'"')
    storage.write_bytes("memory://records/small.json", b'"x"')
    monkeypatch.setattr(storage.files.object_reads, "read_pieces", lambda _read, size: b'"' + b"x" * (size - 2) + b'"')
    assert storage.read_json("memory://records/small.json") == "x"
    monkeypatch.setattr(
        storage.files.object_reads, "read_pieces", lambda _, size: pytest.fail(f"{size} bytes are read")
    )
    with pytest.raises(UsageError, match=r"large\.json has more than the 20 bytes"):
        storage.read_json("memory://records/large.json")
