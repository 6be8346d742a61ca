"""verify finds what is wrong with a data set that was made of others, or with its parents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.config import DataConfig, FolderSource, TokensConfig
from data_pipeline.ingest.ingesting import ingest
from data_pipeline.shards.joined_index import IndexPart, JoinedIndex
from data_pipeline.shards.manifest import ImageManifest, TokenManifest
from data_pipeline.tools import editing
from data_pipeline.tools.checks import Report
from data_pipeline.tools.choosing import Choice
from data_pipeline.tools.leftovers import find_leftovers
from data_pipeline.tools.reusing import plan_reuse
from data_pipeline.tools.verifying import verify
from tests.data_pipeline.small_data import Images, flip_byte, jpeg, tokenize_all, tokenizer_card


def wrong(report: Report) -> dict[str, tuple[str, ...]]:
    return {check.name: check.problems for check in report.checks if not check.passed}


@pytest.fixture
def few(tmp_path: Path, tokens: Path) -> str:
    editing.subset(str(tokens), str(tmp_path / "few"), Choice(classes=("class1",))).write(say=lambda _: None)
    return str(tmp_path / "few")


@pytest.fixture
def few_images(tmp_path: Path, images: Images) -> str:
    editing.subset(images.uri, str(tmp_path / "few images"), Choice(first=9)).write(say=lambda _: None)
    return str(tmp_path / "few images")


@pytest.mark.parametrize("quick", [False, True])
def test_what_was_made_of_sound_sets_is_right(
    few: str, few_images: str, tokens: Path, images: Images, tmp_path: Path, quick: bool
) -> None:
    mixed = str(tmp_path / "mixed")
    editing.mix({few: 2, str(tokens): 1}, mixed).write(say=lambda _: None)
    for uri in (few, few_images, mixed):
        report = verify(uri, quick=quick)
        assert wrong(report) == {}
        assert {check.name for check in report.checks} >= (
            {"manifest", "parents", "shards"} if uri == few_images else {"lineage"}
        )


def test_appended_tokens_are_held_against_appended_images(tmp_path: Path, images: Images, tokens: Path) -> None:
    (tmp_path / "photo" / "class0").mkdir(parents=True)
    (tmp_path / "photo" / "class0" / "last.jpg").write_bytes(jpeg(999))
    ingest(DataConfig(source=FolderSource(path=str(tmp_path / "photo"))), str(tmp_path / "last"), seed=0)
    last, all_of = str(tmp_path / "last" / "train"), str(tmp_path / "all")
    editing.append([images.uri, last], all_of).write(say=lambda _: None)
    config = {"views": ("center", "center_flip"), "shard_samples": 8, "reuse": [str(tokens)]}
    output = str(tmp_path / "all tokens")
    plan = plan_reuse(all_of, tokenizer_card(), TokensConfig.model_validate(config), output, "crop")
    for each in plan.plans:
        tokenize_all(each)
    plan.finish(say=lambda _: None)
    report = verify(output, all_of)
    assert wrong(report) == {}
    (against,) = [check for check in report.checks if check.name == "against images"]
    assert against.summary == f"the keys, labels and order of {all_of}"
    found = wrong(verify(output, images.uri))
    assert "1 samples are no images of it" in found["against images"][0]


def test_a_damaged_shard_of_a_parent_is_named(few: str, tokens: Path) -> None:
    flip_byte(tokens / "tokens-00001.tar", 700)
    (problem, *_) = wrong(verify(few))["checksums"]
    assert f"{tokens}/tokens-00001.tar" in problem


def test_a_damaged_shard_of_a_parent_of_images_is_named(few_images: str, images: Images) -> None:
    flip_byte(images.folder / "images-00001.tar", 700)
    (problem, *_) = wrong(verify(few_images))["parents"]
    assert problem.startswith(f"{images.uri}: ")
    assert "images-00001.tar" in problem


@pytest.mark.parametrize("kind", ["tokens", "images"])
def test_a_shard_that_is_stated_otherwise_than_by_the_parent_is_named(few: str, few_images: str, kind: str) -> None:
    uri = few if kind == "tokens" else few_images
    manifest = (TokenManifest if kind == "tokens" else ImageManifest).read(uri)
    records = [record.model_copy(update={"sha256": "0" * 64}) for record in manifest.shards]
    rewrite(uri, manifest, records)
    check = "lineage" if kind == "tokens" else "shards"
    assert "is stated otherwise by its parent" in wrong(verify(uri, quick=True))[check][0]
    rewrite(uri, manifest, [record.model_copy(update={"folder": "/nowhere"}) for record in records])
    assert "is a shard of no parent" in wrong(verify(uri, quick=True))[check][0]


def rewrite(uri: str, manifest: TokenManifest | ImageManifest, records: list[object]) -> None:
    fields = {name: getattr(manifest, name) for name in type(manifest).model_fields if name != "fingerprint"}
    type(manifest).build(**fields | {"shards": tuple(records)}).write(uri)


def test_a_sample_that_is_not_as_its_parent_says_is_named(few_images: str, images: Images) -> None:
    manifest = ImageManifest.read(few_images)
    other = editing.subset(images.uri, few_images + " other", Choice(first=9))
    assert other.index is not None
    part, swapped = other.index.parts[0], np.array([1, 0], np.int32)
    changed = JoinedIndex((IndexPart(part.index, part.rows, swapped),))
    written = changed.written()
    changed.write(few_images)
    statement = {"bytes": written.bytes, "sha256": written.sha256}
    fields = {name: getattr(manifest, name) for name in ImageManifest.model_fields if name != "fingerprint"}
    ImageManifest.build(**fields | {"index": statement, "shards": tuple(manifest.shards)}).write(few_images)
    problems = wrong(verify(few_images))["samples"]
    assert problems
    assert "is not as its parent says" in problems[0]


def test_a_key_that_is_there_twice_is_named_but_for_a_mix(
    tmp_path: Path, few_images: str, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, mixed = str(tmp_path / "both"), str(tmp_path / "mixed")
    monkeypatch.setattr(editing, "_refuse_common_keys", lambda _: None)
    editing.append([images.uri, few_images], both).write(say=lambda _: None)
    found = wrong(verify(both))["exactly once"]
    assert len(found) == 9
    assert found[0].endswith("is there 2 times")
    editing.mix({images.uri: 1, few_images: 1}, mixed).write(say=lambda _: None)
    assert wrong(verify(mixed)) == {}


def test_a_parent_that_is_another_set_now_is_named(few: str, tokens: Path, make_plan: Callable[..., object]) -> None:
    manifest = TokenManifest.read(str(tokens))
    rewrite(str(tokens), manifest.model_copy(update={"fit": "pad"}), list(manifest.shards))
    (problem,) = wrong(verify(few, quick=True))["lineage"]
    assert "which now holds" in problem


def test_a_parent_of_images_that_is_another_set_now_is_named(few_images: str, images: Images) -> None:
    manifest = ImageManifest.read(images.uri)
    rewrite(images.uri, manifest.model_copy(update={"split": "validation"}), list(manifest.shards))
    assert any("which now holds" in problem for problem in wrong(verify(few_images))["parents"])


def test_shards_of_a_parent_that_was_made_anew_are_no_leftovers_of_its_child(few: str, tokens: Path) -> None:
    manifest = TokenManifest.read(str(tokens))
    rest = manifest.shards[:1]
    fields = {name: getattr(manifest, name) for name in TokenManifest.model_fields if name != "fingerprint"}
    TokenManifest.build(**fields | {"shards": rest, "samples": rest[0].samples}).write(str(tokens))
    named = {record.name.removesuffix(".tar") for record in TokenManifest.read(few).shards}
    assert len(named) == 3
    assert not [each for each in find_leftovers(str(tokens.parent), 0) if each.kind == "stray shard"]
    alone = {each.uri.rpartition("/")[2] for each in find_leftovers(str(tokens), 0) if each.kind == "stray shard"}
    assert "tokens-00001.tar" in alone
