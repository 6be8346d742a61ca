"""Tokens of other programs become a data set of ours, or a message that names the file or the line that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.loading.loader import TokenBatches
from data_pipeline.shards.manifest import TokenManifest
from data_pipeline.shards.token_archive import read_token_shard
from data_pipeline.shards.token_dataset import TokenShards
from data_pipeline.shards.token_shards import TokenBlock, check_tokenizer
from data_pipeline.tokens.importing.llamagen import LlamaGenCodes
from data_pipeline.tokens.importing.rar import RARTokens
from data_pipeline.tokens.importing.tokens import Foreign, ForeignTokens, import_tokens, plan_import, read_classes
from data_pipeline.tools.verifying import verify
from model.layout import TokenLayout
from tests.data_pipeline.small_data import contents, tokenizer_card

IMAGES, VIEWS, SIDE, CODES = 23, 2, 3, 100
FOREIGN = Foreign(codebook_size=CODES, tokenizer_name="VQ-16")


def random_tokens(images: int = IMAGES, views: int = VIEWS) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.integers(0, CODES, (images, views, SIDE * SIDE)), np.sort(generator.integers(0, 4, images))


@pytest.fixture
def codes(tmp_path: Path) -> Path:
    """A folder as extract_codes_c2i leaves it."""
    for folder in ("codes", "labels"):
        (tmp_path / "llamagen" / f"imagenet256_{folder}").mkdir(parents=True)
    for number, (tokens, label) in enumerate(zip(*random_tokens(), strict=True)):
        np.save(tmp_path / f"llamagen/imagenet256_codes/{number}.npy", tokens[None])
        np.save(tmp_path / f"llamagen/imagenet256_labels/{number}.npy", np.array([label]))
    return tmp_path / "llamagen"


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    """A file as RAR's pretokenization leaves it with ten crops, here of two."""
    tokens_NWL, label_N = random_tokens()
    rows = [
        {"class_id": int(label), "tokens": view.tolist()}
        for views, label in zip(tokens_NWL, label_N, strict=True)
        for view in views
    ]
    path = tmp_path / "pretokenized.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def change_line(path: Path, number: int, text: str) -> None:
    lines = path.read_text().splitlines(keepends=True)
    lines[number - 1] = text + "\n"
    path.write_text("".join(lines))


def imported(source: ForeignTokens, output: Path, shard_samples: int = 10, **foreign: Any) -> TokenManifest:
    plan = plan_import(source, Foreign(**(vars(FOREIGN) | foreign)), str(output), shard_samples)
    return import_tokens(plan)


def read(output: Path) -> TokenBlock:
    manifest = TokenManifest.read(str(output))
    found = (("small", small), ("large", large))
    blocks = [read_token_shard(str(tmp_path / name), made.shards[0]).tokens_NWLF for name, made in found]
    assert [block.dtype for block in blocks] == ["uint16", "uint32"]
    assert np.array_equal(*blocks)


def test_a_label_without_a_name_is_named(jsonl: Path, tmp_path: Path) -> None:
    plan = plan_import(RARTokens(str(jsonl), 2), FOREIGN, str(tmp_path / "out"))
    with pytest.raises(UsageError, match=r"pretokenized\.jsonl, line \d+: class \d is outside 0 to 1"):
        import_tokens(plan, ("a", "b"))


@pytest.mark.xdist_group("s3")
def test_input_and_output_may_be_on_s3(codes: Path, jsonl: Path, s3_uri: str, tmp_path: Path) -> None:
    for name, data in {**contents(codes), "pretokenized.jsonl": jsonl.read_bytes()}.items():
        storage.write_bytes(f"{s3_uri}/{name}", data)
    for name, source in (("a", LlamaGenCodes(s3_uri)), ("b", RARTokens(f"{s3_uri}/pretokenized.jsonl", 2))):
        assert isinstance(source, LlamaGenCodes | RARTokens)
        import_tokens(plan_import(source, FOREIGN, f"{s3_uri}/{name}", 10))
        assert verify(f"{s3_uri}/{name}").passed
