"""Batches: pure functions of the step, the same at any number of workers."""

from __future__ import annotations

import functools
import gc
import itertools
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.config import ReadingConfig
from data_pipeline.errors import CorruptShardError
from data_pipeline.images.crop_kinds import ADM_RANDOM, CENTER, VAR_RANDOM, AnyCrop, RandomResizedCrop, ResizeCenterCrop
from data_pipeline.images.transforms import Transform
from data_pipeline.loading import loader
from data_pipeline.loading.loader import ImageBatches, TokenBatches, decode_all
from data_pipeline.node.node_cache import NodeCache
from data_pipeline.order.permutations import SampleOrder, keyed_uniform
from data_pipeline.shards.image_shards import ImageShards
from data_pipeline.shards.token_copy import MappedTokens
from data_pipeline.shards.token_dataset import TokenShards
from data_pipeline.shards.token_windows import TokenWindows
from tests.data_pipeline.small_data import Images, flip_byte

same_files = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)


@pytest.fixture
def token_shards(tokens: Path) -> TokenShards:
    return TokenShards(str(tokens))


@pytest.fixture
def image_shards(images: Images) -> ImageShards:
    return ImageShards(images.uri)


def image_batches(images: Images, **options: object) -> ImageBatches:
    fixed = {"image_size": 16, "fit": "crop", "seed": 5, "global_batch": 8}
    return ImageBatches(ImageShards(images.uri), **(fixed | options))  # type: ignore[arg-type]


SIZES = st.sampled_from([1, 2, 4, 8])
GLOBAL_BATCH = 64


def consumed(make: Callable[[], TokenBatches | ImageBatches], steps: range, world: int, accumulation: int) -> list[int]:
    """The samples of some steps, micro-batch by micro-batch, as ranks of their own that start there consume them."""
    ranks = [make() for _ in range(world)]
    seen = []
    for step in steps:
        for rank, batches in enumerate(ranks):
            for micro in np.split(batches.batch(step, rank, world).index_B, accumulation):
                seen += micro.tolist()
    return seen


@pytest.mark.slow
@given(SIZES, SIZES, st.integers(0, 40), st.integers(1, 4), st.sampled_from([None, 1, 2]))
@same_files
def test_tokens_come_in_the_same_order_at_any_world_size_accumulation_and_resume(
    token_shards: TokenShards, world: int, accumulation: int, start: int, steps: int, window: int | None
) -> None:
    def make() -> TokenBatches:
        return TokenBatches(token_shards, 7, GLOBAL_BATCH, window)

    unbroken = consumed(make, range(start + steps), 1, 1)
    resumed = consumed(make, range(start, start + steps), world, accumulation)
    assert resumed == unbroken[start * GLOBAL_BATCH :]


@pytest.mark.slow
@given(SIZES, SIZES, st.sampled_from([0, 4]), st.integers(0, 10), st.integers(1, 2))
@settings(same_files, max_examples=15)
def test_images_come_in_the_same_order_at_any_world_size_accumulation_threads_and_resume(
    image_shards: ImageShards, world: int, accumulation: int, threads: int, start: int, steps: int
) -> None:
    reading = ReadingConfig(threads=threads, crop=ADM_RANDOM)

    def make() -> ImageBatches:
        return ImageBatches(
            image_shards, image_size=8, fit="crop", seed=7, global_batch=GLOBAL_BATCH, reading=reading, memory_limit=0
        )

    order = SampleOrder(7, image_shards.shard_sizes)
    positions = np.arange(start * GLOBAL_BATCH, (start + steps) * GLOBAL_BATCH)
    assert consumed(make, range(start, start + steps), world, accumulation) == order.indices(positions).tolist()


@given(step=st.integers(0, 50), world=SIZES)
@same_files
def test_token_batches_do_not_depend_on_the_number_of_workers(token_shards: TokenShards, step: int, world: int) -> None:
    whole = TokenBatches(token_shards, 7, 8).batch(step)
    parts = [TokenBatches(token_shards, 7, 8).batch(step, rank, world) for rank in range(world)]
    for field in ("tokens_BLF", "condition_B", "position_B", "index_B"):
        assert np.array_equal(np.concatenate([getattr(part, field) for part in parts]), getattr(whole, field))


@pytest.mark.parametrize("threads", [0, 4])
@pytest.mark.parametrize("crop", [ADM_RANDOM, VAR_RANDOM, RandomResizedCrop()], ids=lambda crop: str(crop.kind))
def test_a_random_crop_depends_on_the_position_alone(image_shards: ImageShards, crop: AnyCrop, threads: int) -> None:
    reading = ReadingConfig(threads=threads, crop=crop)
    options = {"image_size": 8, "fit": "crop", "seed": 7, "global_batch": 8, "reading": reading}
    whole = ImageBatches(image_shards, **options).batch(5)  # type: ignore[arg-type]
    batches = ImageBatches(image_shards, **options)  # type: ignore[arg-type]
    parts = [batches.batch(5, rank, 4) for rank in range(4)]
    assert np.array_equal(np.concatenate([part.pixels_BCHW for part in parts]), whole.pixels_BCHW)
    assert not np.array_equal(whole.pixels_BCHW, image_batches_of(image_shards, reading, 7).batch(5).pixels_BCHW)


