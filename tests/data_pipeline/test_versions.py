"""What another version of foldtrain wrote is refused by name: what was found, which version is needed, what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.ingest.ingesting import ingest
from data_pipeline.node.node_cache import NodeCache
from data_pipeline.shards.image_shards import ImageShards
from data_pipeline.shards.manifest import ImageManifest, TokenManifest, read_manifest
from data_pipeline.shards.token_archive import parse_token_shard, read_columns, read_token_shard
from data_pipeline.shards.token_dataset import TokenShards
from data_pipeline.shards.versions import check_version
from data_pipeline.storage.tar import list_members, write_tar
from data_pipeline.tokens.exporting import export_tokens
from data_pipeline.tokens.tokenizing import TokenPlan, finish, missing, tokenize_shard
from data_pipeline.tools.preflight import check_tokens
from data_pipeline.tools.verifying import verify
from tests.data_pipeline.small_data import Images, contents, encode, tokenize_all

Plans = Callable[..., TokenPlan]


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Another record in its place; a manifest with the fingerprint that belongs to it."""
    record = json.loads(path.read_bytes())
    edit(record)
    if "fingerprint" in record:
        content = {name: record[name] for name in record if name != "fingerprint"}
        record["fingerprint"] = storage.fingerprint(content)
    path.write_bytes(storage.canonical_json(record))


def first_version(record: dict[str, Any]) -> None:
    record["version"] = 1
    record.pop("condition", None)


def old_shard(archive: bytes, stem: str) -> bytes:
    """A shard as the first version wrote it: a member label, and no version in its meta.json."""
    files = []
    for member in list_members(archive):
        data = archive[member.offset : member.offset + member.length]
        if member.name == f"{stem}.meta.json":
            meta = json.loads(data)
            del meta["version"], meta["condition"]
            data = storage.canonical_json(meta)
        files.append((member.name.replace(".condition.", ".label."), data))
    return write_tar(files)[0]


@pytest.mark.parametrize("open_it", [read_manifest, TokenManifest.read, TokenShards, check_tokens, verify])
def test_a_token_data_set_of_the_first_version_is_refused_whoever_opens_it(
    tokens: Path, open_it: Callable[[str], object]
) -> None:
    change(tokens / "manifest.json", first_version)
    with pytest.raises(
        UsageError,
        match=r"manifest\.json is a manifest of tokens of version 1, but version 3 is needed: "
        r"make the tokens anew in another folder, by foldtrain tokenize",
    ):
        open_it(str(tokens))


def test_images_of_the_first_version_are_refused_and_ingest_writes_their_manifest_anew(
    images: Images, tmp_path: Path
) -> None:
    before = contents(images.folder)
    change(images.folder / "manifest.json", first_version)
    with pytest.raises(UsageError, match=r"images of version 1, but version 3 is needed: run foldtrain ingest"):
        ImageShards(images.uri)
    ingest(images.config, str(tmp_path / "images"), seed=0)
    assert contents(images.folder) == before


def test_a_newer_version_asks_for_a_newer_foldtrain(tokens: Path) -> None:
    change(tokens / "manifest.json", lambda record: record.update(version=4))
    with pytest.raises(UsageError, match="of version 4, but version 3 is needed: update foldtrain"):
        TokenManifest.read(str(tokens))


@pytest.mark.parametrize("found", [None, "2", 2.0, True, [2], {}])
def test_what_is_no_version_is_none(found: object) -> None:
    with pytest.raises(UsageError, match="x is a thing of no version, but version 2 is needed: mend it"):
        check_version("x", "a thing", found, 2, "mend it")


def test_an_interrupted_tokenize_of_the_first_version_is_refused_and_left_as_it_is(make_plan: Plans) -> None:
    plan = make_plan()
    tokenize_shard(plan, plan.shards[0], ImageShards(plan.images), encode)
    change(Path(plan.output) / "tokens-00000.json", lambda record: record.pop("version"))
    before = contents(Path(plan.output))
    for act in (missing, finish):
        with pytest.raises(
            UsageError,
            match=r"tokens-00000\.json is a commit record of a token shard of no version, but version 2 is needed: "
            r"choose another tokens\.output, or delete that folder",
        ):
            act(plan)
    assert contents(Path(plan.output)) == before


def test_a_tar_of_the_first_version_that_was_never_committed_is_made_anew(tokens: Path, make_plan: Plans) -> None:
    before = contents(tokens)
    (tokens / "manifest.json").unlink()
    (tokens / "tokens-00001.json").unlink()
    path = tokens / "tokens-00001.tar"
    path.write_bytes(old_shard(path.read_bytes(), "tokens-00001"))
    tokenize_all(make_plan())
    assert contents(tokens) == before


def test_a_shard_of_the_first_version_is_named_as_such_and_not_as_damaged(tokens: Path) -> None:
    shard = TokenManifest.read(str(tokens)).shards[0]
    path = tokens / shard.name
    path.write_bytes(old_shard(path.read_bytes(), "tokens-00000"))
    old = shard.model_copy(update={"bytes": path.stat().st_size, "sha256": storage.sha256(path.read_bytes())})
    for read in (
        lambda: read_token_shard(str(tokens), old),
        lambda: read_columns(str(tokens), old),
        lambda: parse_token_shard(str(path), path.read_bytes()),
    ):
        with pytest.raises(UsageError, match=r"tokens-00000\.tar is a token shard of no version, but version 2 is"):
            read()


def test_a_copy_of_the_first_version_on_a_node_is_never_opened(tokens: Path, tmp_path: Path) -> None:
    """Copies are named by the manifest's fingerprint, and the version is part of that."""
    cache = NodeCache(str(tmp_path / "cache"))
    manifest = TokenManifest.read(str(tokens))
    old = storage.fingerprint({**manifest.content(), "version": 1})
    with cache.open(f"{old}.tokens", 100, lambda draft: draft.write(bytes(100))):
        pass
    assert columns_of(TokenShards(str(tokens), cache)) == columns_of(TokenShards(str(tokens)))
    assert len(list(cache.folder.glob("*.tokens"))) == 2


def columns_of(shards: TokenShards) -> list[Any]:
    return [*shards.keys.tolist(), *shards.conditions.tolist()]


def test_an_export_of_the_first_version_is_not_gone_on_with(tokens: Path, tmp_path: Path) -> None:
    export_tokens(str(tokens), str(tmp_path / "out"), "npz")
    change(tmp_path / "out/export.json", lambda record: record.pop("version"))
    with pytest.raises(UsageError, match=r"export\.json is a record of an export of no version.*choose another --to"):
        export_tokens(str(tokens), str(tmp_path / "out"), "npz")


def test_conditions_of_an_unknown_kind_are_refused_with_what_is_supported(tokens: Path) -> None:
    change(tokens / "manifest.json", lambda record: record.update(condition={"kind": "text"}))
    with pytest.raises(UsageError, match=r"conditions of kind 'text' are not supported, only of kind class"):
        TokenManifest.read(str(tokens))


def test_every_record_states_its_version(tokens: Path, images: Images) -> None:
    shard = TokenManifest.read(str(tokens)).shards[0]
    archive = (tokens / shard.name).read_bytes()
    place = next(member for member in list_members(archive) if member.name.endswith(".meta.json"))
    meta = json.loads(archive[place.offset : place.offset + place.length])
    records = [meta, *(json.loads((tokens / name).read_bytes()) for name in ("manifest.json", "tokens-00000.json"))]
    assert [record["version"] for record in records] == [2, 3, 2]
    assert meta["condition"] == {"kind": "class"}
    assert ImageManifest.read(images.uri).version == 3
