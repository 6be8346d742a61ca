"""Every source at an S3 URI is what it is on a disk."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from data_pipeline import storage
from data_pipeline.config import DataConfig, FolderSource
from data_pipeline.errors import UsageError
from data_pipeline.ingest.ingesting import ingest
from data_pipeline.sources import open_source
from tests.data_pipeline.raw_data import every_source, upload, write_every_source
from tests.data_pipeline.small_data import data_sets, jpeg


@pytest.fixture
def near(tmp_path: Path) -> Path:
    write_every_source(tmp_path / "raw")
    return tmp_path / "raw"


@pytest.mark.xdist_group("s3")
def test_every_source_is_listed_and_read_on_s3_as_on_a_disk(near: Path, s3_uri: str) -> None:
    upload(near, s3_uri)
    for here, there in zip(every_source(str(near)), every_source(s3_uri), strict=True):
        one, other = open_source(here), open_source(there)
        assert other.items == one.items, here
        assert other.classes == one.classes
        assert other.identity() == one.identity()
        assert [other.reader.read(item) for item in other.items] == [one.reader.read(item) for item in one.items]


@pytest.mark.xdist_group("s3")
def test_every_source_gives_the_same_data_set_from_s3_to_s3(near: Path, s3_uri: str, tmp_path: Path) -> None:
    upload(near, f"{s3_uri}/raw")
    pairs = zip(every_source(str(near)), every_source(f"{s3_uri}/raw"), strict=True)
    for number, (here, there) in enumerate(pairs):
        local, remote = tmp_path / str(number), f"{s3_uri}/{number}"
        ingest(DataConfig(source=here, shard_samples=5), str(local), seed=0)
        ingest(DataConfig(source=there, shard_samples=5), remote, seed=0)
        names = [name for name in storage.walk(remote) if name.startswith("train/")]
        assert {name: storage.read_bytes(f"{remote}/{name}") for name in names} == data_sets(local), here


def test_every_reader_works_in_another_process(near: Path) -> None:
    for config in every_source(str(near)):
        source = open_source(config)
        reader = pickle.loads(pickle.dumps(source.reader))
        assert [reader.read(item) for item in source.items] == [source.reader.read(item) for item in source.items]


@pytest.mark.xdist_group("s3")
def test_a_class_folder_that_is_empty_on_s3_is_named_if_it_has_an_object(s3_uri: str) -> None:
    storage.write_bytes(f"{s3_uri}/cat/1.jpg", jpeg(1))
    bucket, key, _ = storage.filesystem(s3_uri).split_path(f"{s3_uri}/dog/")
    storage.filesystem(s3_uri).call_s3("put_object", Bucket=bucket, Key=key.rstrip("/") + "/", Body=b"")
    with pytest.raises(UsageError, match=r"class folders without images \(1\): dog"):
        open_source(FolderSource(path=s3_uri))
    allowed = open_source(FolderSource(path=s3_uri, allow_empty_classes=True))
    assert (allowed.classes, len(allowed.items)) == (("cat", "dog"), 1)


@pytest.mark.xdist_group("s3")
def test_hidden_objects_on_s3_are_counted(s3_uri: str) -> None:
    for name in ("cat/1.jpg", "cat/._1.jpg", "cat/.DS_Store", ".cache/x/1.jpg", ".cache/y/2.jpg"):
        storage.write_bytes(f"{s3_uri}/{name}", jpeg(1))
    source = open_source(FolderSource(path=s3_uri))
    assert (source.classes, len(source.items)) == (("cat",), 1)
    assert source.skipped == {"hidden": 1, "of an operating system": 2}
