"""The table of a data set's shards: the records that were written, checked once, whoever wrote the file."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, UsageError
from data_pipeline.node.node_cache import NodeCache
from data_pipeline.shards import shard_table
from data_pipeline.shards.column_file import Columns, write_columns
from data_pipeline.shards.manifest import FileStatement, ImageManifest
from data_pipeline.shards.shard_table import ImageShardRecord, ShardRecord, ShardTable, TableStatement, shard_uri


def record(number: int, **fields: Any) -> ImageShardRecord:
    made = {"name": f"images-{number:05d}.tar", "samples": 2 + number, "bytes": 9000 + number}
    made |= {"sha256": f"{number:064x}", "index_sha256": f"{number + 7:064x}"}
    return ImageShardRecord(**(made | fields))


@pytest.fixture
def memory_uri() -> Iterator[str]:
    import fsspec

    uri = f"memory://{uuid4().hex}"
    yield uri
    fsspec.filesystem("memory").rm(uri, recursive=True)


INDEX = FileStatement(bytes=1, sha256="0" * 64)
RECORDS = [record(number) for number in range(5)]


def manifest(records: list[ImageShardRecord]) -> ImageManifest:
    samples = sum(each.samples for each in records)
    return ImageManifest.build(samples=samples, classes=("a",), split="train", shards=records, index=INDEX)


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    far = record(5, folder="s3://other/train")
    manifest([*RECORDS, far]).write(str(tmp_path))
    table = ImageManifest.read(str(tmp_path)).shards
    assert list(table) == [*RECORDS, far]
    assert (table[1:3], table[-1], len(table)) == (tuple(RECORDS[1:3]), far, 6)
    assert table == [*RECORDS, far]
    assert table != [*RECORDS, RECORDS[0]]
    assert table.starts.tolist() == [0, 2, 5, 9, 14, 20, 27]
    assert table.sizes.tolist() == [9000 + number for number in range(6)]
    with pytest.raises(IndexError):
        table[6]


def test_the_columns_are_read_only_and_the_file_is_the_same_each_time(tmp_path: Path) -> None:
    for name in "ab":
        manifest(RECORDS).write(str(tmp_path / name))
    assert (tmp_path / "a/shards.bin").read_bytes() == (tmp_path / "b/shards.bin").read_bytes()
    with pytest.raises(ValueError, match="read-only"):
        ImageManifest.read(str(tmp_path / "a")).shards.starts[0] = 1


def test_a_process_that_gets_a_manifest_reads_the_table_itself(tmp_path: Path) -> None:
    manifest(RECORDS).write(str(tmp_path))
    held = ImageManifest.read(str(tmp_path))
    assert held.shards[0] == RECORDS[0]
    data = pickle.dumps(held)
    assert list(pickle.loads(data).shards) == RECORDS
    assert RECORDS[0].name.encode() not in data


def test_a_remote_table_is_read_once_for_a_node(tmp_path: Path, memory_uri: str) -> None:
    import fsspec

    manifest(RECORDS).write(memory_uri)
    cache = NodeCache(str(tmp_path / "cache"))
    assert list(ImageManifest.read(memory_uri).shards.through(cache)) == RECORDS
    fsspec.filesystem("memory").rm(f"{memory_uri}/shards.bin")
    assert list(ImageManifest.read(memory_uri).shards.through(cache)) == RECORDS
    with pytest.raises(CorruptShardError, match=r"shards\.bin is missing: run foldtrain ingest again"):
        ImageManifest.read(memory_uri).shards[0]


@pytest.mark.parametrize("cached", [False, True])
def test_a_damaged_table_is_named_with_the_remedy(tmp_path: Path, memory_uri: str, *, cached: bool) -> None:
    import fsspec

    manifest(RECORDS).write(memory_uri)
    whole = fsspec.filesystem("memory").cat(f"{memory_uri}/shards.bin")
    for damaged, reason in (
        (whole[:-1], f"it has {len(whole) - 1:,} bytes, and {len(whole):,} in the manifest"),
        (whole[:-1] + b"x", "its sha256 is not that of the manifest"),
    ):
        fsspec.filesystem("memory").pipe(f"{memory_uri}/shards.bin", damaged)
        table = ImageManifest.read(memory_uri).shards
        table = table.through(NodeCache(str(tmp_path / "cache"))) if cached else table
        with pytest.raises(
            CorruptShardError, match=rf"shards\.bin is no table of images .*\({reason}\): run foldtrain"
        ):
            table[0]


def columns(edit: Callable[[dict[str, Any]], object]) -> Columns:
    held = shard_table._columns_of(RECORDS, with_indexes=True)
    arrays = {name: array.copy() for name, array in held.arrays.items()}
    edit(arrays)
    return Columns(arrays, held.texts)


def put(column: str, row: int, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda arrays: arrays[column].__setitem__(row, value)


def replaced(column: str, make: Callable[[Any], Any]) -> Callable[[dict[str, Any]], object]:
    return lambda arrays: arrays.update({column: make(arrays[column])})


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (put("name", 1, b"images-1.tar"), "a shard of images is not called 'images-1.tar'"),
        (put("name", 1, b"tokens-00001.tar"), "a shard of images is not called 'tokens-00001.tar'"),
        (put("name", 1, b"../ages-00001.ta"), "a shard of images is not called"),
        (put("name", 1, b"images-00001\ntar"), "a shard of images is not called"),
        (put("name", 1, b"images-00001\0tar"), "a shard of images is not called"),
        (put("name", 1, b"images-00000.tar"), "it names a shard twice"),
        (put("start", 0, 1), "negative numbers"),
        (put("start", 2, 1), "negative numbers"),
        (put("start", 2, -(2**63)), "negative numbers"),
        (put("start", 5, 21), "its shards have 21 samples, the manifest states 20"),
        (put("bytes", 2, -1), "negative numbers"),
        (put("bytes", 2, 2**60), "beyond all bounds"),
        (put("bytes", 2, 9003), "its shards have 45011 bytes, the manifest states 45010"),
        (put("bytes", 2, 4095), "images-00002.tar has no room for 4 samples in 4095 bytes"),
        (put("folder", 2, 1), "it has 1 folders, and a shard of another"),
        (replaced("start", lambda held: held[:-1]), "not of 5 shards"),
        (replaced("sha256", lambda held: held[:, :31]), "column sha256 holds uint8"),
        (replaced("sha256", lambda held: held.astype("<u4")), "column sha256 holds uint32"),
        (replaced("bytes", lambda held: held.astype("<i4")), "column bytes holds int32"),
        (lambda arrays: arrays.pop("index_sha256"), "its columns are bytes, folder"),
    ],
)
def test_content_that_cannot_be_is_refused(edit: Callable[[dict[str, Any]], object], reason: str) -> None:
    statement = ShardTable.of(ImageShardRecord, "images", RECORDS).statement
    made = columns(edit)
    if "4095" in reason:
        statement = statement.model_copy(update={"bytes": int(made.arrays["bytes"].sum())})
    with pytest.raises(ValueError, match=reason):
        ShardTable(ImageShardRecord, statement, made).check("images", 20, 1024)


@pytest.mark.parametrize("texts", [{}, {"folders": []}, {"folders": ["a\nb"]}, {"folders": [""], "others": []}])
def test_a_table_without_a_folder_for_its_shards_is_refused(texts: dict[str, list[str]]) -> None:
    statement = ShardTable.of(ImageShardRecord, "images", RECORDS).statement
    made = Columns(columns(lambda _: None).arrays, texts)
    with pytest.raises(ValueError, match=r"lists of text|it has 0 folders|is no folder of shards"):
        ShardTable(ImageShardRecord, statement, made).check("images", 20, 1024)


def test_a_stored_table_is_checked_before_a_record_of_it_is_given(tmp_path: Path) -> None:
    made = columns(put("name", 1, b"images-1.tar"))
    kind, as_columns = "table of images shards", shard_table._as_columns(made)
    written = write_columns(str(tmp_path / "shards.bin"), kind, as_columns, made.texts)
    statement = TableStatement(count=5, bytes=45010, table_bytes=written.bytes, table_sha256=written.sha256)
    table = ShardTable(ImageShardRecord, statement)
    forged = ImageManifest.build(samples=20, classes=("a",), split="train", shards=table, index=INDEX)
    storage.write_json(str(tmp_path / "manifest.json"), {**forged.content(), "fingerprint": forged.fingerprint})
    with pytest.raises(CorruptShardError, match=r"shards\.bin is no table of images shards \(a shard of images is not"):
        ImageManifest.read(str(tmp_path)).shards[0]


@pytest.mark.parametrize(
    ("data_set", "folder", "expected"),
    [
        ("/data/a", "", "/data/a/tokens-00000.tar"),
        ("/data/a", "../b", "/data/a/../b/tokens-00000.tar"),
        ("/data/a", "/c/d/", "/c/d/tokens-00000.tar"),
        ("/data/a", "s3://bucket/x", "s3://bucket/x/tokens-00000.tar"),
        ("s3://bucket/a/b/", "../c", "s3://bucket/a/c/tokens-00000.tar"),
        ("s3://bucket/a/b", "c", "s3://bucket/a/b/c/tokens-00000.tar"),
        ("s3://bucket/a/b", "gs://other/c", "gs://other/c/tokens-00000.tar"),
    ],
)
def test_a_shard_lies_in_its_data_set_or_in_the_folder_that_it_names(data_set: str, folder: str, expected: str) -> None:
    shard = ShardRecord(name="tokens-00000.tar", samples=1, bytes=1, sha256="0" * 64, folder=folder)
    assert shard_uri(data_set, shard) == expected


@pytest.mark.parametrize("folder", ["../../../other", "/etc", "file:///etc"])
def test_a_remote_data_set_names_no_folder_of_this_machine_and_none_above_its_bucket(folder: str) -> None:
    shard = ShardRecord(name="tokens-00000.tar", samples=1, bytes=1, sha256="0" * 64, folder=folder)
    with pytest.raises(UsageError, match=r"s3://bucket/a/b says that its shards lie in"):
        shard_uri("s3://bucket/a/b", shard)


@pytest.mark.parametrize("folder", ["a\nb", "a\x1b[2J", "x" * 1025, "a\\b"])
def test_a_folder_with_control_characters_is_none(folder: str) -> None:
    with pytest.raises(ValueError, match="is no folder of shards"):
        record(0, folder=folder)
