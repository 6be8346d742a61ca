"""A data set that is right passes; one that is not fails the check that its fault is about, with shard and key."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards.image_shards import (
    ShardIndex,
    finish_images,
    index_name,
    read_index,
    read_indexes,
    shard_record,
)
from data_pipeline.shards.manifest import FileStatement, ImageManifest, ImageShardRecord, TokenManifest
from data_pipeline.shards.sample_index import SampleIndexWriter
from data_pipeline.shards.token_archive import parse_token_shard
from data_pipeline.shards.token_shards import TokenBlock, write_token_shard
from data_pipeline.storage.request_counts import counted
from data_pipeline.storage.tar import END_OF_ARCHIVE, encode_member, read_members
from data_pipeline.tools import editing, examining_tokens, one_pass
from data_pipeline.tools.checks import MOST_PROBLEMS, Problems
from data_pipeline.tools.choosing import Choice
from data_pipeline.tools.verifying import Report, find_images, verify
from model.config import ImageFolderConfig
from tests.data_pipeline.small_data import Images, flip_byte, write_tokens

QUICK_IMAGES, QUICK_TOKENS = 9, 16
"""Most requests of `verify --quick`, beyond further pages of the listing."""


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


@pytest.fixture(params=["whole", "in pieces"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards are read by one request and looked at as one, or by many and a sample at a time."""
    if request.param == "in pieces":
        monkeypatch.setattr(one_pass, "PIECE_BYTES", 97)
        monkeypatch.setattr(examining_tokens, "ROW_BYTES", 1)


@pytest.mark.usefixtures("pieces")
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


@pytest.mark.usefixtures("pieces")
def test_a_damaged_image_fails_checksum_and_crc_with_shard_and_key(images: Images) -> None:
    member = read_members(str(images.folder / "images-00001.tar"))[4]
    flip_byte(images.folder / "images-00001.tar", member.offset + 9)
    found, sample = failures(verify(images.uri)), f"sample {member.name.removesuffix('.jpg')} is corrupt"
    assert set(found) == {"checksums", "samples"}
    assert found["samples"] == (f"images-00001.tar: {sample} (CRC-32 differs)",)
    assert sample in found["checksums"][0]


@pytest.mark.usefixtures("pieces")
def test_a_damaged_label_of_an_image_is_traced_to_its_key(images: Images) -> None:
    member = read_members(str(images.folder / "images-00001.tar"))[5]
    flip_byte(images.folder / "images-00001.tar", member.offset)
    (problem,) = failures(verify(images.uri))["counts"]
    assert problem.startswith(f"images-00001.tar: sample {member.name.removesuffix('.cls')} is not in the tar")


@pytest.mark.usefixtures("pieces")
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


def put_images(images: Images, number: int, archive: bytes, **changes: Any) -> None:
    """Commit other bytes as the tar of a shard, with an index of other columns, so that every digest is right."""
    manifest = ImageManifest.read(images.uri)
    shard = manifest.shards[number]
    columns = vars(read_index(images.uri, shard)) | {"size": len(archive), "sha256": storage.sha256(archive)} | changes
    data = ShardIndex(**columns).encode()
    (images.folder / shard.name).write_bytes(archive)
    (images.folder / index_name(shard.name)).write_bytes(data)
    record = shard_record(shard.name, ShardIndex(**columns), data)
    finish(images, images.uri, [record if each.name == shard.name else each for each in manifest.shards])


def finish(images: Images, uri: str, shards: list[ImageShardRecord]) -> None:
    """Complete a data set of some shards, with the classes of another."""
    manifest = ImageManifest.read(images.uri)
    finish_images(uri, read_indexes(uri, shards), classes=manifest.classes, split=manifest.split)


