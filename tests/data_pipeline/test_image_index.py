"""An index that anybody may have written: it fits its tar and the manifest, or it is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError
from data_pipeline.shards.image_shards import (
    ImageSample,
    finish_images,
    index_name,
    parse_index,
    read_index,
    read_indexes,
    write_image_shard,
)
from data_pipeline.shards.manifest import ImageShardRecord

NAME = "images-00000.tar"
SAMPLES = [ImageSample("c/a", 0, "jpg", b"12345"), ImageSample("c/b", 1, "png", b"67")]


def written(folder: Path) -> ImageShardRecord:
    return write_image_shard(str(folder), NAME, SAMPLES, "plan")


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> bytes:
    path = folder / index_name(NAME)
    record = json.loads(path.read_bytes())
    edit(record)
    path.write_text(json.dumps(record))
    return path.read_bytes()


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("key", ["c/a", "../../b"], "is no name below a folder"),
        ("key", ["c/a", "/b"], "is no name below a folder"),
        ("key", ["c/a"], "different lengths"),
        ("key", ["c/a", "x" * 98], "too long"),
        ("key", ["c/a", 7], "key.1"),
        ("label", [0, -1], "label.1"),
        ("label", [0, 2**40], "label.1"),
        ("label", [0, True], "label.1"),
        ("label", [0, 1, 1], "different lengths"),
        ("extension", ["jpg", "../x"], "extension.1"),
        ("offset", [512, -512], "offset.1"),
        ("offset", [512, 514], "overlap each other, or reach beyond"),
        ("offset", [0, 2560], "overlap each other, or reach beyond"),
        ("length", [5, 2**40], "overlap each other, or reach beyond"),
        ("length", [5, 2**70], "has more than 64 bits"),
        ("crc32", [0, 2**32], "crc32.1"),
        ("size", -1, "size"),
        ("sha256", "../x", "sha256"),
        ("quarantined", [{"key": "a"}], "other fields"),
        ("quarantined", [{"key": "../a", "source": "", "reason": ""}], "is no name below a folder"),
        ("extra", 1, "extra"),
    ],
)
def test_a_column_that_cannot_be_is_named(tmp_path: Path, column: str, value: object, reason: str) -> None:
    written(tmp_path)
    data = change(tmp_path, lambda record: record.update({column: value}))
    with pytest.raises(CorruptShardError, match=rf"x\.index\.json is no index of a shard \(.*{reason}"):
        parse_index("x.index.json", data)


@pytest.mark.parametrize("data", [b"[]", b"{}", b"null", b"\xff", b"[" * 100_000], ids=lambda data: repr(data[:9]))
def test_a_file_that_is_no_index_is_named(data: bytes) -> None:
    with pytest.raises(CorruptShardError, match="x is no index of a shard"):
        parse_index("x", data)


@pytest.mark.parametrize("edit", [{"label": [0, 2]}, {"size": 2**20}, {"sha256": "0" * 64}])
def test_an_index_about_something_else_than_its_shard_completes_no_data_set(
    tmp_path: Path, edit: dict[str, Any]
) -> None:
    record = written(tmp_path)
    data = change(tmp_path, lambda index: index.update(edit))
    record = record.model_copy(update={"index_sha256": storage.sha256(data)})
    assert read_index(str(tmp_path), record).key == ["c/a", "c/b"]
    with pytest.raises(CorruptShardError, match=r"images-00000\.index\.json is about another tar"):
        finish_images(str(tmp_path), read_indexes(str(tmp_path), [record]), classes=("a", "b"), split="train")
    assert not (tmp_path / "manifest.json").exists()
