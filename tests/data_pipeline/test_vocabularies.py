"""Folds with vocabularies of their own, one beyond 16 bits: whole wherever tokens go, or refused before a cast."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import webdataset

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, FoldtrainError
from data_pipeline.loading.loader import TokenBatches
from data_pipeline.node.copy_seal import SEAL_BYTES
from data_pipeline.node.node_cache import NodeCache
from data_pipeline.shards.image_shards import ImageShards
from data_pipeline.shards.manifest import TokenizerRecord, TokenManifest
from data_pipeline.shards.token_archive import read_token_shard
from data_pipeline.shards.token_dataset import TokenShards
from data_pipeline.shards.token_shards import TokenBlock, write_token_shard
from data_pipeline.tokens.exporting import export_tokens, exported_files
from data_pipeline.tokens.tokenizing import Images, TokenPlan, finish, missing, tokenize_shard
from data_pipeline.tools.inspecting import inspect_data
from data_pipeline.tools.verifying import verify
from model.layout import TokenLayout

LAYOUT = TokenLayout((1, 4), (64, 65_536, 100_000))
LARGEST = np.array(LAYOUT.vocabularies) - 1
Plans = Callable[..., TokenPlan]


def encode(image_BCHW: Images) -> npt.NDArray[np.int64]:
    """Tokens over the whole of each vocabulary; the first position holds the largest of each."""
    sums_B = ((image_BCHW + 1) * 127.5).round().astype(np.int64).sum((1, 2, 3))
    steps_LF = np.arange(1, LAYOUT.positions * LAYOUT.folds + 1).reshape(LAYOUT.positions, LAYOUT.folds) * 7919
    tokens_BLF = (sums_B[:, None, None] * steps_LF) % np.array(LAYOUT.vocabularies)
    tokens_BLF[:, 0] = LARGEST
    return tokens_BLF


def encode_65541(image_BCHW: Images) -> npt.NDArray[np.int64]:
    """One token too large for 16 bits, of which they would keep 5."""
    tokens_BLF = np.minimum(encode(image_BCHW), LAYOUT.vocabularies[1] - 1)
    tokens_BLF[-1, 3, 1] = 65_541
    return tokens_BLF


@pytest.fixture
def plan(make_plan: Plans) -> TokenPlan:
    record = TokenizerRecord(encoder="0" * 64, config={"kind": "three folds"})
    return dataclasses.replace(make_plan("folds"), layout=LAYOUT, tokenizer=record)


@pytest.fixture
def folds(plan: TokenPlan) -> Path:
    images = ImageShards(plan.images)
    for shard in missing(plan):
        tokenize_shard(plan, shard, images, encode)
    finish(plan)
    return Path(plan.output)


def whole(folds: Path) -> TokenBlock:
    blocks = [read_token_shard(str(folds), shard) for shard in TokenManifest.read(str(folds)).shards]
    return TokenBlock(
        np.concatenate([block.tokens_NWLF for block in blocks]),  # type: ignore[arg-type]
        np.concatenate([block.condition for block in blocks]),
        np.concatenate([block.key for block in blocks]),
    )


@pytest.mark.parametrize("codes", [65_536, 70_000], ids=["of 16 bits", "beside one of 32 bits"])
def test_65541_of_65536_codes_is_refused_and_not_cast_to_5(plan: TokenPlan, codes: int) -> None:
    layout = TokenLayout(LAYOUT.groups, (64, 65_536, codes))
    plan = dataclasses.replace(plan, layout=layout)
    with pytest.raises(FoldtrainError, match="gave token 65541 in fold 1, but its codebook has 65536"):
        tokenize_shard(plan, plan.shards[0], ImageShards(plan.images), encode_65541)
    assert not Path(plan.output).exists()


def test_tokens_of_every_fold_are_stored_and_mapped_whole(plan: TokenPlan, folds: Path, tmp_path: Path) -> None:
    shards = TokenShards(str(folds), NodeCache(str(tmp_path / "cache")))
    found = shards.tokens(np.arange(20))
    assert found.dtype == "uint32"
    assert (found[:, :, 0] == LARGEST).all()
    assert np.array_equal(found, whole(folds).tokens_NWLF)
    width = shards.keys.dtype.itemsize
    (copy,) = NodeCache(str(tmp_path / "cache")).folder.glob("*.tokens")
    aligned = -(-20 * 2 * 5 * 3 * 4 // 64) * 64
    assert copy.stat().st_size == aligned + 20 * (4 + width) + SEAL_BYTES


def test_batches_hold_them_whole(folds: Path, tmp_path: Path) -> None:
    batch = TokenBatches(TokenShards(str(folds), NodeCache(str(tmp_path / "cache"))), 0, 8).batch(0)
    assert (batch.tokens_BLF.astype(np.int64)[:, 0] == LARGEST).all()


def test_verify_passes_and_inspect_counts_each_fold_in_its_own_vocabulary(folds: Path) -> None:
    report = verify(str(folds))
    assert report.passed, report
    assert "every token is one of its fold's 64 and 65,536 and 100,000 codes" in {c.summary for c in report.checks}
    found = {(use.fold, use.group): use for use in inspect_data(str(folds)).codebook}
    tokens_NWLF = whole(folds).tokens_NWLF
    for fold, codes in enumerate(LAYOUT.vocabularies):
        assert found[fold, 0].share == 1 / codes
        assert found[fold, 0].perplexity == pytest.approx(1)
        values, counts = np.unique(tokens_NWLF[:, :, 1:, fold], return_counts=True)
        share = counts / counts.sum()
        assert found[fold, 1].share == len(values) / codes
        assert found[fold, 1].perplexity == pytest.approx(np.exp(-(share * np.log(share)).sum()))


def test_a_vocabulary_of_all_32_bits_takes_no_memory_to_inspect(folds: Path) -> None:
    manifest = TokenManifest.read(str(folds))
    fields = {name: getattr(manifest, name) for name in type(manifest).model_fields if name != "fingerprint"}
    huge = TokenLayout(LAYOUT.groups, (64, 65_536, 2**32))
    TokenManifest.build(**fields | {"layout": huge}).write(str(folds))
    assert inspect_data(str(folds)).codebook[-2].share == 1 / 2**32


@pytest.mark.parametrize("fold", range(3))
def test_a_stored_token_outside_of_its_own_fold_is_found(folds: Path, tmp_path: Path, fold: int) -> None:
    manifest = TokenManifest.read(str(folds))
    block = read_token_shard(str(folds), manifest.shards[1])
    values = block.tokens_NWLF.copy()
    values[3, 1, 2, fold] = LAYOUT.vocabularies[fold]
    bad = write_token_shard(str(folds), manifest.shards[1].name, TokenBlock(values, block.condition, block.key), {})
    fields = {name: getattr(manifest, name) for name in type(manifest).model_fields if name != "fingerprint"}
    shards = (manifest.shards[0], bad, manifest.shards[2])
    TokenManifest.build(**fields | {"shards": shards}).write(str(folds))
    codes = LAYOUT.vocabularies[fold]
    with pytest.raises(CorruptShardError, match=rf"holds the token {codes} of a codebook of {codes} \(fold {fold}\)"):
        TokenShards(str(folds), NodeCache(str(tmp_path / "cache")))
    problems = {check.name: check.problems for check in verify(str(folds)).checks}
    key = bytes(block.key[3]).decode()
    assert problems["token range"] == (f"tokens-00001.tar: sample {key} has token {codes} of a codebook of {codes}",)


def test_other_programs_read_exports_of_them_whole(folds: Path, tmp_path: Path) -> None:
    expected = whole(folds).tokens_NWLF
    paths = {}
    for name in ("webdataset", "npz", "parquet"):
        export_tokens(str(folds), str(tmp_path / name), name)
        paths[name] = [tmp_path / name / entry["name"] for entry in exported_files(str(tmp_path / name))]
    samples = list(webdataset.WebDataset([str(path) for path in paths["webdataset"]], shardshuffle=False).decode())
    assert np.array_equal([sample["tokens.npy"] for sample in samples], expected)
    assert np.array_equal(np.concatenate([np.load(path)["tokens"] for path in paths["npz"]]), expected)
    tables = [pq.read_table(path) for path in paths["parquet"]]
    shape = json.loads(tables[0].schema.metadata[b"foldtrain"])["shape"]
    rows = [row["tokens_center_flip"] for table in tables for row in table.to_pylist()]
    assert np.array_equal(np.array(rows).reshape(-1, *shape), expected[:, 1])
    assert str(tables[0].schema.field("tokens_center").type.value_type) == "uint32"
    assert storage.read_json(str(tmp_path / "npz/export.json"))["tokens"]["layout"] == LAYOUT.to_json()
