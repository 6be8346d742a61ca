"""Tokens that are read by shuffle windows: the batches of a whole copy, two windows on the disk, one on a resume."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import CorruptShardError, UsageError
from data_pipeline.loading.loader import TokenBatches
from data_pipeline.node.copy_seal import SEAL_BYTES
from data_pipeline.node.node_cache import NodeCache
from data_pipeline.order.ledger import chain
from data_pipeline.order.permutations import SampleOrder
from data_pipeline.shards.manifest import TokenManifest
from data_pipeline.shards.token_dataset import TokenShards
from data_pipeline.shards.token_reader import TokenReader
from data_pipeline.shards.token_shards import TokenBlock
from data_pipeline.shards.token_windows import TokenWindows, open_tokens
from model.layout import TokenLayout
from tests.data_pipeline.small_data import flip_byte, write_tokens

SIZES = (5, 8, 3, 7, 6, 4, 8, 2)
TEN_CROP = tuple(f"crop{number}" for number in range(10))
WIDE = TokenLayout((1, 4), (100_000, 7))
NARROW = TokenLayout((1, 4), (64, 7))


def blocks_in(folder: Path) -> list[Path]:
    return list(folder.glob("*/*.block"))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the shards of which a copy is made."""
    numbers: list[int] = []
    read = TokenReader.block

    def counted(reader: TokenReader, number: int) -> TokenBlock:
        numbers.append(number)
        return read(reader, number)

    monkeypatch.setattr(TokenReader, "block", counted)
    return numbers


@pytest.mark.parametrize(("layout", "views"), [(NARROW, ("center",)), (WIDE, TEN_CROP)])
@pytest.mark.parametrize("world", [1, 2, 8])
def test_batches_are_those_of_a_whole_copy_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: TokenLayout, views: tuple[str, ...], world: int
) -> None:
    monkeypatch.setattr("data_pipeline.loading.loader._BLOCK", 32)
    uri, cache = write_tokens(tmp_path / "tokens", SIZES, views, layout), NodeCache(str(tmp_path / "cache"))
    wholes = [TokenBatches(TokenShards(uri, cache), 7, 8, 3) for _ in range(world)]
    windowed = [TokenBatches(TokenWindows(uri, cache, 3), 7, 8, 3) for _ in range(world)]
    for step in [*range(14), 3]:
        for rank, (whole, batches) in enumerate(zip(wholes, windowed, strict=True)):
            expected, found = whole.batch(step, rank, world), batches.batch(step, rank, world)
            for field in ("tokens_BLF", "condition_B", "position_B", "index_B"):
                one, other = getattr(expected, field), getattr(found, field)
                assert (one.dtype, one.shape) == (other.dtype, other.shape)
                assert np.array_equal(one, other)
            keys = [batches.keys[found.index_B] for batches in (whole, windowed[0])]
            assert all(np.array_equal(each, keys[0]) for each in keys)
            assert len({chain(5, each) for each in keys}) == 1
    assert [each.order() for each in windowed] == [wholes[0].order()] * world


def test_samples_are_those_of_a_whole_copy_in_any_order(tmp_path: Path) -> None:
    uri, cache = write_tokens(tmp_path / "tokens", SIZES, TEN_CROP), NodeCache(str(tmp_path / "cache"))
    whole, windowed = TokenShards(uri, cache), TokenWindows(uri, cache, 2)
    asked = np.random.default_rng(0).integers(0, whole.count, (100,))
    assert np.array_equal(windowed.tokens(asked), whole.tokens(asked))
    assert np.array_equal(windowed.conditions[asked], whole.conditions[asked])
    assert windowed.keys[asked.reshape(4, 25)].tolist() == whole.keys[asked.reshape(4, 25)].tolist()
    assert windowed.conditions[asked[:0]].tolist() == []
    assert len(windowed.keys) == whole.count == sum(SIZES)


def test_an_epoch_makes_a_copy_of_each_shard_once_for_all_ranks(tmp_path: Path, made: list[int]) -> None:
    uri, cache = write_tokens(tmp_path / "tokens", SIZES), NodeCache(str(tmp_path / "cache"))
    ranks = [TokenBatches(TokenWindows(uri, cache, 2), 7, 1, 2) for _ in range(2)]
    for step in range(sum(SIZES)):
        for batches in ranks:
            batches.batch(step)
    assert sorted(made) == sorted(range(8))


def wait_for(shards: TokenShards | TokenWindows) -> None:
    """Until what is fetched ahead is there."""
    assert isinstance(shards, TokenWindows)
    for number in shards._copies.numbers():
        shards.block(number)


