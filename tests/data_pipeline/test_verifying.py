"""A data set that is right passes every check, however it was made; what verify reads, and what it costs."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards.manifest import ImageManifest, TokenManifest
from data_pipeline.shards.token_archive import parse_token_shard
from data_pipeline.shards.token_shards import TokenBlock, write_token_shard
from data_pipeline.storage.request_counts import counted
from data_pipeline.tools import editing
from data_pipeline.tools.checks import MOST_PROBLEMS, Problems
from data_pipeline.tools.choosing import Choice
from data_pipeline.tools.verifying import find_images, verify
from model.config import ImageFolderConfig
from tests.data_pipeline.small_data import Images, flip_byte, write_tokens
from tests.data_pipeline.verified_sets import block, failures, finish, rewrite, summary

QUICK_IMAGES, QUICK_TOKENS = 9, 16
"""Most requests of `verify --quick`, beyond further pages of the listing."""


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
