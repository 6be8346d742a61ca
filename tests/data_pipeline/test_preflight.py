"""Damage is found before work starts, and named by shard and key."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, UsageError
from data_pipeline.ingest.ingesting import ingest
from data_pipeline.shards.image_shards import ImageShards
from data_pipeline.shards.manifest import ImageManifest
from data_pipeline.shards.token_dataset import TokenShards
from data_pipeline.storage.tar import read_members
from data_pipeline.tokens.plan import TokenPlan
from data_pipeline.tools import editing, one_pass, preflight
from data_pipeline.tools.preflight import check_images, check_tokens
from tests.data_pipeline.small_data import Images, contents, flip_byte, tokenize_all


def test_what_was_written_passes(images: Images, tokens: Path) -> None:
    assert check_images(images.uri).samples == 20
    assert check_tokens(str(tokens)).samples == 20


@pytest.mark.parametrize("check", [check_images, check_tokens])
def test_a_data_set_that_is_not_complete_names_the_command_to_run(check: object, tmp_path: Path) -> None:
    assert callable(check)
    with pytest.raises(UsageError, match=r"no complete data set .* run foldtrain (ingest|tokenize) first"):
        check(str(tmp_path))


@pytest.mark.parametrize("part", [0, 1, 2, 3], ids=["header", "image", "label's header", "label"])
def test_any_damaged_byte_of_an_image_shard_is_traced_to_its_sample(images: Images, part: int) -> None:
    path = images.folder / "images-00001.tar"
    image, label = read_members(str(path))[4:6]
    flip_byte(
        path, [image.offset - 512 + 3, image.offset + image.length // 2, label.offset - 512 + 3, label.offset][part]
    )
    key = re.escape(image.name.removesuffix(".jpg"))
    with pytest.raises(CorruptShardError, match=rf"images-00001\.tar: sample {key} is corrupt .*; delete the shard"):
        check_images(images.uri)


def test_a_shard_that_was_cut_is_traced_to_its_first_sample_that_is_not_whole(images: Images) -> None:
    path = images.folder / "images-00001.tar"
    image = read_members(str(path))[4]
    path.write_bytes(path.read_bytes()[: image.offset + 10])
    key = re.escape(image.name.removesuffix(".jpg"))
    with pytest.raises(CorruptShardError, match=rf"images-00001\.tar: sample {key} is corrupt"):
        check_images(images.uri)


@pytest.mark.parametrize("name", ["images-00001.tar", "index.bin", "shards.bin"])
def test_a_file_that_is_gone_is_named(images: Images, name: str) -> None:
    (images.folder / name).unlink()
    with pytest.raises(
        CorruptShardError, match=rf"{name} is missing; run foldtrain ingest again|{name} is missing: run"
    ):
        check_images(images.uri)


def test_a_damaged_index_is_named(images: Images) -> None:
    flip_byte(images.folder / "index.bin", 700)
    with pytest.raises(CorruptShardError, match=r"index\.bin .*its sha256 is not that of.*: run foldtrain"):
        check_images(images.uri)
    (images.folder / "index.bin").write_bytes(b"x")
    with pytest.raises(CorruptShardError, match=r"index\.bin has 1 bytes, \d+ in the manifest: run foldtrain"):
        check_images(images.uri)


def test_a_manifest_that_was_edited_is_refused(images: Images) -> None:
    path = images.folder / "manifest.json"
    path.write_text(path.read_text().replace('"split": "train"', '"split": "other"'))
    with pytest.raises(UsageError, match="does not have the fingerprint that it states"):
        ImageManifest.read(images.uri)


def test_the_remedy_that_is_named_mends_it(images: Images, tmp_path: Path) -> None:
    before = contents(images.folder)
    flip_byte(images.folder / "images-00001.tar", 700)
    (images.folder / "images-00001.tar").unlink()
    ingest(images.config, str(tmp_path / "images"), seed=0)
    assert contents(images.folder) == before


def test_reading_a_damaged_image_names_shard_and_key(images: Images) -> None:
    image = read_members(str(images.folder / "images-00000.tar"))[2]
    flip_byte(images.folder / "images-00000.tar", image.offset + 5)
    shards = ImageShards(images.uri)
    with pytest.raises(CorruptShardError, match=rf"images-00000\.tar: sample {re.escape(shards.key(1))} is corrupt"):
        shards.read(1)


@pytest.mark.parametrize("field", ["tokens", "condition", "crc"])
def test_any_damaged_row_of_a_token_shard_is_traced_to_its_sample(tokens: Path, field: str) -> None:
    path = tokens / "tokens-00001.tar"
    key = bytes(TokenShards(str(tokens)).keys[8 + 3]).decode()
    member = next(m for m in read_members(str(path)) if m.name == f"tokens-00001.{field}.npy")
    row = (member.length - 128) // 8
    flip_byte(path, member.offset + 128 + 3 * row)
    with pytest.raises(CorruptShardError, match=rf"tokens-00001\.tar: sample {key} is corrupt .*; delete the shard"):
        check_tokens(str(tokens))


def test_damaged_headers_of_a_token_shard_are_named(tokens: Path) -> None:
    flip_byte(tokens / "tokens-00001.tar", 3)
    with pytest.raises(CorruptShardError, match=r"tokens-00001\.tar: .*headers are corrupt"):
        check_tokens(str(tokens))


def test_the_folder_is_listed_once_and_no_shard_is_held_whole(tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed, walk = [], storage.walk
    monkeypatch.setattr(storage, "walk", lambda uri: listed.append(uri) or walk(uri))
    monkeypatch.setattr(one_pass, "PIECE_BYTES", 1000)
    read, read_range = [], storage.read_range
    monkeypatch.setattr(
        storage, "read_range", lambda uri, start, length: read.append(length) or read_range(uri, start, length)
    )
    manifest = check_tokens(str(tokens))
    assert listed == [str(tokens)]
    assert max(read) == 1000
    assert sum(read) == manifest.shards.total_bytes


def test_large_sets_are_compared_by_size_alone(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "DIGEST_LIMIT", 10)
    flip_byte(images.folder / "images-00001.tar", 700)
    check_images(images.uri)
    with (images.folder / "images-00001.tar").open("ab") as file:
        file.write(b"more")
    with pytest.raises(CorruptShardError, match=r"images-00001\.tar"):
        check_images(images.uri)


def test_the_checks_import_neither_torch_nor_ray() -> None:
    code = (
        "import sys, data_pipeline.tools.preflight, data_pipeline.ingest.ingesting\n"
        "assert not {'torch', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_joined_views_are_checked_in_the_shards_of_all_their_sets(
    make_plan: Callable[..., TokenPlan], tmp_path: Path
) -> None:
    plans = [make_plan(name, flip=False, views=(name,)) for name in ("center", "center_flip")]
    for plan in plans:
        tokenize_all(plan)
    uri = str(tmp_path / "joined")
    editing.views([plan.output for plan in plans], uri).write(say=lambda _: None)
    assert check_tokens(uri).views == ("center", "center_flip")
    (Path(plans[1].output) / "tokens-00001.tar").unlink()
    with pytest.raises(CorruptShardError, match=r"center_flip/tokens-00001\.tar is missing"):
        check_tokens(uri)
