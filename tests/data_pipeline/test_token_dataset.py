"""A token data set is read through one copy on the node, checked when it is made and mapped by everyone."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import numpy as np
import pytest

from data_pipeline.errors import CorruptShardError, UsageError
from data_pipeline.node.node_cache import NodeCache
from data_pipeline.shards.manifest import TokenManifest
from data_pipeline.shards.token_dataset import TokenShards
from data_pipeline.shards.token_shards import read_arrays
from model.layout import TokenLayout
from tests.data_pipeline.small_data import TOKENIZER, flip_byte, write_tokens


def put(tokens: Path, remote: str) -> str:
    """The data set on a remote filesystem."""
    fsspec.filesystem("memory").put(str(tokens) + "/", remote + "/", recursive=True)
    return remote


def test_samples_are_those_of_the_shards_in_their_order(tokens: Path) -> None:
    shards = TokenShards(str(tokens))
    parts = [read_arrays(path.name, path.read_bytes()) for path in sorted(tokens.glob("*.tar"))]
    everything = np.arange(20)
    assert np.array_equal(shards.tokens(everything), np.concatenate([part["tokens"] for part in parts]))
    assert np.array_equal(shards.conditions, np.concatenate([part["condition"] for part in parts]))
    assert np.array_equal(shards.keys, np.concatenate([part["key"] for part in parts]))
    assert shards.shard_sizes == (8, 8, 4)


def test_samples_are_gathered_in_the_order_asked_for(tokens: Path) -> None:
    shards = TokenShards(str(tokens))
    everything = shards.tokens(np.arange(20))
    asked, views = np.array([19, 0, 8, 7, 8, 15]), np.array([0, 1, 1, 0, 0, 1])
    assert everything.shape == (20, 2, TOKENIZER.layout.positions, 2)
    assert np.array_equal(shards.tokens(asked), everything[asked])
    assert np.array_equal(shards.rows(asked * 2 + views), everything[asked, views])


def test_tokens_conditions_and_keys_are_mapped_read_only(tokens: Path) -> None:
    shards = TokenShards(str(tokens))
    for part in (shards._rows_RT, shards.conditions, shards.keys):
        assert isinstance(part.base, np.memmap)
        assert not part.flags.writeable


def test_a_remote_data_set_is_copied_once(tokens: Path, tmp_path: Path) -> None:
    remote = put(tokens, "memory://tokens-of-a-test")
    cache = NodeCache(str(tmp_path / "cache"))
    far = TokenShards(remote, cache)
    assert np.array_equal(far.tokens(np.arange(20)), TokenShards(str(tokens)).tokens(np.arange(20)))
    for shard in far.manifest.shards:
        fsspec.filesystem("memory").rm(f"{remote}/{shard.name}")
    TokenShards(remote, cache)


def test_a_shard_that_arrives_damaged_is_named_and_nothing_is_kept(tokens: Path, tmp_path: Path) -> None:
    flip_byte(tokens / "tokens-00000.tar", 700)
    remote = put(tokens, "memory://damaged-tokens-of-a-test")
    with pytest.raises(CorruptShardError, match=r"tokens-00000\.tar: sample .* is corrupt"):
        TokenShards(remote, NodeCache(str(tmp_path / "cache")))
    assert not list((tmp_path / "cache").glob("*/[!.]*.tokens"))


def test_a_shard_that_is_gone_is_named(tokens: Path, tmp_path: Path) -> None:
    (tokens / "tokens-00002.tar").unlink()
    with pytest.raises(CorruptShardError, match=r"tokens-00002\.tar is missing"):
        TokenShards(str(tokens), NodeCache(str(tmp_path / "cache")))


def test_a_cache_that_is_too_small_says_by_how_much(tokens: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"raise the limit by at least \d+"):
        TokenShards(str(tokens), NodeCache(str(tmp_path), limit=100))


def test_a_copy_of_another_data_set_is_another_copy(tokens: Path, tmp_path: Path) -> None:
    cache = NodeCache(str(tmp_path / "cache"))
    first = TokenShards(str(tokens), cache)
    manifest = TokenManifest.read(str(tokens))
    fields = {name: getattr(manifest, name) for name in TokenManifest.model_fields if name != "fingerprint"}
    TokenManifest.build(**(fields | {"classes": ("a", "b")})).write(str(tokens))
    assert TokenShards(str(tokens), cache).manifest.fingerprint != first.manifest.fingerprint
    assert len(list((tmp_path / "cache").glob("*/*.tokens"))) == 2


def test_tokens_beyond_the_codebook_are_refused_before_training_sees_them(tokens: Path) -> None:
    manifest = TokenManifest.read(str(tokens))
    small = TokenLayout(manifest.layout.groups, (2,) * manifest.layout.folds)
    fields = {name: getattr(manifest, name) for name in type(manifest).model_fields if name != "fingerprint"}
    TokenManifest.build(**fields | {"layout": small}).write(str(tokens))
    with pytest.raises(CorruptShardError, match=r"holds the token \d+ of a codebook of 2"):
        TokenShards(str(tokens), NodeCache(str(tokens.parent / "cache")))


def test_conditions_that_name_no_class_are_refused_before_training_sees_them(tokens: Path) -> None:
    manifest = TokenManifest.read(str(tokens))
    fields = {name: getattr(manifest, name) for name in type(manifest).model_fields if name != "fingerprint"}
    TokenManifest.build(**fields | {"classes": manifest.classes[:1]}).write(str(tokens))
    with pytest.raises(CorruptShardError, match="holds the class 1, but there are 1 classes"):
        TokenShards(str(tokens), NodeCache(str(tokens.parent / "cache")))


def test_a_manifest_has_of_its_layout_what_a_layout_of_storage_has_and_no_more(tmp_path: Path) -> None:
    uri = write_tokens(tmp_path / "tokens", (3,))
    record = json.loads((tmp_path / "tokens" / "manifest.json").read_text())
    manifest = TokenManifest.read(uri)
    assert record["layout"] == manifest.layout.to_json() == manifest.model_dump()["layout"]
