"""Bytes at any URI: the same behaviour on a local disk and on a real S3 server."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import botocore.exceptions
import fsspec
import pytest

from data_pipeline import storage
from data_pipeline.errors import FoldtrainError, UsageError
from data_pipeline.storage import object_writes

pytestmark = pytest.mark.xdist_group("s3")


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder, on each kind of storage in turn."""
    return str(tmp_path) if request.param == "local" else str(request.getfixturevalue("s3_uri"))


def test_reads_back_what_was_written(folder: str) -> None:
    storage.write_bytes(f"{folder}/deep/er/object", b"content")
    assert storage.read_bytes(f"{folder}/deep/er/object") == b"content"


@pytest.mark.parametrize(
    "name", ["a b", "ü/é", "a#1", "a%20b", "a+b", "a?b&c=d", "日本", "~*'()!$,;:@=", 'q"<>|^`{}[]']
)
def test_a_name_is_taken_to_the_letter(folder: str, name: str) -> None:
    for number in range(2):  # of which the first may be by another client
        storage.write_bytes(f"{folder}/{name}", b"%d" % number)
        assert storage.read_bytes(f"{folder}/{name}") == b"%d" % number
    assert storage.read_range(f"{folder}/{name}", 0, 1) == b"1"
    assert storage.walk(folder) == {name: 1}
    storage.remove_file(f"{folder}/{name}")
    assert not storage.exists(f"{folder}/{name}")


def test_an_empty_object_is_an_object(folder: str) -> None:
    storage.write_bytes(f"{folder}/empty", b"")
    assert storage.exists(f"{folder}/empty")
    assert storage.read_bytes(f"{folder}/empty") == b""
    assert storage.size(f"{folder}/empty") == 0


def test_a_write_replaces_the_whole_object(folder: str) -> None:
    storage.write_bytes(f"{folder}/object", b"a long first version")
    storage.write_bytes(f"{folder}/object", b"short")
    assert storage.read_bytes(f"{folder}/object") == b"short"
    assert storage.size(f"{folder}/object") == 5


@pytest.mark.parametrize(("start", "length", "expected"), [(0, 3, b"012"), (4, 2, b"45"), (7, 3, b"789"), (5, 0, b"")])
def test_reads_a_range(folder: str, start: int, length: int, expected: bytes) -> None:
    storage.write_bytes(f"{folder}/object", b"0123456789")
    assert storage.read_range(f"{folder}/object", start, length) == expected


def test_a_range_past_the_end_is_cut_there(folder: str) -> None:
    storage.write_bytes(f"{folder}/object", b"0123456789")
    assert storage.read_range(f"{folder}/object", 8, 100) == b"89"
    assert storage.read_range(f"{folder}/object", 10, 5) == b""


def test_an_object_of_several_parts_reads_back(folder: str) -> None:
    data = bytes(range(256)) * (90 << 12)  # 90 MiB: more than s3fs puts in one request
    storage.write_bytes(f"{folder}/large", data)
    assert storage.size(f"{folder}/large") == len(data)
    assert storage.read_range(f"{folder}/large", len(data) - 300, 300) == data[-300:]
    assert storage.sha256(storage.read_bytes(f"{folder}/large")) == storage.sha256(data)


def test_what_is_missing_raises_file_not_found(folder: str) -> None:
    missing = f"{folder}/missing"
    assert not storage.exists(missing)
    for read in (storage.read_bytes, storage.size, storage.read_json, lambda uri: storage.read_range(uri, 0, 1)):
        with pytest.raises(FileNotFoundError):
            read(missing)


def test_lists_the_names_directly_below_a_folder(folder: str) -> None:
    for name in ("b.tar", "a.tar", "below/c.tar"):
        storage.write_bytes(f"{folder}/{name}", b"x")
    assert storage.list_names(folder) == ["a.tar", "b.tar", "below"]
    assert storage.list_names(f"{folder}/below/") == ["c.tar"]


def test_a_folder_that_is_not_there_lists_nothing(folder: str) -> None:
    assert storage.list_names(f"{folder}/nothing") == []


def test_a_folder_exists_once_something_is_in_it(folder: str) -> None:
    assert not storage.exists(f"{folder}/shards")
    storage.write_bytes(f"{folder}/shards/a", b"x")
    assert storage.exists(f"{folder}/shards")


def test_listing_sees_what_was_written_a_moment_ago(folder: str) -> None:
    storage.write_bytes(f"{folder}/first", b"x")
    assert storage.list_names(folder) == ["first"]
    storage.write_bytes(f"{folder}/second", b"x")
    assert storage.list_names(folder) == ["first", "second"]


def test_removes_a_tree_and_nothing_beside_it(folder: str) -> None:
    for name in ("old/a", "old/deep/b", "older/c"):
        storage.write_bytes(f"{folder}/{name}", b"x")
    storage.remove_tree(f"{folder}/old")
    assert storage.walk(folder) == {"older/c": 1}


def test_removing_what_is_not_there_is_no_error(folder: str) -> None:
    storage.remove_tree(f"{folder}/nothing")


def test_json_reads_back_and_has_one_spelling(folder: str) -> None:
    storage.write_json(f"{folder}/a.json", {"b": [1, 2.5], "a": "ü"})
    storage.write_json(f"{folder}/b.json", {"a": "ü", "b": [1, 2.5]})
    assert storage.read_json(f"{folder}/a.json") == {"a": "ü", "b": [1, 2.5]}
    assert storage.read_bytes(f"{folder}/a.json") == storage.read_bytes(f"{folder}/b.json")


