"""A manifest that anybody may have written: what is in it is true in itself, or it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards.manifest import (
    ImageManifest,
    ImageShardRecord,
    ShardRecord,
    TokenizerRecord,
    TokenManifest,
    read_manifest,
)
from model.layout import TokenLayout

SUM = "0" * 64


def images() -> dict[str, Any]:
    shard = ImageShardRecord(name="images-00000.tar", samples=2, bytes=9000, sha256=SUM, index_sha256=SUM)
    return ImageManifest.build(samples=2, classes=("a",), split="train", shards=(shard,)).model_dump(mode="json")


def tokens() -> dict[str, Any]:
    manifest = TokenManifest.build(
        samples=2,
        classes=("a",),
        layout=TokenLayout((1, 4), (16, 16)),
        views=("center",),
        image_size=32,
        fit="crop",
        tokenizer=TokenizerRecord(encoder=SUM, config={}),
        source=SUM,
        software={},
        shards=(ShardRecord(name="tokens-00000.tar", samples=2, bytes=9000, sha256=SUM),),
    )
    return manifest.model_dump(mode="json") | {"decode": "turbo", "precision": "bf16"}


def put(folder: Path, record: dict[str, Any]) -> None:
    """As an attacker does: with the fingerprint that belongs to it."""
    content = {name: record[name] for name in record if name not in {"fingerprint", "quarantined"}}
    record = {**content, "fingerprint": storage.fingerprint(content)}
    (folder / "manifest.json").write_text(json.dumps(record))


@pytest.mark.parametrize("make", [images, tokens])
def test_what_was_not_changed_is_read(tmp_path: Path, make: Callable[[], dict[str, Any]]) -> None:
    put(tmp_path, make())
    assert read_manifest(str(tmp_path)).samples == 2


@pytest.mark.parametrize("make", [images, tokens])
@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("name", "../../etc/images-00000.tar", "name"),
        ("name", "/images-00000.tar", "name"),
        ("name", "images-00000.tar\x00", "name"),
        ("name", "other.tar", "name"),
        ("sha256", "../../../x", "sha256"),
        ("samples", -2, "samples"),
        ("samples", 2**60, "samples"),
        ("samples", 2.0, "samples"),
        ("samples", "2", "samples"),
        ("samples", 3, "its shards have 3 samples, it states 2"),
        ("bytes", -1, "bytes"),
        ("bytes", 3, "has no room for 2 samples in 3 bytes"),
    ],
)
def test_a_shard_that_cannot_be_is_named(
    tmp_path: Path, make: Callable[[], dict[str, Any]], field: str, value: object, reason: str
) -> None:
    record = make()
    record["shards"][0][field] = value
    put(tmp_path, record)
    with pytest.raises(UsageError, match=rf"manifest\.json is no valid manifest \(.*{reason}"):
        read_manifest(str(tmp_path))


def test_a_shard_that_is_named_twice_or_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    record = images()
    put(tmp_path, record | {"samples": 4, "shards": record["shards"] * 2})
    with pytest.raises(UsageError, match="names a shard twice"):
        read_manifest(str(tmp_path))
    record["shards"][0]["name"] = "tokens-00000.tar"
    put(tmp_path, record)
    with pytest.raises(UsageError, match="a shard of images is not called tokens-00000"):
        read_manifest(str(tmp_path))


@pytest.mark.parametrize(
    "layout",
    [
        {"groups": [2**40], "vocabularies": [16, 16]},
        {"groups": [1] * 100_000, "vocabularies": [16, 16]},
        {"groups": [1], "vocabularies": [-1]},
        {"groups": [1], "vocabularies": [16, 2**40]},
    ],
)
def test_a_layout_beyond_all_bounds_is_refused(tmp_path: Path, layout: dict[str, Any]) -> None:
    put(tmp_path, tokens() | {"layout": layout})
    with pytest.raises(UsageError, match=r"layout: |a layout has"):
        read_manifest(str(tmp_path))


@pytest.mark.parametrize(
    "data",
    [b"[" * 100_000, b"null", b"[]", b'{"kind": ["images"]}', b'{"kind": {}}', b"\xff"],
    ids=lambda data: repr(data[:16]),
)
def test_a_file_that_is_no_record_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(UsageError, match=r"manifest\.json"):
        read_manifest(str(tmp_path))


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        ({"groups": [1, 4], "vocabularies": [16, 16], "scales": [1, 2]}, "a layout has groups and vocabularies"),
        ({"groups": [1, 4]}, "a layout has groups and vocabularies"),
        ({"groups": [1, 4.0], "vocabularies": [16]}, "groups of a layout is a list of whole numbers"),
        ({"groups": "14", "vocabularies": [16]}, "groups of a layout is a list of whole numbers"),
    ],
)
def test_a_layout_is_groups_and_vocabularies_and_nothing_else(
    tmp_path: Path, layout: dict[str, Any], reason: str
) -> None:
    put(tmp_path, tokens() | {"layout": layout})
    with pytest.raises(UsageError, match=rf"manifest\.json is no valid manifest \(layout: {reason}"):
        read_manifest(str(tmp_path))