def test_the_numbers_behind_a_crop_are_keyed_by_seed_name_and_position(image_shards: ImageShards) -> None:
    reading = ReadingConfig(threads=0, crop=ADM_RANDOM)
    batch = ImageBatches(image_shards, image_size=8, fit="crop", seed=7, global_batch=8, reading=reading).batch(5)
    draws = [keyed_uniform(7, name, batch.position_B) for name in ("crop_side", "crop_y", "crop_x")]
    for row, index in enumerate(batch.index_B.tolist()):
        crop = Transform(8, crop=ADM_RANDOM)
        expected = image_shards.decode(index, functools.partial(crop, draws=[draw[row] for draw in draws]))
        assert np.array_equal(batch.pixels_BCHW[row].transpose(1, 2, 0), expected)


def test_a_crop_without_chance_is_decoded_once_and_kept(image_shards: ImageShards) -> None:
    reading = ReadingConfig(threads=0, crop=ResizeCenterCrop(filter="bilinear"))
    batches = ImageBatches(image_shards, image_size=8, fit="crop", seed=7, global_batch=8, reading=reading)
    assert batches.held == "from memory, decoded at the start"
    batch = batches.batch(0)
    expected = image_shards.decode(int(batch.index_B[3]), Transform(8, crop=reading.crop))
    assert np.array_equal(batch.pixels_BCHW[3].transpose(1, 2, 0), expected)


def image_batches_of(images: ImageShards, reading: ReadingConfig, seed: int) -> ImageBatches:
    """The same batches with centre crops."""
    center = reading.model_copy(update={"crop": CENTER})
    return ImageBatches(images, image_size=8, fit="crop", seed=seed, global_batch=8, reading=center)


@pytest.mark.parametrize("block", [1, 8, 12, 19, 10**6])
def test_batches_are_those_of_their_positions_however_many_are_looked_up_at_once(
    token_shards: TokenShards, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "_BLOCK", block)
    batches, order = TokenBatches(token_shards, 7, 8), SampleOrder(7, token_shards.shard_sizes)
    for step in (*range(9), 3, 40, 41, 2):
        for rank, world in ((0, 1), (1, 2), (3, 4)):
            batch = batches.batch(step, rank, world)
            share = 8 // world
            assert batch.position_B.tolist() == [step * 8 + rank * share + at for at in range(share)]
            assert batch.index_B.tolist() == order.indices(batch.position_B).tolist()
            assert batch.condition_B.tolist() == token_shards.conditions[batch.index_B].tolist()
            view_B = (keyed_uniform(7, "view", batch.position_B) * 2).astype(int)
            both_BWLF = token_shards.tokens(batch.index_B)
            assert np.array_equal(batch.tokens_BLF, both_BWLF[np.arange(share), view_B])


@pytest.mark.parametrize("first", [0, 13, 20, 1000])
@pytest.mark.parametrize(("gathered", "block"), [(1, 16), (3, 7), (256, 16_384)])
def test_samples_one_by_one_are_those_of_the_batches(
    token_shards: TokenShards, first: int, gathered: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "_GATHERED", gathered)
    monkeypatch.setattr(loader, "_BLOCK", block)
    batches = TokenBatches(token_shards, 7, 1)
    for step, (tokens_LF, condition) in zip(range(first, first + 50), batches.samples(first), strict=False):
        batch = batches.batch(step)
        assert np.array_equal(tokens_LF, batch.tokens_BLF[0])
        assert condition == batch.condition_B[0]
        assert type(condition) is int


def test_nothing_is_looked_up_before_its_turn_by_windows(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "_BLOCK", 4)
    windows = TokenWindows(str(tokens), NodeCache(str(tmp_path / "cache")), 1)
    follow, block, followed, readers = windows.follow, windows.block, list[int](), set[threading.Thread]()

    def follow_and_note(order: SampleOrder, first: int, stop: int) -> None:
        followed.append(first)
        follow(order, first, stop)

    def note_and_read(number: int) -> MappedTokens:
        readers.add(threading.current_thread())
        return block(number)

    monkeypatch.setattr(windows, "follow", follow_and_note)
    monkeypatch.setattr(windows, "block", note_and_read)
    batches, found = TokenBatches(windows, 7, 4, 1), list[int]()
    for step in range(5):
        batches.batch(step)
        found.append(len(followed))
    assert followed == [0, 4, 8, 12, 16]
    assert found == [1, 2, 3, 4, 5]
    assert readers == {threading.current_thread()}


