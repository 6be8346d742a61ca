"""Batches: pure functions of the step, the same at any number of workers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.errors import CorruptShardError
from data_pipeline.image_shards import ImageShards
from data_pipeline.loader import ImageBatches, TokenBatches, decode_all
from data_pipeline.token_shards import TokenShards
from data_pipeline.transforms import Transform
from tests.data_pipeline.small_data import Images, flip_byte

same_files = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)


def image_batches(images: Images, **options: object) -> ImageBatches:
    fixed = {"image_size": 16, "fit": "crop", "seed": 5, "global_batch": 8}
    return ImageBatches(ImageShards(images.uri), **(fixed | options))  # type: ignore[arg-type]


@given(step=st.integers(0, 50), world=st.sampled_from([1, 2, 4, 8]))
@same_files
def test_token_batches_do_not_depend_on_the_number_of_workers(tokens: Path, step: int, world: int) -> None:
    batches = TokenBatches(TokenShards(str(tokens)), 7, 8)
    whole = batches.batch(step)
    parts = [batches.batch(step, rank, world) for rank in range(world)]
    for field in ("tokens_BLF", "label_B", "position_B", "index_B"):
        assert np.array_equal(np.concatenate([getattr(part, field) for part in parts]), getattr(whole, field))


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
        assert np.array_equal(batch.label_B, shards.labels[batch.index_B])
        views |= set(equal.argmax(1).tolist())
    assert views == {0, 1}


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
    assert np.array_equal(np.concatenate([part.image_BCHW for part in parts]), whole.image_BCHW)
    assert np.array_equal(np.concatenate([part.label_B for part in parts]), whole.label_B)


def test_images_decoded_on_the_fly_are_those_decoded_at_the_start(images: Images) -> None:
    kept, streamed = (
        image_batches(images, horizontal_flip=True),
        image_batches(images, horizontal_flip=True, memory_limit=0),
    )
    for step in (0, 1, 7):
        assert np.array_equal(kept.batch(step).image_BCHW, streamed.batch(step).image_BCHW)


def test_the_first_images_are_decoded_alone(images: Images) -> None:
    shards = ImageShards(images.uri)
    assert np.array_equal(decode_all(shards, Transform(16), 9), decode_all(shards, Transform(16))[:9])
    assert len(decode_all(shards, Transform(16), 10**6)) == 20


def test_about_half_of_the_images_are_mirrored_and_the_rest_untouched(images: Images) -> None:
    plain, mirrored = (
        image_batches(images, global_batch=200),
        image_batches(images, global_batch=200, horizontal_flip=True),
    )
    one, other = plain.batch(0).image_BCHW, mirrored.batch(0).image_BCHW
    same = (one == other).all((1, 2, 3))
    turned = (one[..., ::-1] == other).all((1, 2, 3))
    assert (same | turned).all()
    assert 70 < turned.sum() < 130


def test_drawing_a_batch_does_not_change_the_next(images: Images) -> None:
    batches = image_batches(images, horizontal_flip=True)
    first = batches.batch(0).image_BCHW
    for step in range(5):
        batches.batch(step)
    assert np.array_equal(batches.batch(0).image_BCHW, first)


@pytest.mark.parametrize("memory_limit", [0, 2**30])
def test_a_damaged_image_is_named(images: Images, memory_limit: int) -> None:
    flip_byte(images.folder / "images-00000.tar", 700)
    with pytest.raises(CorruptShardError, match=r"images-00000\.tar: sample .* is corrupt"):
        image_batches(images, memory_limit=memory_limit, global_batch=20).batch(0)
