"""A manifest that anybody may have written: what is in it is true in itself, or it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, UsageError
from data_pipeline.shards.manifest import (
    FileStatement,
    ImageManifest,
    ImageShardRecord,
    ShardRecord,
    TokenizerRecord,
    TokenManifest,
    read_manifest,
)
from model.layout import TokenLayout

SUM = "0" * 64
INDEX = FileStatement(bytes=9, sha256=SUM)


def images() -> dict[str, Any]:
    shard = ImageShardRecord(name="images-00000.tar", samples=2, bytes=9000, sha256=SUM, index_sha256=SUM)
    manifest = ImageManifest.build(samples=2, classes=("a",), split="train", shards=(shard,), index=INDEX)
    return manifest.model_dump(mode="json")


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
        ("count", -1, "count"),
        ("count", 2**60, "count"),
        ("count", 1.0, "count"),
        ("bytes", "9000", "bytes"),
        ("table_bytes", None, "table_bytes"),
        ("table_sha256", "../../../x", "table_sha256"),
        ("path", "../../x", "path"),
    ],
)
def test_a_statement_of_the_shards_that_cannot_be_is_named(
    tmp_path: Path, make: Callable[[], dict[str, Any]], field: str, value: object, reason: str
) -> None:
    record = make()
    record["shards"][field] = value
    put(tmp_path, record)
    with pytest.raises(UsageError, match=rf"manifest\.json is no valid manifest \(.*{reason}"):
        read_manifest(str(tmp_path))


def test_shards_in_the_manifest_itself_are_of_the_second_version_and_refused(tmp_path: Path) -> None:
    shard = {"name": "images-00000.tar", "samples": 2, "bytes": 9000, "sha256": SUM, "index_sha256": SUM}
    put(tmp_path, images() | {"version": 2, "shards": [shard]})
    with pytest.raises(UsageError, match="of version 2, but version 3 is needed: run foldtrain ingest again"):
        read_manifest(str(tmp_path))
    put(tmp_path, images() | {"shards": [shard]})
    with pytest.raises(UsageError, match=r"manifest\.json is no valid manifest \(shards"):
        read_manifest(str(tmp_path))


def test_a_manifest_stays_small_whatever_it_holds(tmp_path: Path) -> None:
    shards = (
        ImageShardRecord(name=f"images-{n:05d}.tar", samples=9, bytes=9**5, sha256=SUM, index_sha256=SUM)
        for n in range(3000)
    )
    manifest = ImageManifest.build(samples=27_000, classes=("a",), split="train", shards=shards, index=INDEX)
    manifest.write(str(tmp_path))
    assert (tmp_path / "manifest.json").stat().st_size < 1000
    read = ImageManifest.read(str(tmp_path)).shards
    assert (len(read), read.total_bytes) == (3000, 3000 * 9**5)
    assert read[2999].name == "images-02999.tar"


def test_what_needs_no_shard_reads_no_table(tmp_path: Path) -> None:
    put(tmp_path, images())  # without shards.bin
    manifest = ImageManifest.read(str(tmp_path))
    assert (len(manifest.shards), manifest.shards.total_bytes, manifest.samples) == (1, 9000, 2)
    with pytest.raises(CorruptShardError, match=r"shards\.bin is missing: run foldtrain ingest again"):
        manifest.shards[0]


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        (None, "index: it states no index of its samples"),
        ({"bytes": 9}, "index.sha256"),
        ({"bytes": -9, "sha256": SUM}, "index.bytes"),
        ({"bytes": 9, "sha256": "../x"}, "index.sha256"),
        ({"bytes": 9, "sha256": SUM, "name": "x"}, "index.name"),
    ],
)
def test_a_statement_of_the_index_that_cannot_be_is_named(tmp_path: Path, index: object, reason: str) -> None:
    put(tmp_path, images() | {"index": index})
    with pytest.raises(UsageError, match=rf"manifest\.json is no valid manifest \({reason}"):
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
