"""Token shards: blocks in a tar, mapped where they lie, tied to the tokenizer that made them."""

from __future__ import annotations

from pathlib import Path

import fsspec
import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import CorruptShardError, UsageError
from data_pipeline.manifest import TokenManifest
from data_pipeline.token_shards import TokenBlock, TokenShards, check_tokenizer, encode_token_shard, local_shard
from tests.data_pipeline.small_data import TOKENIZER, flip_byte


def block(seed: int = 0, samples: int = 4) -> TokenBlock:
    generator = np.random.default_rng(seed)
    return TokenBlock(
        generator.integers(0, 64, (samples, 2, 5, 3), dtype=np.uint16),
        generator.integers(0, 9, samples, dtype=np.int32),
        np.array([f"key{number}" for number in range(samples)], "S"),
    )


@given(st.integers(0, 1000), st.integers(1, 9))
def test_the_same_block_gives_the_same_bytes(seed: int, samples: int) -> None:
    one, other = (encode_token_shard("a.tar", block(seed, samples), {"b": 1, "a": [2]}) for _ in range(2))
    assert one == other


def test_the_checksum_of_a_sample_covers_tokens_label_and_key() -> None:
    whole = block()
    tokens, label, key = whole.tokens_NWLF.copy(), whole.label.copy(), whole.key.copy()
    tokens[0, 1, 4, 2] ^= 1
    label[1] += 1
    key[2] = b"other"
    assert (TokenBlock(tokens, label, key).crc32() != whole.crc32()).tolist() == [True, True, True, False]


def test_webdataset_opens_a_token_shard(tokens: Path) -> None:
    url = str(tokens / "tokens-00001.tar")
    (sample,) = webdataset.WebDataset(url, shardshuffle=False).decode()
    shards = TokenShards(str(tokens))
    assert sample["__key__"] == "tokens-00001"
    assert np.array_equal(sample["tokens.npy"], shards.tokens(np.arange(8, 16)))
    assert np.array_equal(sample["label.npy"], shards.labels[8:16])
    assert np.array_equal(sample["key.npy"], shards.keys[8:16])
    assert sample["meta.json"]["tokenizer"]["fingerprint"] == shards.manifest.tokenizer.fingerprint
    assert sample["meta.json"]["source"] == shards.manifest.source


def test_tokens_are_mapped_not_read_and_aligned(tokens: Path) -> None:
    shards = TokenShards(str(tokens))
    for part in shards._tokens:
        assert isinstance(part, np.memmap)
        assert part.ctypes.data % 64 == 0
        assert not part.flags.writeable


def test_rows_are_gathered_across_shards_in_the_order_asked_for(tokens: Path) -> None:
    shards = TokenShards(str(tokens))
    everything = shards.tokens(np.arange(20))
    asked = np.array([19, 0, 8, 7, 8, 15])
    assert everything.shape == (20, 2, TOKENIZER.layout.positions, 2)
    assert np.array_equal(shards.tokens(asked), everything[asked])
    views = np.array([0, 1, 1, 0, 0, 1])
    assert np.array_equal(shards.views(asked, views), everything[asked, views])


def test_a_remote_shard_is_copied_once_and_checked(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = "memory://tokens-of-a-test"
    fsspec.filesystem("memory").put(str(tokens) + "/", remote + "/", recursive=True)
    cache = tmp_path / "cache"
    far = TokenShards(remote, str(cache))
    assert np.array_equal(far.tokens(np.arange(20)), TokenShards(str(tokens)).tokens(np.arange(20)))
    assert {path.stem for path in cache.iterdir()} == {shard.sha256 for shard in far.manifest.shards}
    for shard in far.manifest.shards:
        fsspec.filesystem("memory").rm(f"{remote}/{shard.name}")
    TokenShards(remote, str(cache))


def test_a_remote_shard_that_arrives_damaged_is_not_kept(tokens: Path, tmp_path: Path) -> None:
    flip_byte(tokens / "tokens-00000.tar", 700)
    remote = "memory://damaged-tokens-of-a-test"
    fsspec.filesystem("memory").put(str(tokens) + "/", remote + "/", recursive=True)
    with pytest.raises(CorruptShardError, match=r"tokens-00000\.tar: sample .* is corrupt"):
        TokenShards(remote, str(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_a_local_shard_is_used_where_it_lies(tokens: Path, tmp_path: Path) -> None:
    manifest = TokenManifest.read(str(tokens))
    path = local_shard(str(tokens), manifest.shards[0], tmp_path / "cache")
    assert path == tokens / "tokens-00000.tar"


def test_a_shard_that_is_gone_is_named(tokens: Path) -> None:
    (tokens / "tokens-00002.tar").unlink()
    with pytest.raises(CorruptShardError, match=r"tokens-00002\.tar is missing"):
        TokenShards(str(tokens))


def test_tokens_of_another_tokenizer_are_refused_with_what_differs(tokens: Path) -> None:
    manifest = TokenManifest.read(str(tokens))
    config = TOKENIZER.model_copy(update={"codebook_size": 128, "scales": (1, 4)}).model_dump(mode="json")
    with pytest.raises(UsageError) as error:
        check_tokenizer(manifest, "f" * 64, config)
    for part in (
        manifest.tokenizer.fingerprint[:16],
        "f" * 16,
        "codebook_size: 64 -> 128",
        "scales: [1, 2, 4] -> [1, 4]",
    ):
        assert part in str(error.value)


def test_tokens_of_the_same_tokenizer_with_other_weights_are_refused(tokens: Path) -> None:
    with pytest.raises(UsageError, match="the configs are equal, the weights differ"):
        check_tokenizer(TokenManifest.read(str(tokens)), "f" * 64, TOKENIZER.model_dump(mode="json"))


def test_tokens_of_this_tokenizer_pass(tokens: Path) -> None:
    manifest = TokenManifest.read(str(tokens))
    check_tokenizer(manifest, manifest.tokenizer.fingerprint, manifest.tokenizer.config)