def test_samples_one_by_one_are_those_of_the_batches_by_windows(tokens: Path, tmp_path: Path) -> None:
    cache = NodeCache(str(tmp_path / "cache"))
    windows = TokenBatches(TokenWindows(str(tokens), cache, 1), 7, 4, 1)
    whole = TokenBatches(TokenShards(str(tokens), cache), 7, 4, 1)
    found = list(itertools.islice(windows.samples(3), 60))
    for (tokens_LF, condition), (other_LF, other) in zip(found, whole.samples(3), strict=False):
        assert np.array_equal(tokens_LF, other_LF)
        assert condition == other


def test_five_steps_of_eight_hold_each_of_twenty_samples_twice(tokens: Path) -> None:
    batches = TokenBatches(TokenShards(str(tokens)), 0, 8)
    seen = Counter(index for step in range(5) for index in batches.batch(step).index_B.tolist())
    assert seen == dict.fromkeys(range(20), 2)


def test_a_token_batch_holds_one_view_of_its_samples_and_both_views_occur(tokens: Path) -> None:
    shards = TokenShards(str(tokens))
    batches, views = TokenBatches(shards, 0, 20), set()
    for step in range(3):
        batch = batches.batch(step)
        both = shards.tokens(batch.index_B)
        equal = (both == batch.tokens_BLF[:, None]).all((2, 3))
        assert equal.any(1).all()
        assert np.array_equal(batch.condition_B, shards.conditions[batch.index_B])
        views |= set(equal.argmax(1).tolist())
    assert views == {0, 1}


def test_a_thread_that_looks_ahead_ends_with_the_samples(
    token_shards: TokenShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "_BLOCK", 4)
    samples = TokenBatches(token_shards, 7, 4).samples()
    before = set(threading.enumerate())
    next(samples)
    (ahead,) = (thread for thread in set(threading.enumerate()) - before if thread.name == "prefetch")
    del samples
    gc.collect()
    assert not ahead.is_alive()


def test_a_later_epoch_can_see_the_other_view_of_a_sample(tokens: Path) -> None:
    batches, seen = TokenBatches(TokenShards(str(tokens)), 0, 20), set()
    for epoch in range(12):
        batch = batches.batch(epoch)
        seen.add(batch.tokens_BLF[batch.index_B == 4].tobytes())
    assert len(seen) == 2


def test_image_batches_do_not_depend_on_the_number_of_workers(images: Images) -> None:
    batches = image_batches(images, horizontal_flip=True)
    whole = batches.batch(3)
    parts = [batches.batch(3, rank, 4) for rank in range(4)]
    assert np.array_equal(np.concatenate([part.pixels_BCHW for part in parts]), whole.pixels_BCHW)
    assert np.array_equal(np.concatenate([part.label_B for part in parts]), whole.label_B)


def test_images_decoded_on_the_fly_are_those_decoded_at_the_start(images: Images) -> None:
    kept, streamed = (
        image_batches(images, horizontal_flip=True),
        image_batches(images, horizontal_flip=True, memory_limit=0),
    )
    for step in (0, 1, 7):
        assert np.array_equal(kept.batch(step).pixels_BCHW, streamed.batch(step).pixels_BCHW)


def test_the_first_images_are_decoded_alone(images: Images) -> None:
    shards = ImageShards(images.uri)
    assert np.array_equal(decode_all(shards, Transform(16), 9), decode_all(shards, Transform(16))[:9])
    assert len(decode_all(shards, Transform(16), 10**6)) == 20


def test_about_half_of_the_images_are_mirrored_and_the_rest_untouched(images: Images) -> None:
    plain, mirrored = (
        image_batches(images, global_batch=200),
        image_batches(images, global_batch=200, horizontal_flip=True),
    )
    one, other = plain.batch(0).pixels_BCHW, mirrored.batch(0).pixels_BCHW
    same = (one == other).all((1, 2, 3))
    turned = (one[..., ::-1] == other).all((1, 2, 3))
    assert (same | turned).all()
    assert 70 < turned.sum() < 130


def test_drawing_a_batch_does_not_change_the_next(images: Images) -> None:
    batches = image_batches(images, horizontal_flip=True)
    first = batches.batch(0).pixels_BCHW
    for step in range(5):
        batches.batch(step)
    assert np.array_equal(batches.batch(0).pixels_BCHW, first)


@pytest.mark.parametrize("memory_limit", [0, 2**30])
def test_a_damaged_image_is_named(images: Images, memory_limit: int) -> None:
    flip_byte(images.folder / "images-00000.tar", 700)
    with pytest.raises(CorruptShardError, match=r"images-00000\.tar: sample .* is corrupt"):
        image_batches(images, memory_limit=memory_limit, global_batch=20).batch(0)
