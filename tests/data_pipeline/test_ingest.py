"""From raw images to image shards: the same plan and bytes every time, only what is missing done again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.config import DataConfig, FolderSource
from data_pipeline.errors import UsageError
from data_pipeline.image_shards import ImageShards
from data_pipeline.ingest import ingest, plan_shards, shuffle_items, split_items
from data_pipeline.sources import RawItem
from tests.data_pipeline.small_data import Images, contents, write_photos

items_lists = st.lists(st.integers(1, 50), min_size=1, max_size=40).map(
    lambda sizes: [RawItem(f"{number:03d}", 0, size, "") for number, size in enumerate(sizes)]
)


def photos_config(folder: Path, **fields: int) -> DataConfig:
    return DataConfig(source=FolderSource(path=str(write_photos(folder))), shard_samples=7).model_copy(update=fields)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    one, other = (
        photos_config(tmp_path / "a", validation_samples=4),
        photos_config(tmp_path / "b", validation_samples=4),
    )
    ingest(one, str(tmp_path / "x"), seed=3)
    ingest(other, str(tmp_path / "y"), seed=3)
    assert contents(tmp_path / "x") == contents(tmp_path / "y")


def test_every_image_arrives_once_with_its_original_bytes_and_label(images: Images, tmp_path: Path) -> None:
    shards = ImageShards(images.uri)
    found = {shards.key(i): (int(shards.labels[i]), shards.read(i)) for i in range(shards.count)}
    expected = {
        f"class{label}/photo_{n}": (label, (tmp_path / "photos" / f"class{label}" / f"photo {n}.jpg").read_bytes())
        for label in range(2)
        for n in range(10)
    }
    assert found == expected
    assert shards.count == len(expected)


def test_validation_is_the_same_for_every_seed_and_shares_nothing_with_training(tmp_path: Path) -> None:
    config = photos_config(tmp_path / "photos", validation_samples=5)
    ingest(config, str(tmp_path / "a"), seed=1)
    ingest(config, str(tmp_path / "b"), seed=2)
    held = [set(ImageShards(str(tmp_path / run / "validation")).keys) for run in "ab"]
    assert held[0] == held[1]
    assert len(held[0]) == 5
    assert not held[0] & set(ImageShards(str(tmp_path / "a" / "train")).keys)


def test_another_seed_gives_another_order(tmp_path: Path) -> None:
    config = photos_config(tmp_path / "photos")
    ingest(config, str(tmp_path / "a"), seed=1)
    ingest(config, str(tmp_path / "b"), seed=2)
    orders = [ImageShards(str(tmp_path / run / "train")).keys.tolist() for run in "ab"]
    assert orders[0] != orders[1]


def test_classes_are_mixed_in_every_shard(images: Images) -> None:
    shards = ImageShards(images.uri)
    for first, last in zip(shards.starts, shards.starts[1:], strict=False):
        assert set(shards.labels[first:last]) == {0, 1}


@given(items_lists, st.integers(1, 10), st.integers(1, 120))
def test_shards_keep_order_and_limits(items: list[RawItem], samples: int, size: int) -> None:
    plan = plan_shards(items, samples, size)
    assert [item for shard in plan for item in shard.items] == items
    for shard in plan:
        assert len(shard.items) <= samples
        assert len(shard.items) == 1 or sum(item.size for item in shard.items) <= size


@given(items_lists, st.integers(0, 2**31))
def test_the_order_does_not_depend_on_how_the_source_was_listed(items: list[RawItem], seed: int) -> None:
    assert shuffle_items(items[::-1], seed) == shuffle_items(items, seed)


def test_a_split_that_leaves_nothing_for_training_is_refused() -> None:
    with pytest.raises(UsageError, match="validation_samples is 2, but the source has 2 images"):
        split_items([RawItem("a", 0, 1, ""), RawItem("b", 0, 1, "")], 2)


def test_only_missing_shards_are_written_again(images: Images, tmp_path: Path) -> None:
    before = contents(images.folder)
    for path in images.folder.iterdir():
        os.utime(path, (1, 1))
    (images.folder / "images-00001.tar").unlink()
    ingest(images.config, str(tmp_path / "images"), seed=0)
    assert contents(images.folder) == before
    kept = {path.name for path in images.folder.glob("images-*.tar") if path.stat().st_mtime == 1}
    assert kept == {"images-00000.tar", "images-00002.tar"}


def test_a_run_that_was_stopped_before_the_index_was_written_ends_in_the_same_bytes(
    images: Images, tmp_path: Path
) -> None:
    before = contents(images.folder)
    (images.folder / "manifest.json").unlink()
    (images.folder / "images-00002.index.json").unlink()
    (images.folder / "images-00002.tar").write_bytes(b"half")
    ingest(images.config, str(tmp_path / "images"), seed=0)
    assert contents(images.folder) == before


def test_a_folder_that_holds_another_data_set_is_left_alone(images: Images, tmp_path: Path) -> None:
    before = contents(images.folder)
    with pytest.raises(UsageError, match="already holds another data set: images-00000"):
        ingest(images.config, str(tmp_path / "images"), seed=1)
    assert contents(images.folder) == before


def test_an_image_that_is_none_stops_ingest_before_the_manifest(tmp_path: Path) -> None:
    config = photos_config(tmp_path / "photos")
    (tmp_path / "photos" / "class1" / "photo 3.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match=r"class1/photo 3\.jpg \(key class1/photo_3\) is empty"):
        ingest(config, str(tmp_path / "images"), seed=0)
    assert not (tmp_path / "images" / "train" / "manifest.json").exists()


def test_progress_ends_at_all_images(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    config = photos_config(tmp_path / "photos", validation_samples=5)
    ingest(config, str(tmp_path / "images"), 0, lambda done, total: seen.append((done, total)))
    assert seen == [(7, 20), (14, 20), (15, 20), (20, 20)]


def test_webdataset_opens_an_image_shard(images: Images) -> None:
    url = str(images.folder / "images-00000.tar")
    samples = list(webdataset.WebDataset(url, shardshuffle=False).decode("pil"))
    shards = ImageShards(images.uri)
    assert [(sample["__key__"], sample["cls"]) for sample in samples] == [
        (shards.key(index), int(shards.labels[index])) for index in range(7)
    ]
    assert samples[0]["jpg"].size == (20, 24)