def put_index(images: Images, column: str, value: object) -> str:
    """Commit an index.bin in which a sample of the second shard has another value, and none else; its key."""
    manifest = ImageManifest.read(images.uri)
    key = read_index(images.uri, manifest.shards[1]).key[2]
    with SampleIndexWriter() as writer:
        for number, shard in enumerate(manifest.shards):
            index = read_index(images.uri, shard)
            if number == 1:
                getattr(index, column)[2] = value
            writer.add(index)
        written = writer.write(images.uri)
    fields = {name: getattr(manifest, name) for name in type(manifest).model_fields if name != "fingerprint"}
    stated = FileStatement(bytes=written.bytes, sha256=written.sha256)
    ImageManifest.build(**fields | {"index": stated}).write(images.uri)
    return key


@pytest.mark.parametrize(
    ("column", "value"),
    [("label", 7), ("key", "class0/stranger"), ("extension", "png"), ("offset", 513), ("length", 3), ("crc32", 5)],
)
def test_a_value_that_is_wrong_in_index_bin_alone_is_found(images: Images, column: str, value: object) -> None:
    stated = getattr(read_index(images.uri, ImageManifest.read(images.uri).shards[1]), column)[2]
    key = put_index(images, column, value)
    text = f"images-00001.tar: sample {key} has the {column} {value} in index.bin, {stated} in its shard"
    assert failures(verify(images.uri)) == {"index.bin": (text,)}


@pytest.mark.parametrize("quick", [True, False])
def test_an_index_bin_that_is_damaged_fails(images: Images, quick: bool) -> None:
    flip_byte(images.folder / "index.bin", 700)
    (problem,) = failures(verify(images.uri, quick=quick))["index.bin"]
    assert "its sha256 is not that of the manifest" in problem


@pytest.mark.parametrize("quick", [True, False])
def test_an_index_bin_that_is_gone_fails(images: Images, quick: bool) -> None:
    (images.folder / "index.bin").unlink()
    (problem,) = failures(verify(images.uri, quick=quick))["index.bin"]
    assert "is missing" in problem


def test_an_index_bin_of_another_number_of_samples_fails(images: Images) -> None:
    manifest = ImageManifest.read(images.uri)
    with SampleIndexWriter() as writer:
        writer.add(read_index(images.uri, manifest.shards[0]))
        written = writer.write(images.uri)
    fields = {name: getattr(manifest, name) for name in type(manifest).model_fields if name != "fingerprint"}
    stated = FileStatement(bytes=written.bytes, sha256=written.sha256)
    ImageManifest.build(**fields | {"index": stated}).write(images.uri)
    assert "its column key holds" in failures(verify(images.uri))["index.bin"][0]


def test_a_file_in_a_tar_that_its_index_does_not_know_fails(images: Images) -> None:
    archive = (images.folder / "images-00001.tar").read_bytes().removesuffix(END_OF_ARCHIVE)
    put_images(images, 1, archive + encode_member("stranger.jpg", b"x") + END_OF_ARCHIVE)
    assert failures(verify(images.uri)) == {
        "counts": (
            "images-00001.tar: its end is not where the last sample of its index ends: it was cut, or holds more",
        )
    }


@pytest.mark.parametrize("column", ["label", "key", "extension", "offset", "length"])
def test_an_index_that_is_not_about_its_tar_fails_with_the_key(images: Images, column: str) -> None:
    index = read_index(images.uri, ImageManifest.read(images.uri).shards[1])
    other = {
        "label": 1 - index.label[2],
        "key": "class0/stranger",
        "extension": "png",
        "offset": index.offset[2] + 512,
        "length": index.length[2] - 1,
    }
    values = [*getattr(index, column)]
    values[2] = other[column]
    put_images(images, 1, (images.folder / "images-00001.tar").read_bytes(), **{column: values})
    key = values[2] if column == "key" else index.key[2]
    found = failures(verify(images.uri))
    assert found["counts"][0].startswith(f"images-00001.tar: sample {key} is not in the tar with label ")
    assert ("samples" in found) == (column in {"offset", "length"})


def test_a_header_of_an_image_that_is_damaged_is_traced_to_its_key(images: Images) -> None:
    member = read_members(str(images.folder / "images-00001.tar"))[4]
    flip_byte(images.folder / "images-00001.tar", member.offset - 500)
    key, found = member.name.removesuffix(".jpg"), failures(verify(images.uri))
    assert set(found) == {"checksums", "counts"}
    assert f"sample {key} is corrupt (its tar headers or its label differ)" in found["checksums"][0]
    assert found["counts"][0].startswith(f"images-00001.tar: sample {key} is not in the tar")