def test_json_that_was_cut_names_the_file(folder: str) -> None:
    storage.write_bytes(f"{folder}/manifest.json", b'{"shards": [')
    with pytest.raises(UsageError, match=r"manifest\.json"):
        storage.read_json(f"{folder}/manifest.json")


def test_an_unfinished_local_write_is_not_listed_and_leaves_the_old_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes(f"{tmp_path}/object", b"old")
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", _disk_full)
        with pytest.raises(OSError, match="No space left"):
            storage.write_bytes(f"{tmp_path}/object", b"new")
    assert storage.read_bytes(f"{tmp_path}/object") == b"old"
    assert storage.list_names(str(tmp_path)) == ["object"]


def test_walks_all_files_below_a_folder_with_their_bytes(folder: str) -> None:
    for name, data in {"b": b"", "a/deep/c": b"123"}.items():
        storage.write_bytes(f"{folder}/{name}", data)
    assert storage.walk(folder) == {"a/deep/c": 3, "b": 0}
    assert storage.walk(f"{folder}/nothing") == {}


def test_reads_as_a_seekable_file(folder: str) -> None:
    storage.write_bytes(f"{folder}/object", b"0123456789")
    with storage.open_reader(f"{folder}/object") as file:
        file.seek(7)
        assert file.read() == b"789"


def test_a_wrong_secret_names_the_uri_and_what_to_check(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    monkeypatch.setattr(storage.files, "filesystem", lambda uri: fsspec.filesystem("s3", skip_instance_cache=True))
    with pytest.raises(FoldtrainError, match=rf"{s3_uri}/object.*AWS_SECRET_ACCESS_KEY"):
        storage.read_bytes(f"{s3_uri}/object")


def test_a_server_that_does_not_answer_is_tried_again_and_then_named(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = []

    def unreachable(uri: str) -> None:
        attempts.append(uri)
        raise botocore.exceptions.EndpointConnectionError(endpoint_url="http://127.0.0.1:1")

    waits: list[float] = []
    monkeypatch.setattr(storage.files, "filesystem", unreachable)
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    monkeypatch.setenv("FOLDTRAIN_STORAGE_PATIENCE", "20")
    with pytest.raises(FoldtrainError, match=r"s3://bucket/object: .*127\.0\.0\.1:1.*AWS_ENDPOINT_URL"):
        storage.read_bytes("s3://bucket/object")
    assert len(attempts) == len(waits) + 1 > 3
    assert sum(waits) <= 20


def _disk_full(_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_stat_tells_one_version_of_a_file_from_another(folder: str) -> None:
    with pytest.raises(FileNotFoundError):
        storage.stat(f"{folder}/file")
    storage.write_bytes(f"{folder}/file", b"one")
    first = storage.stat(f"{folder}/file")
    storage.write_bytes(f"{folder}/file", b"two" if storage.is_remote(folder) else b"longer")
    assert first.bytes == 3
    assert storage.stat(f"{folder}/file") != first


def test_a_stream_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    uri = str(tmp_path / "folder/file")

    def fill(draft: BinaryIO) -> None:
        draft.write(b"12")
        draft.write(b"34")

    storage.write_stream(uri, fill)
    assert storage.read_bytes(uri) == b"1234"

    def break_off(draft: BinaryIO) -> None:
        fill(draft)
        raise UsageError("no more")

    with pytest.raises(UsageError, match="no more"):
        storage.write_stream(uri, break_off)
    assert storage.read_bytes(uri) == b"1234"
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["file"]


@pytest.mark.parametrize("times", [0, 5000, 70_000])
def test_a_stream_to_a_remote_place_arrives_as_it_was_written(s3_uri: str, times: int) -> None:
    """The last goes up in parts."""
    for place in (s3_uri, "memory://streams"):
        storage.write_stream(f"{place}/file", lambda draft: draft.write(bytes(range(256)) * times))
        assert storage.read_bytes(f"{place}/file") == bytes(range(256)) * times


def test_parts_of_a_file_are_read_when_they_are_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytes(range(251)) * 11
    (tmp_path / "file").write_bytes(content)
    sent: dict[int, bytes] = {}

    def take(_: object, method: str, written: int, **arguments: Any) -> dict[str, str]:
        assert (method, written) == ("upload_part", len(arguments["Body"]))
        sent[arguments["PartNumber"]] = arguments["Body"]
        return {"ETag": ""}

    monkeypatch.setattr(object_writes._Upload, "_call", take)
    fs = SimpleNamespace(split_path=lambda uri: ("bucket", uri, None))
    with (tmp_path / "file").open("rb") as file:
        whole = object_writes.FileBytes(file)
        assert (len(whole), bytes(whole), whole[2700:9999]) == (len(content), content, content[2700:])
        object_writes._Upload(fs, "uri", whole, 1000)._send_parts()
    assert [len(sent[number]) for number in (1, 2, 3)] == [1000, 1000, 761]
    assert sent[1] + sent[2] + sent[3] == content


def test_a_stream_that_the_local_disk_does_not_take_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(FoldtrainError, match=f"{tmp_path}: No space left on device: the disk is full"):
        storage.write_stream("memory://streams/full", _disk_full)
    assert not storage.exists("memory://streams/full")
