"""A data set that is right passes; one that is not fails the check that its fault is about, with shard and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards.image_shards import read_index
from data_pipeline.shards.manifest import ImageManifest, TokenManifest
from data_pipeline.shards.token_archive import parse_token_shard
from data_pipeline.shards.token_shards import TokenBlock, write_token_shard
from data_pipeline.storage.tar import read_members
from data_pipeline.tools.verifying import Report, find_images, verify
from tests.data_pipeline.small_data import Images, flip_byte


def failures(report: Report) -> dict[str, tuple[str, ...]]:
    """What is wrong, by check."""
    return {check.name: check.problems for check in report.checks if not check.passed}


def summary(report: Report, name: str) -> str:
    (check,) = [check for check in report.checks if check.name == name]
    return check.summary


def block(tokens: Path, number: int) -> TokenBlock:
    path = tokens / f"tokens-{number:05d}.tar"
    return parse_token_shard(str(path), path.read_bytes()).block


def put(tokens: Path, number: int, changed: TokenBlock, **meta: Any) -> None:
    """Commit another block as shard `number`, so that every digest and CRC is right: what is left is the content."""
    path = tokens / f"tokens-{number:05d}.tar"
    was = parse_token_shard(str(path), path.read_bytes()).meta
    record = write_token_shard(str(tokens), path.name, changed, was | meta)
    commit = tokens / f"tokens-{number:05d}.json"
    entry = json.loads(commit.read_text())
    made_by = {name: value for name, value in (was | meta).items() if name != "software"}
    commit.write_text(json.dumps(entry | {"shard": record.model_dump(), "made_by": made_by}))
    rewrite(tokens, shards=tuple(record if s.name == path.name else s for s in TokenManifest.read(str(tokens)).shards))


def rewrite(tokens: Path, **changes: Any) -> None:
    """Give the manifest other fields, and the fingerprint that belongs to them."""
    manifest = TokenManifest.read(str(tokens))
    fields = {name: getattr(manifest, name) for name in type(manifest).model_fields} | changes
    TokenManifest.build(**{name: fields[name] for name in fields if name != "fingerprint"}).write(str(tokens))


def test_what_was_written_passes_every_check(images: Images, tokens: Path) -> None:
    for report in (verify(images.uri), verify(str(tokens), images.uri)):
        assert failures(report) == {}
        assert (report.samples, report.shards) == (20, 3)


def test_quick_passes_too_and_says_that_it_read_no_content(images: Images, tokens: Path) -> None:
    for report in (verify(images.uri, quick=True), verify(str(tokens), images.uri, quick=True)):
        assert failures(report) == {}
        assert "--quick" in summary(report, "checksums")
        assert {"samples", "token range"}.isdisjoint(check.name for check in report.checks)


def test_tokens_find_the_images_of_their_run(images: Images, tokens: Path) -> None:
    assert find_images(str(tokens), TokenManifest.read(str(tokens))) == images.uri
    assert images.uri in summary(verify(str(tokens)), "against images")


def test_tokens_are_not_held_against_images_that_are_not_theirs(images: Images, tokens: Path) -> None:
    rewrite(tokens, source="f" * 64)
    assert find_images(str(tokens), TokenManifest.read(str(tokens))) is None


def test_a_report_says_that_tokens_were_not_compared(images: Images, tokens: Path, tmp_path: Path) -> None:
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    assert summary(verify(str(tokens)), "against images").startswith("not compared")


def test_a_data_set_without_samples_is_right(tmp_path: Path) -> None:
    ImageManifest.build(samples=0, classes=("a",), split="train", shards=()).write(str(tmp_path))
    assert verify(str(tmp_path)).passed


def test_images_that_the_record_beside_the_tokens_names_are_found(images: Images, tokens: Path, tmp_path: Path) -> None:
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    (tokens / "config.yaml").write_text(f"data: {{images: '{tmp_path}/elsewhere'}}")
    assert find_images(str(tokens), TokenManifest.read(str(tokens))) == f"{tmp_path}/elsewhere/train"


def test_a_folder_without_a_manifest_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no complete data set"):
        verify(str(tmp_path))


def test_images_cannot_be_held_against_images(images: Images) -> None:
    with pytest.raises(UsageError, match="leave --against out"):
        verify(images.uri, images.uri)


def test_a_damaged_image_fails_checksum_and_crc_with_shard_and_key(images: Images) -> None:
    member = read_members(str(images.folder / "images-00001.tar"))[4]
    flip_byte(images.folder / "images-00001.tar", member.offset + 9)
    found, sample = failures(verify(images.uri)), f"sample {member.name.removesuffix('.jpg')} is corrupt"
    assert set(found) == {"checksums", "samples"}
    assert found["samples"] == (f"images-00001.tar: {sample} (CRC-32 differs)",)
    assert sample in found["checksums"][0]


def test_a_damaged_label_of_an_image_is_traced_to_its_key(images: Images) -> None:
    member = read_members(str(images.folder / "images-00001.tar"))[5]
    flip_byte(images.folder / "images-00001.tar", member.offset)
    (problem,) = failures(verify(images.uri))["counts"]
    assert problem.startswith(f"images-00001.tar: sample {member.name.removesuffix('.cls')} is not in the tar")


def test_every_damaged_row_of_a_token_shard_is_named(tokens: Path) -> None:
    member = next(m for m in read_members(str(tokens / "tokens-00001.tar")) if m.name.endswith("tokens.npy"))
    row = (member.length - 128) // 8
    keys = block(tokens, 1).key
    for number in (2, 5):
        flip_byte(tokens / "tokens-00001.tar", member.offset + 128 + number * row)
    found = failures(verify(str(tokens)))["samples"]
    assert [f"sample {bytes(keys[number]).decode()} is corrupt" in found[i] for i, number in enumerate((2, 5))] == [
        True,
        True,
    ]


@pytest.mark.parametrize("name", ["images-00001.tar", "images-00001.index.json"])
def test_a_file_that_is_gone_is_named(images: Images, name: str) -> None:
    (images.folder / name).unlink()
    problems = [problem for found in failures(verify(images.uri)).values() for problem in found]
    assert any(name in problem and "is missing" in problem for problem in problems)


def test_quick_sees_a_shard_of_another_size(tokens: Path) -> None:
    with (tokens / "tokens-00002.tar").open("ab") as file:
        file.write(b"more")
    assert list(failures(verify(str(tokens), quick=True))) == ["files"]


def test_a_shard_that_was_cut_is_told_not_raised(images: Images, tokens: Path) -> None:
    for path in (images.folder / "images-00001.tar", tokens / "tokens-00001.tar"):
        path.write_bytes(path.read_bytes()[:1000])
        assert {"files", "counts"} <= set(failures(verify(str(path.parent))))


def test_a_key_that_is_there_twice_is_named_with_both_shards(tokens: Path) -> None:
    one, two = block(tokens, 0), block(tokens, 1)
    keys = two.key.copy()
    keys[3] = one.key[1]
    put(tokens, 1, TokenBlock(two.tokens_NWLF, two.condition, keys))
    (problem,) = failures(verify(str(tokens)))["exactly once"]
    assert problem == f"sample {bytes(keys[3]).decode()} is there 2 times: tokens-00000.tar, tokens-00001.tar"


def test_a_sample_that_took_the_place_of_another_is_missing_and_extra(images: Images, tokens: Path) -> None:
    here = block(tokens, 1)
    keys = here.key.copy()
    keys[0] = b"stranger"
    put(tokens, 1, TokenBlock(here.tokens_NWLF, here.condition, keys))
    missing, extra = failures(verify(str(tokens), images.uri))["against images"]
    assert missing == f"1 samples are missing; the first is {bytes(here.key[0]).decode()}"
    assert extra == "1 samples are no images of it; the first is stranger"


def test_another_order_than_that_of_the_images_fails(images: Images, tokens: Path) -> None:
    here = block(tokens, 0)
    put(tokens, 0, TokenBlock(here.tokens_NWLF[::-1], here.condition[::-1], here.key[::-1]))
    (problem,) = failures(verify(str(tokens), images.uri))["against images"]
    assert problem.startswith("the order differs from sample 0 on")


def test_a_label_that_is_not_that_of_the_image_is_named(images: Images, tokens: Path) -> None:
    here = block(tokens, 0)
    label = here.condition.copy()
    label[4] = 1 - label[4]
    put(tokens, 0, TokenBlock(here.tokens_NWLF, label, here.key))
    (problem,) = failures(verify(str(tokens), images.uri))["against images"]
    assert problem == f"sample {bytes(here.key[4]).decode()} has label {label[4]}, its image {1 - label[4]}"


def test_images_other_than_the_source_fail_the_lineage(images: Images, tokens: Path) -> None:
    rewrite(tokens, source="f" * 64)
    found = failures(verify(str(tokens), images.uri))["lineage"]
    assert found[-1].startswith("the tokens were made of images ffffffffffffffff, but ")


def test_a_token_outside_the_codebook_is_named(tokens: Path) -> None:
    here = block(tokens, 2)
    values = here.tokens_NWLF.copy()
    values[1, 0, 3, 1] = 64
    put(tokens, 2, TokenBlock(values, here.condition, here.key))
    (problem,) = failures(verify(str(tokens)))["token range"]
    assert problem == f"tokens-00002.tar: sample {bytes(here.key[1]).decode()} has token 64 of a codebook of 64"


def test_a_label_that_names_no_class_is_named(tokens: Path) -> None:
    rewrite(tokens, classes=("class0",))
    assert "has label 1 of 1 classes" in failures(verify(str(tokens)))["label range"][0]


def test_the_label_histogram_says_which_classes_are_empty(tokens: Path) -> None:
    rewrite(tokens, classes=("class0", "class1", "class2"))
    text = summary(verify(str(tokens)), "labels")
    assert text == "0 to 10 samples a class, median 10; 1 classes have none (class2)"


def test_a_shard_of_another_tokenizer_fails_the_lineage(tokens: Path) -> None:
    put(tokens, 1, block(tokens, 1), tokenizer={"fingerprint": "0" * 64, "config": {}})
    found = failures(verify(str(tokens)))["lineage"]
    assert all(problem.startswith("tokens-00001.tar: meta.json differs from the manifest") for problem in found)
    assert any("tokenizer.encoder" in problem for problem in found)


def test_shards_that_were_made_otherwise_fail_the_lineage(tokens: Path) -> None:
    """What the manifest does not state, such as the batch size, is still the same in all shards."""
    put(tokens, 2, block(tokens, 2), shard_samples=9)
    assert failures(verify(str(tokens)))["lineage"] == ("tokens-00000.tar -> tokens-00002.tar: shard_samples: 8 -> 9",)


def test_a_shard_of_another_shape_is_told(tokens: Path) -> None:
    here = block(tokens, 1)
    put(tokens, 1, TokenBlock(here.tokens_NWLF[:, :, :5], here.condition, here.key))
    assert "the manifest says uint16 (8, 2, 21, 2)" in failures(verify(str(tokens)))["counts"][0]


def test_a_layout_that_is_not_the_tokenizers_fails_the_lineage(tokens: Path) -> None:
    manifest = TokenManifest.read(str(tokens))
    config = manifest.tokenizer.config | {"codebook_size": 32}
    rewrite(tokens, tokenizer=manifest.tokenizer.model_copy(update={"config": config}))
    assert any("the tokenizer's layout is" in problem for problem in failures(verify(str(tokens)))["lineage"])


def test_a_commit_record_of_another_shard_fails_the_lineage(tokens: Path) -> None:
    (tokens / "tokens-00001.json").write_text((tokens / "tokens-00000.json").read_text())
    found = failures(verify(str(tokens)))["lineage"]
    assert found[0].startswith("tokens-00001.tar: its commit record is about another shard: shard.")


def test_a_manifest_whose_sum_is_wrong_fails(tokens: Path) -> None:
    path = tokens / "manifest.json"
    record = {**json.loads(path.read_bytes()), "samples": 19}
    record["fingerprint"] = storage.fingerprint({name: record[name] for name in record if name != "fingerprint"})
    path.write_bytes(storage.canonical_json(record))
    with pytest.raises(UsageError, match="its shards have 20 samples, the manifest states 19"):
        verify(str(tokens))


def test_files_that_belong_to_no_shard_are_told_and_no_failure(tokens: Path) -> None:
    (tokens / "notes.txt").write_text("mine")
    (tokens / "progress.json").write_text("{}")
    report = verify(str(tokens))
    assert report.passed
    assert summary(report, "other files") == "1 that belong to no shard: notes.txt"


def test_a_quarantined_image_that_is_there_all_the_same_is_named(images: Images) -> None:
    manifest = ImageManifest.read(images.uri)
    key = read_index(images.uri, manifest.shards[0]).key[2]
    storage.write_json(f"{images.uri}/quarantine.json", [{"key": key, "source": "a.jpg", "reason": "cut"}])
    fields = {name: getattr(manifest, name) for name in type(manifest).model_fields if name != "fingerprint"}
    ImageManifest.build(**fields | {"quarantined": 1}).write(images.uri)
    assert failures(verify(images.uri))["quarantine"] == (f"sample {key} is quarantined and there all the same",)


def test_a_quarantine_list_that_is_gone_fails(images: Images) -> None:
    manifest = ImageManifest.read(images.uri)
    fields = {name: getattr(manifest, name) for name in type(manifest).model_fields if name != "fingerprint"}
    ImageManifest.build(**fields | {"quarantined": 2}).write(images.uri)
    (problem,) = failures(verify(images.uri))["quarantine"]
    assert problem.endswith("quarantine.json lists 0 images, the manifest states 2")


def test_progress_counts_shards(tokens: Path) -> None:
    seen: list[tuple[int, int]] = []
    verify(str(tokens), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_the_report_is_a_record(tokens: Path) -> None:
    record = verify(str(tokens)).to_json()
    assert json.loads(json.dumps(record))["passed"] is True
    assert {check["name"] for check in record["checks"]} >= {"checksums", "exactly once", "lineage", "against images"}


@pytest.mark.xdist_group("s3")
def test_a_data_set_on_s3_is_verified_where_it_is(tokens: Path, s3_uri: str) -> None:
    for path in tokens.iterdir():
        storage.write_bytes(f"{s3_uri}/{path.name}", path.read_bytes())
    assert failures(verify(s3_uri)) == {}
    assert failures(verify(s3_uri, quick=True)) == {}
    shard = bytearray((tokens / "tokens-00001.tar").read_bytes())
    shard[700] ^= 1
    storage.write_bytes(f"{s3_uri}/tokens-00001.tar", bytes(shard))
    assert set(failures(verify(s3_uri))) >= {"checksums", "samples"}


@pytest.mark.parametrize("key", ["../../evil", "/etc/evil"])
def test_a_key_that_leads_elsewhere_is_told(tokens: Path, key: str) -> None:
    here = block(tokens, 1)
    put(tokens, 1, TokenBlock(here.tokens_NWLF, here.condition, np.array([key.encode(), *here.key[1:]], "S")))
    assert "holds a key that cannot be" in failures(verify(str(tokens)))["samples"][0]


@pytest.mark.parametrize("record", [7, [7], [{}], {"a": 1}])
def test_a_quarantine_that_is_no_list_of_images_is_named(images: Images, record: object) -> None:
    (images.folder / "quarantine.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match=r"quarantine\.json is no list of images"):
        verify(images.uri)