@pytest.mark.parametrize("kind", ["images", "tokens"])
def test_quick_reads_no_shard_and_no_index(images: Images, tokens: Path, kind: str) -> None:
    folder = images.folder if kind == "images" else tokens
    for path in folder.iterdir():
        if path.name.startswith(f"{kind}-"):
            path.write_bytes(bytes(path.stat().st_size))
    assert failures(verify(str(folder), quick=True)) == {}
    assert "checksums" in failures(verify(str(folder)))


def test_quick_sees_that_an_index_is_gone(images: Images) -> None:
    (images.folder / "images-00001.index.json").unlink()
    assert failures(verify(images.uri, quick=True)) == {
        "files": ("images-00001.tar: its index images-00001.index.json is missing",)
    }


def test_quick_sees_images_other_than_the_source(images: Images, tokens: Path) -> None:
    rewrite(tokens, source="f" * 64)
    (problem,) = failures(verify(str(tokens), images.uri, quick=True))["lineage"]
    assert problem.startswith("the tokens were made of images ffffffffffffffff, but ")


@pytest.mark.parametrize("quick", [True, False])
def test_shards_of_another_folder_are_verified_where_they_lie(images: Images, tmp_path: Path, quick: bool) -> None:
    manifest, uri = ImageManifest.read(images.uri), str(tmp_path / "subset")
    finish(images, uri, [shard.model_copy(update={"folder": images.uri}) for shard in manifest.shards[:2]])
    assert failures(verify(uri, quick=quick)) == {}
    (images.folder / "images-00001.tar").unlink()
    assert failures(verify(uri, quick=quick)) == {"files": ("images-00001.tar: is missing",)}


LAYOUT = ImageFolderConfig().layout
"""Of the tokenizer that `write_tokens` names."""
EDITS: dict[str, Callable[[str, str, str], editing.Planned]] = {
    "append": lambda one, other, to: editing.append([one, other], to),
    "subset": lambda one, _, to: editing.subset(one, to, Choice(first=7)),
    "mix": lambda one, other, to: editing.mix({one: 1.0, other: 0.5}, to),
    "views": lambda one, _, to: editing.views(
        [one, write_tokens(Path(to).with_name("flips"), (5, 4, 3), ("center_flip",), LAYOUT)], to
    ),
}


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("operation", EDITS)
def test_a_data_set_that_is_made_of_others_is_verified_through_them(
    tmp_path: Path, operation: str, quick: bool
) -> None:
    one = write_tokens(tmp_path / "one", (5, 4, 3), layout=LAYOUT)
    classes = ("dog", "emu")
    other = write_tokens(tmp_path / "other", (6, 2), ("center",), LAYOUT, classes, "another", source="c" * 64)
    planned = EDITS[operation](one, other, str(tmp_path / "made"))
    assert planned.write(say=lambda _: None)
    assert failures(verify(planned.output, quick=quick)) == {}
    path = tmp_path / "one" / "tokens-00000.tar"
    flip_byte(path, 700)
    found = failures(verify(planned.output, quick=quick))
    assert found == {} if quick else any("tokens-00000.tar" in problem for problem in found["checksums"])
    path.unlink()
    assert failures(verify(planned.output, quick=quick))["files"] == ("tokens-00000.tar: is missing",)


def test_a_data_set_whose_parent_is_another_one_now_fails_the_lineage(tmp_path: Path) -> None:
    one = write_tokens(tmp_path / "one", (5, 4, 3), layout=LAYOUT)
    planned = editing.subset(one, str(tmp_path / "made"), Choice(first=7))
    assert planned.write(say=lambda _: None)
    rewrite(tmp_path / "one", classes=("cat", "emu"))
    for quick in (True, False):
        assert str(tmp_path / "one") in failures(verify(planned.output, quick=quick))["lineage"][0]


