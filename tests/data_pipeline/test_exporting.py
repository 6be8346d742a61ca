"""Tokens leave for other trainers whole, readable by their readers, and with a record of what they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, UsageError
from data_pipeline.shards.manifest import TokenManifest
from data_pipeline.shards.token_archive import read_token_shard
from data_pipeline.shards.token_shards import TokenBlock, write_token_shard
from data_pipeline.tokens import exporting
from data_pipeline.tokens.exporting import FORMATS, WebDatasetFormat, export_tokens, exported_files
from tests.data_pipeline.small_data import Images, contents, flip_byte, write_tokens


@pytest.fixture
def whole(tokens: Path) -> TokenBlock:
    """All samples of the data set."""
    blocks = [read_token_shard(str(tokens), shard) for shard in TokenManifest.read(str(tokens)).shards]
    return TokenBlock(
        np.concatenate([block.tokens_NWLF for block in blocks]),
        np.concatenate([block.condition for block in blocks]),
        np.concatenate([block.key for block in blocks]),
    )


def keys_of(block: TokenBlock) -> list[str]:
    return [bytes(key).decode() for key in block.key]


def test_webdataset_reads_every_sample(tokens: Path, whole: TokenBlock, tmp_path: Path) -> None:
    export_tokens(str(tokens), str(tmp_path / "out"), "webdataset")
    urls = [str(tmp_path / "out" / entry["name"]) for entry in exported_files(str(tmp_path / "out"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == keys_of(whole)
    assert [sample["cls"] for sample in samples] == whole.condition.tolist()
    assert np.array_equal([sample["tokens.npy"] for sample in samples], whole.tokens_NWLF)


def test_tars_are_of_bounded_size(tokens: Path, tmp_path: Path) -> None:
    (part,) = export_tokens(str(tokens), str(tmp_path), "webdataset", WebDatasetFormat(most_bytes=8000))["parts"]
    files = list(exported_files(str(tmp_path)))
    assert [entry["name"] for entry in files][:3] == [f"tokens-00000-00{n}.tar" for n in range(3)]
    assert max(entry["bytes"] for entry in files) <= 8000
    assert sum(entry["samples"] for entry in files) == part["samples"] == 20
    assert (part["files"], part["bytes"]) == (len(files), sum(entry["bytes"] for entry in files))


def test_numpy_reads_the_blocks(tokens: Path, whole: TokenBlock, tmp_path: Path) -> None:
    export_tokens(str(tokens), str(tmp_path / "out"), "npz")
    parts = [np.load(tmp_path / "out" / entry["name"]) for entry in exported_files(str(tmp_path / "out"))]
    assert np.array_equal(np.concatenate([part["tokens"] for part in parts]), whole.tokens_NWLF)
    assert np.array_equal(np.concatenate([part["label"] for part in parts]), whole.condition)
    assert np.array_equal(np.concatenate([part["key"] for part in parts]), whole.key)


def test_parquet_has_a_row_per_sample_and_a_list_per_view(tokens: Path, whole: TokenBlock, tmp_path: Path) -> None:
    export_tokens(str(tokens), str(tmp_path / "out"), "parquet")
    tables = [pq.read_table(tmp_path / "out" / entry["name"]) for entry in exported_files(str(tmp_path / "out"))]
    rows = [row for table in tables for row in table.to_pylist()]
    about = json.loads(tables[0].schema.metadata[b"foldtrain"])
    assert [row["key"] for row in rows] == keys_of(whole)
    assert [row["label"] for row in rows] == whole.condition.tolist()
    for number, view in enumerate(("center", "center_flip")):
        found = np.array([row[f"tokens_{view}"] for row in rows]).reshape(-1, *about["shape"])
        assert np.array_equal(found, whole.tokens_NWLF[:, number])


@pytest.mark.parametrize("name", FORMATS)
def test_the_record_says_what_the_tokens_are(tokens: Path, name: str, tmp_path: Path) -> None:
    record, manifest = export_tokens(str(tokens), str(tmp_path), name), TokenManifest.read(str(tokens))
    assert json.loads((tmp_path / "export.json").read_text()) == record
    assert record["complete"] is True
    assert record["tokens"]["fingerprint"] == manifest.fingerprint
    assert record["tokens"]["tokenizer"]["encoder"] == manifest.tokenizer.encoder
    assert record["tokens"]["source"] == manifest.source
    assert record["tokens"]["layout"] == manifest.layout.to_json()
    for entry in exported_files(str(tmp_path)):
        assert storage.sha256((tmp_path / entry["name"]).read_bytes()) == entry["sha256"]


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_tokens_give_the_same_bytes(tokens: Path, name: str, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        export_tokens(str(tokens), str(tmp_path / folder), name)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


class _InterruptionError(Exception):
    pass


def _stop(done: int, _total: int) -> None:
    if done == 2:
        raise _InterruptionError


def test_an_interrupted_export_goes_on_and_keeps_what_is_right(tokens: Path, tmp_path: Path) -> None:
    with pytest.raises(_InterruptionError):
        export_tokens(str(tokens), str(tmp_path / "out"), "npz", progress=_stop)
    assert json.loads((tmp_path / "out" / "export.json").read_text())["complete"] is False
    kept = (tmp_path / "out" / "tokens-00000.npz").stat().st_mtime_ns
    flip_byte(tmp_path / "out" / "tokens-00001.npz", 200)
    export_tokens(str(tokens), str(tmp_path / "out"), "npz")
    export_tokens(str(tokens), str(tmp_path / "fresh"), "npz")
    assert (tmp_path / "out" / "tokens-00000.npz").stat().st_mtime_ns == kept
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_what_was_lost_of_a_complete_export_is_made_again(tokens: Path, tmp_path: Path) -> None:
    first = export_tokens(str(tokens), str(tmp_path / "out"), "npz")
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "tokens-00001.npz").unlink()
    assert export_tokens(str(tokens), str(tmp_path / "out"), "npz") == first
    assert contents(tmp_path / "out") == before


def test_an_export_that_is_not_complete_lists_no_files(tokens: Path, tmp_path: Path) -> None:
    with pytest.raises(_InterruptionError):
        export_tokens(str(tokens), str(tmp_path / "out"), "npz", progress=_stop)
    with pytest.raises(UsageError, match="holds no complete export"):
        list(exported_files(str(tmp_path / "out")))


def test_what_is_written_of_records_grows_with_the_shards_and_no_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "PART_SHARDS", 4)
    written: dict[int, int] = {}
    write_json = storage.write_json
    for shards in (8, 32):
        uri = write_tokens(tmp_path / f"tokens{shards}", [2] * shards)

        def count(path: str, record: object, shards: int = shards) -> None:
            written[shards] = written.get(shards, 0) + len(storage.canonical_json(record))
            write_json(path, record)

        monkeypatch.setattr(storage, "write_json", count)
        parts = export_tokens(uri, str(tmp_path / f"out{shards}"), "npz")["parts"]
        assert [part["name"] for part in parts] == [f"export-{n:05d}.json" for n in range(shards // 4)]
        assert [entry["shard"] for entry in exported_files(str(tmp_path / f"out{shards}"))] == [
            f"tokens-{n:05d}.tar" for n in range(shards)
        ]
    assert written[32] < 4.5 * written[8]


def test_a_folder_with_another_export_is_refused(tokens: Path, tmp_path: Path) -> None:
    export_tokens(str(tokens), str(tmp_path / "out"), "npz")
    with pytest.raises(UsageError, match=r"format: npz -> parquet"):
        export_tokens(str(tokens), str(tmp_path / "out"), "parquet")


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../../secret"},
        {"name": "/etc/passwd"},
        {"name": "a/b.npz"},
        {"shard": "../x"},
        {"samples": -1},
        {"sha256": "x"},
        {"bytes": None},
        {"more": 1},
    ],
)
def test_a_record_of_files_elsewhere_is_refused_and_none_of_them_is_opened(
    tokens: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    export_tokens(str(tokens), str(tmp_path / "out"), "npz")
    path = tmp_path / "out" / "export-00000.json"
    files = json.loads(path.read_text())
    files[0] |= change
    path.write_text(json.dumps(files))
    with pytest.raises(UsageError, match=r"export-00000\.json is no list of files of an export \(0"):
        export_tokens(str(tokens), str(tmp_path / "out"), "npz")


@pytest.mark.parametrize("export_format", FORMATS)
@pytest.mark.parametrize("key", ["../../evil", "/etc/evil", "a/../../evil"])
def test_a_key_that_leads_elsewhere_is_not_written_to_any_export(
    tokens: Path, tmp_path: Path, export_format: str, key: str
) -> None:
    manifest = TokenManifest.read(str(tokens))
    block = read_token_shard(str(tokens), manifest.shards[0])
    keys = np.array([key.encode(), *block.key[1:]], "S")
    bad = TokenBlock(block.tokens_NWLF, block.condition, keys)
    shards = (write_token_shard(str(tokens), manifest.shards[0].name, bad, {}), *manifest.shards[1:])
    fields = {name: getattr(manifest, name) for name in type(manifest).model_fields if name != "fingerprint"}
    TokenManifest.build(**fields | {"shards": shards}).write(str(tokens))
    with pytest.raises(CorruptShardError, match=r"tokens-00000\.tar holds a key that cannot be"):
        export_tokens(str(tokens), str(tmp_path / "out"), export_format)
    assert contents(tmp_path / "out") == {} if (tmp_path / "out").exists() else True


def test_an_unknown_format_is_refused(tokens: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--format hdf5: choose one of webdataset, npz, parquet"):
        export_tokens(str(tokens), str(tmp_path), "hdf5")


def test_images_are_no_tokens(images: Images, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="describes images, but tokens are needed"):
        export_tokens(images.uri, str(tmp_path / "out"), "npz")


def test_a_damaged_shard_is_not_exported(tokens: Path, tmp_path: Path) -> None:
    flip_byte(tokens / "tokens-00001.tar", 800)
    with pytest.raises(CorruptShardError, match=r"tokens-00001\.tar: sample class\d/photo_\d is corrupt"):
        export_tokens(str(tokens), str(tmp_path / "out"), "npz")


def test_a_key_that_webdataset_would_cut_is_refused(tokens: Path) -> None:
    block = TokenBlock(np.zeros((1, 1, 4, 1), np.uint16), np.zeros(1, np.int32), np.array([b"photo.v2"]))
    with pytest.raises(UsageError, match=r"key photo\.v2: .* export to npz or parquet"):
        list(WebDatasetFormat().files("tokens-00000", block, TokenManifest.read(str(tokens))))


@pytest.mark.xdist_group("s3")
def test_an_export_may_go_to_s3(tokens: Path, s3_uri: str, tmp_path: Path) -> None:
    export_tokens(str(tokens), s3_uri, "webdataset")
    export_tokens(str(tokens), str(tmp_path / "local"), "webdataset")
    names = storage.list_names(s3_uri)
    assert {name: storage.read_bytes(f"{s3_uri}/{name}") for name in names} == contents(tmp_path / "local")