def test_a_resume_reads_the_window_of_its_position_and_fetches_the_next(tmp_path: Path, made: list[int]) -> None:
    uri, cache = write_tokens(tmp_path / "tokens", (10,) * 12), NodeCache(str(tmp_path / "cache"))
    batches = TokenBatches(TokenWindows(uri, cache, 3), 7, 10, 3)
    order = SampleOrder(7, (10,) * 12, 3)
    batches.batch(12 * 10 * 50 // 10 + 6)  # the third of four windows of the 51st epoch
    wait_for(batches._shards)
    here, soon = order.window_at(12 * 10 * 50 + 60), order.window_at(12 * 10 * 50 + 90)
    assert (here.number, soon.number) == (2, 3)
    assert set(made) == {*here.shards, *soon.shards}


def test_a_window_is_fetched_ahead_and_the_last_one_let_go(tmp_path: Path, made: list[int]) -> None:
    uri, cache = write_tokens(tmp_path / "tokens", (10,) * 12), NodeCache(str(tmp_path / "cache"))
    shards, order = TokenWindows(uri, cache, 3), SampleOrder(1, (10,) * 12, 3)
    for position in range(0, 120, 30):
        here, soon = order.window_at(position), order.window_at(position + 30)
        shards.follow(order, position, position + 30)
        assert shards._copies.numbers() == {*here.shards, *soon.shards}
    wait_for(shards)
    assert {*here.shards, *soon.shards} <= set(made)


def block_bytes(uri: str) -> list[int]:
    return [shard.bytes + 64 + SEAL_BYTES for shard in TokenManifest.read(uri).shards]


def test_the_disk_holds_two_windows_and_no_more(tmp_path: Path) -> None:
    uri = write_tokens(tmp_path / "tokens", (10,) * 12)
    limit = 4 * max(block_bytes(uri))
    cache = NodeCache(str(tmp_path / "cache"), limit)
    whole, batches = (
        TokenShards(uri, NodeCache(str(tmp_path / "big"))),
        TokenBatches(TokenWindows(uri, cache, 2), 1, 5, 2),
    )
    plain = TokenBatches(whole, 1, 5, 2)
    for step in range(60):
        assert np.array_equal(batches.batch(step).tokens_BLF, plain.batch(step).tokens_BLF)
        wait_for(batches._shards)
        assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*/*")) <= limit


def test_a_shard_that_is_damaged_is_named_when_its_window_is_read(tmp_path: Path) -> None:
    uri = write_tokens(tmp_path / "tokens", (10,) * 4)
    flip_byte(tmp_path / "tokens/tokens-00002.tar", 700)
    batches = TokenBatches(TokenWindows(uri, NodeCache(str(tmp_path / "cache")), 1), 1, 10, 1)
    with pytest.raises(CorruptShardError, match=r"tokens-00002\.tar: sample .* is corrupt"):
        [batches.batch(step) for step in range(4)]


def test_auto_takes_one_copy_where_there_is_room_and_windows_where_not(tmp_path: Path) -> None:
    uri = write_tokens(tmp_path / "tokens", (10,) * 12)
    small = NodeCache(str(tmp_path / "small"), 5 * max(block_bytes(uri)))
    large = NodeCache(str(tmp_path / "large"))
    assert open_tokens(uri, large, "auto", 2).held == "through one copy on each node"
    assert open_tokens(uri, small, "auto", 2).held == "by windows of 2 shards of 12"
    assert open_tokens(uri, large, "windows", 2).held == "by windows of 2 shards of 12"


@pytest.mark.parametrize(
    ("how", "window", "shards", "message"),
    [
        ("windows", None, 12, "set data.reading.shuffle_window"),
        ("auto", None, 12, r"set data\.reading\.shuffle_window to at most 2 \(of 12 shards\)"),
        ("copy", 2, 12, r"set data\.reading\.tokens to auto or windows"),
        ("copy", 5, 12, r"set data\.reading\.shuffle_window to at most 2 "),
        ("windows", 3, 12, r"shuffle_window is 3, and two windows of .* take [\d,]+ bytes, .* to at most 2"),
        ("auto", 1, 1, r"smaller shards \(tokens\.shard_samples\)"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_sizes_and_the_setting(
    tmp_path: Path, how: str, window: int | None, shards: int, message: str
) -> None:
    uri = write_tokens(tmp_path / "tokens", (10,) * 12)
    limit = 5 * max(block_bytes(uri)) if shards > 1 else 100
    if shards == 1:
        uri = write_tokens(tmp_path / "one", (10,))
    with pytest.raises(UsageError, match=message) as raised:
        open_tokens(uri, NodeCache(str(tmp_path / "cache"), limit), how, window)  # type: ignore[arg-type]
    assert not blocks_in(tmp_path / "cache")
    if how != "windows" and shards > 1:
        assert f"{sum(shard.bytes for shard in TokenManifest.read(uri).shards):,} bytes" in str(raised.value)
        assert re.search(rf"may hold {limit} bytes", str(raised.value))