def test_sets_that_share_a_key_may_be_appended_and_are_told(tmp_path: Path) -> None:
    one = write_tokens(tmp_path / "one", (5, 4, 3), layout=LAYOUT)
    few = write_tokens(tmp_path / "few", (4,), layout=LAYOUT)
    planned = editing.append([one, few], str(tmp_path / "made"))
    assert planned.write(say=lambda _: None)
    report = verify(planned.output)
    assert failures(report) == {}
    assert summary(report, "exactly once") == "16 keys, 4 more than once, as its sets may share some"


def test_of_many_problems_the_first_are_listed_and_the_others_counted() -> None:
    problems = Problems()
    problems.add("samples", (f"sample {n}" for n in range(MOST_PROBLEMS)))
    problems.add("samples", ["one", "another"], more=3)
    listed = problems.check("samples", "").problems
    assert listed[MOST_PROBLEMS - 1 :] == (f"sample {MOST_PROBLEMS - 1}", "and 5 more of this kind")


def test_no_shard_stays_in_memory(tokens: Path) -> None:
    """A view of a shard's keys would keep all of its bytes."""
    here, records = block(tokens, 0), []
    meta = parse_token_shard("tokens-00000.tar", (tokens / "tokens-00000.tar").read_bytes()).meta
    for number in range(40):
        keys = np.char.add(f"shard{number}/", [str(row) for row in range(1000)]).astype("S")
        large = TokenBlock(np.repeat(here.tokens_NWLF[:1], 1000, 0), np.zeros(1000, np.int32), keys)
        records.append(write_token_shard(str(tokens), f"tokens-{number:05d}.tar", large, meta))
        (tokens / f"tokens-{number:05d}.json").unlink(missing_ok=True)
    rewrite(tokens, shards=tuple(records), samples=40_000)
    (tokens.parent / "images").rename(tokens.parent / "elsewhere")
    tracemalloc.start()
    assert verify(str(tokens)).passed
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < sum(record.bytes for record in records) / 2


def test_quick_sees_a_shard_of_another_size(tokens: Path) -> None:
    with (tokens / "tokens-00002.tar").open("ab") as file:
        file.write(b"more")
    assert list(failures(verify(str(tokens), quick=True))) == ["files"]


@pytest.mark.usefixtures("pieces")
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


@pytest.mark.usefixtures("pieces")
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
    config = manifest.tokenizer.config | {"quantizer": {"codebook_size": 32}}
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
    storage.write_json(f"{tokens}/lease/000001.json", {})
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


@pytest.mark.xdist_group("s3")
def test_quick_asks_for_a_listing_and_the_records_of_the_data_set_alone(
    images: Images, tokens: Path, s3_uri: str
) -> None:
    for folder, name in ((images.folder, "run/images/train"), (tokens, "run/tokens")):
        for path in folder.iterdir():
            storage.write_bytes(f"{s3_uri}/{name}/{path.name}", path.read_bytes())
    for name, most in (("run/images/train", QUICK_IMAGES), ("run/tokens", QUICK_TOKENS)):
        with counted() as sent:
            assert verify(f"{s3_uri}/{name}", quick=True).passed
        assert sent["list"] == 1
        assert sent.total() <= most, dict(sent)


@pytest.mark.xdist_group("s3")
def test_a_shard_is_asked_for_once(images: Images, tokens: Path, s3_uri: str) -> None:
    for folder, of_index in ((images.folder, 8), (tokens, 0)):  # index.bin: a digest, a head, a range of each column
        for path in folder.iterdir():
            storage.write_bytes(f"{s3_uri}/{folder.name}/{path.name}", path.read_bytes())
        with counted() as quick:
            verify(f"{s3_uri}/{folder.name}", quick=True)
        with counted() as sent:
            verify(f"{s3_uri}/{folder.name}")
        shards, of_shard = 3, 2  # its tar, and its index or commit record
        assert sent.total() - quick.total() <= shards * of_shard + of_index, (dict(sent), dict(quick))


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
