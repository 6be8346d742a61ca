"""Token shards: blocks in a tar, tied to the tokenizer that made them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import UsageError
from data_pipeline.shards.manifest import TokenManifest
from data_pipeline.shards.token_dataset import TokenShards
from data_pipeline.shards.token_shards import TokenBlock, check_tokenizer, encode_token_shard
from data_pipeline.shards.weights import Card
from model.config import VectorConfig
from tests.data_pipeline.small_data import TOKENIZER, tokenizer_card


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


def test_the_checksum_of_a_sample_covers_tokens_condition_and_key() -> None:
    whole = block()
    tokens, condition, key = whole.tokens_NWLF.copy(), whole.condition.copy(), whole.key.copy()
    tokens[0, 1, 4, 2] ^= 1
    condition[1] += 1
    key[2] = b"other"
    assert (TokenBlock(tokens, condition, key).crc32() != whole.crc32()).tolist() == [True, True, True, False]


def test_webdataset_opens_a_token_shard(tokens: Path) -> None:
    url = str(tokens / "tokens-00001.tar")
    (sample,) = webdataset.WebDataset(url, shardshuffle=False).decode()
    shards = TokenShards(str(tokens))
    assert sample["__key__"] == "tokens-00001"
    assert np.array_equal(sample["tokens.npy"], shards.tokens(np.arange(8, 16)))
    assert np.array_equal(sample["condition.npy"], shards.conditions[8:16])
    assert np.array_equal(sample["key.npy"], shards.keys[8:16])
    assert sample["meta.json"]["tokenizer"]["encoder"] == shards.manifest.tokenizer.encoder
    assert sample["meta.json"]["source"] == shards.manifest.source


def test_tokens_of_another_tokenizer_are_refused_with_what_differs(tokens: Path) -> None:
    manifest = TokenManifest.read(str(tokens))
    config = TOKENIZER.model_copy(update={"quantizer": VectorConfig(codebook_size=128), "scales": (1, 4)}).model_dump(
        mode="json"
    )
    other = Card("tokenizer", config, {"model": "a" * 64}, {})
    with pytest.raises(UsageError) as error:
        check_tokenizer(manifest, other)
    for part in (
        manifest.tokenizer.encoder[:16],
        other.fingerprint()[:16],
        "quantizer.codebook_size: 64 -> 128",
        "scales: [1, 2, 4] -> [1, 4]",
    ):
        assert part in str(error.value)


def test_tokens_of_the_same_tokenizer_with_other_weights_are_refused(tokens: Path) -> None:
    with pytest.raises(UsageError, match="the configs are equal, the weights differ"):
        check_tokenizer(TokenManifest.read(str(tokens)), tokenizer_card("b" * 64))


def test_tokens_of_this_tokenizer_pass(tokens: Path) -> None:
    check_tokenizer(TokenManifest.read(str(tokens)), tokenizer_card())
