"""A fault in a set of tokens fails the check that it is about, with shard and key."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards.manifest import TokenManifest
from data_pipeline.shards.token_shards import TokenBlock
from data_pipeline.storage.tar import read_members
from data_pipeline.tools.verifying import verify
from tests.data_pipeline.small_data import Images, flip_byte
from tests.data_pipeline.verified_sets import block, failures, put, rewrite, summary


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


@pytest.mark.parametrize("key", ["../../evil", "/etc/evil"])
def test_a_key_that_leads_elsewhere_is_told(tokens: Path, key: str) -> None:
    here = block(tokens, 1)
    put(tokens, 1, TokenBlock(here.tokens_NWLF, here.condition, np.array([key.encode(), *here.key[1:]], "S")))
    assert "holds a key that cannot be" in failures(verify(str(tokens)))["samples"][0]
