"""Which tokens a look at a generator sees: the same at any number of ranks, one view of each sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist

from data_pipeline.errors import CorruptShardError
from data_pipeline.shards.manifest import TokenManifest
from data_pipeline.shards.token_reader import TokenReader
from data_pipeline.shards.token_shards import TokenBlock
from tests.data_pipeline.small_data import flip_byte, write_tokens
from trainer.stages.generator_validation import FixedTokens, TokenPart, _spread

VIEWS = ("center", "center_flip", "top_left")


@pytest.fixture
def tokens(tmp_path: Path) -> TokenReader:
    """Twelve samples in three shards, each seen in three ways."""
    uri = write_tokens(tmp_path / "tokens", (5, 4, 3), VIEWS)
    return TokenReader(uri, TokenManifest.read(uri))


def parts(
    tokens: TokenReader, monkeypatch: pytest.MonkeyPatch, world: int = 1, count: int = 11, batch: int = 3
) -> list[TokenPart]:
    """All ranks' parts, in the order of their numbers."""
    monkeypatch.setattr(dist, "get_world_size", lambda: world)
    found = []
    for rank in range(world):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        found += FixedTokens(tokens, count, batch).mine()
    return sorted(found, key=lambda part: part.number)


def test_the_next_view_is_seen_of_the_next_sample(tokens: TokenReader, monkeypatch: pytest.MonkeyPatch) -> None:
    every = tokens.samples(0, 12)
    seen = np.concatenate([part.tokens_BLF.numpy() for part in parts(tokens, monkeypatch)])
    assert seen.dtype == np.int64
    for number in range(11):
        assert np.array_equal(seen[number], every.tokens_NWLF[number, number % len(VIEWS)])


def test_samples_have_their_classes_and_numbers(tokens: TokenReader, monkeypatch: pytest.MonkeyPatch) -> None:
    found = parts(tokens, monkeypatch)
    assert [part.index_B.tolist() for part in found] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10]]
    assert [label for part in found for label in part.condition_B.tolist()] == [number % 2 for number in range(11)]


@pytest.mark.parametrize("world", [2, 3, 8])
def test_ranks_have_the_same_batches_each_once(
    tokens: TokenReader, monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    alone, together = parts(tokens, monkeypatch), parts(tokens, monkeypatch, world)
    assert [part.number for part in together] == [0, 1, 2, 3]
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one.tokens_BLF, other.tokens_BLF)
        assert np.array_equal(one.index_B, other.index_B)


def test_a_shard_is_read_once_for_all_batches_that_lie_in_it(
    tokens: TokenReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    block = tokens.block

    def counted(number: int) -> TokenBlock:
        read.append(number)
        return block(number)

    monkeypatch.setattr(tokens, "block", counted)
    parts(tokens, monkeypatch, batch=1)
    assert read == [0, 1, 2]


def test_of_fewer_samples_than_asked_for_all_are_seen(tokens: TokenReader, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sum(len(part.index_B) for part in parts(tokens, monkeypatch, count=1000, batch=64)) == 12


def test_a_damaged_shard_is_named(tokens: TokenReader, monkeypatch: pytest.MonkeyPatch) -> None:
    flip_byte(Path(tokens.uri) / "tokens-00001.tar", 700)
    with pytest.raises(CorruptShardError, match=r"tokens-00001\.tar"):
        parts(tokens, monkeypatch)


@pytest.mark.parametrize(
    ("count", "most", "labels"), [(1000, 4, (0, 333, 666, 999)), (3, 4, (0, 1, 2)), (0, 4, ()), (5, 1, (0,))]
)
def test_of_many_classes_some_at_even_distances_are_drawn(count: int, most: int, labels: tuple[int, ...]) -> None:
    assert _spread(count, most) == labels
