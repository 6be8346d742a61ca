"""From raw images to image shards: the same plan and bytes every time, only what is missing done again."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import pytest
import webdataset

from data_pipeline import storage
from data_pipeline.config import DataConfig, FolderSource
from data_pipeline.errors import FoldtrainError, UsageError
from data_pipeline.ingest.ingesting import describe, finish, ingest, missing, plan_ingest, write_shard
from data_pipeline.shards.image_shards import ImageShards
from data_pipeline.shards.manifest import ImageManifest
from tests.data_pipeline.raw_data import idx, tiny_png, write_idx, write_ilsvrc, write_ilsvrc_validation, write_parquet
from tests.data_pipeline.small_data import Images, contents, data_sets, jpeg, write_photos


def photos_config(folder: Path, **fields: int) -> DataConfig:
    return DataConfig(source=FolderSource(path=str(write_photos(folder))), shard_samples=7).model_copy(update=fields)


def first_manifest(folder: Path) -> bytes:
    """It held the shards itself, and has another version, and so another fingerprint; all else is the same."""
    manifest = ImageManifest.read(str(folder))
    shards = [shard.model_dump() for shard in manifest.shards]
    content = manifest.content() | {"version": 1, "shards": shards}
    del content["index"]
    return storage.canonical_json({**content, "fingerprint": storage.fingerprint(content)})


def digest(folder: Path) -> str:
    """Of all files of the splits below a folder, with their names; of a manifest as the first version of it was."""
    found = {name: data for name, data in data_sets(folder).items() if not name.endswith(".bin")}
    found |= {name: first_manifest((folder / name).parent) for name in found if "manifest" in name}
    files = [(name, hashlib.sha256(data).hexdigest()) for name, data in sorted(found.items())]
    return hashlib.sha256(repr(files).encode()).hexdigest()


def test_a_folder_gives_the_bytes_that_it_gave_in_the_first_release(tmp_path: Path) -> None:
    for number in range(12):
        path = tmp_path / "raw" / f"class{number % 2}" / f"picture {number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiny_png(number))
    source = FolderSource(path=str(tmp_path / "raw"))
    ingest(DataConfig(source=source, shard_samples=4, validation_samples=3), str(tmp_path / "out"), seed=5)
    assert digest(tmp_path / "out") == "be3e5c2a127b9db357d8a83cc44c5d7b7aeca34278d8e3b160229bd89215b330"


def test_ilsvrc_gives_the_bytes_that_it_gave_in_the_first_release(tmp_path: Path) -> None:
    classes = {
        wnid: [(f"{wnid}_{n}.JPEG", tiny_png(n + 50 * label)) for n in range(4)]
        for label, wnid in enumerate(("n03", "n01", "n02"))
    }
    source = write_ilsvrc(tmp_path / "train.tar", classes)
    ingest(DataConfig(source=source, shard_samples=4, validation_samples=2), str(tmp_path / "out"), seed=5)
    assert digest(tmp_path / "out") == "c20e57845c3a93d6668d2f554b794306f7ea8ebc29cb20bdae9be3daa79ff4c6"


def test_idx_files_give_the_plan_that_they_gave_in_the_first_release(tmp_path: Path) -> None:
    source = write_idx(tmp_path, idx(10, 2, 2, data=bytes(range(40))), idx(10, data=bytes([0, 1] * 5)))
    plan = plan_ingest(DataConfig(source=source, shard_samples=4, validation_samples=2), str(tmp_path / "out"), seed=5)
    digests = "".join(shard.plan for shard in plan.shards)
    assert hashlib.sha256(digests.encode()).hexdigest() == (
        "13e9461fe6f7a98a206dcace45db06418b30b7f7708673964ca5de17e1d8f9e3"
    )


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    one, other = (
        photos_config(tmp_path / "a", validation_samples=4),
        photos_config(tmp_path / "b", validation_samples=4),
    )
    ingest(one, str(tmp_path / "x"), seed=3)
    ingest(other, str(tmp_path / "y"), seed=3)
    assert data_sets(tmp_path / "x") == data_sets(tmp_path / "y")


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


def test_shards_may_be_written_in_any_order_from_a_plan_that_was_sent(images: Images, tmp_path: Path) -> None:
    plan = pickle.loads(pickle.dumps(plan_ingest(images.config, str(tmp_path / "again"), seed=0)))
    for shard in reversed(missing(plan)):
        write_shard(plan.inputs, shard)
    finish(plan)
    assert contents(tmp_path / "again" / "train") == contents(images.folder)


def test_writing_a_shard_reports_every_image(images: Images, tmp_path: Path) -> None:
    plan = plan_ingest(images.config, str(tmp_path / "again"), seed=0)
    seen: list[int] = []
    written = write_shard(plan.inputs, plan.shards[0], seen.append)
    assert sum(seen) == written.record.samples == 7


def test_an_unfinished_data_set_is_not_completed(images: Images, tmp_path: Path) -> None:
    plan = plan_ingest(images.config, str(tmp_path / "again"), seed=0)
    write_shard(plan.inputs, plan.shards[1])
    with pytest.raises(FoldtrainError, match=r"2 of 3 shards are missing, the first is train/images-00000\.tar"):
        finish(plan)
    assert not (tmp_path / "again" / "train" / "manifest.json").exists()


def test_nothing_is_missing_from_a_complete_data_set(images: Images, tmp_path: Path) -> None:
    assert missing(plan_ingest(images.config, str(tmp_path / "images"), seed=0)) == []


def test_an_image_that_vanishes_after_the_listing_is_named(tmp_path: Path) -> None:
    plan = plan_ingest(photos_config(tmp_path / "photos"), str(tmp_path / "images"), seed=0)
    (tmp_path / "photos" / "class1" / "photo 3.jpg").unlink()
    (shard,) = (shard for shard in plan.shards if "class1/photo_3" in {item.key for item in plan.items(shard)})
    with pytest.raises(UsageError, match=r"class1/photo 3\.jpg \(key class1/photo_3\) was there when"):
        write_shard(plan.inputs, shard)


def test_validation_may_be_a_source_of_its_own(tmp_path: Path) -> None:
    train = {wnid: [(f"{wnid}_{n}.JPEG", jpeg(n)) for n in range(3)] for wnid in ("n01", "n02")}
    held = write_ilsvrc_validation(tmp_path, [("val_1.JPEG", jpeg(8)), ("val_2.JPEG", jpeg(9))], "n02\nn01\n")
    config = DataConfig(source=write_ilsvrc(tmp_path / "train.tar", train), validation_source=held)
    manifests = ingest(config, str(tmp_path / "images"), seed=0)
    assert {split: manifest.samples for split, manifest in manifests.items()} == {"train": 6, "validation": 2}
    shards = ImageShards(str(tmp_path / "images" / "validation"))
    assert {shards.key(i): (int(shards.labels[i]), shards.read(i)) for i in range(2)} == {
        "val_1": (1, jpeg(8)),
        "val_2": (0, jpeg(9)),
    }


def test_validation_with_other_classes_is_refused_with_the_difference(tmp_path: Path) -> None:
    train = {wnid: [(f"{wnid}_1.JPEG", jpeg(1))] for wnid in ("n01", "n02")}
    held = write_ilsvrc_validation(tmp_path, [("val_1.JPEG", jpeg(8)), ("val_2.JPEG", jpeg(9))], "n02\nn03\n")
    config = DataConfig(source=write_ilsvrc(tmp_path / "train.tar", train), validation_source=held)
    with pytest.raises(UsageError, match=r"val\.tar has other classes \(2\) than .*train\.tar \(2\): - n01, \+ n03"):
        ingest(config, str(tmp_path / "images"), seed=0)


def test_validation_is_either_held_out_or_a_source_of_its_own(tmp_path: Path) -> None:
    source = FolderSource(path=str(write_photos(tmp_path / "photos")))
    config = DataConfig(source=source, validation_source=source, validation_samples=2)
    with pytest.raises(UsageError, match=r"validation_samples is 2 and data\.validation_source is set"):
        plan_ingest(config, str(tmp_path / "images"), seed=0)


def test_images_of_a_parquet_file_arrive_once_and_shuffled(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "train.parquet", [jpeg(n) for n in range(20)], [n % 2 for n in range(20)])
    ingest(DataConfig(source=source, shard_samples=8, validation_samples=3), str(tmp_path / "images"), seed=0)
    found = {}
    for split in ("train", "validation"):
        shards = ImageShards(str(tmp_path / "images" / split))
        found |= {shards.key(i): shards.read(i) for i in range(shards.count)}
    assert found == {f"train/{n:07d}": jpeg(n) for n in range(20)}
    keys = ImageShards(str(tmp_path / "images" / "train")).keys.tolist()
    assert keys != sorted(keys)


def test_the_last_line_accounts_for_everything_that_the_sources_hold(tmp_path: Path) -> None:
    config = photos_config(tmp_path / "photos", validation_samples=4)
    config = config.model_copy(update={"max_bad_share": 0.1, "source": FolderSource(path=str(tmp_path / "photos"))})
    for name in ("class0/.DS_Store", "class1/._photo 1.jpg", "class1/.hidden"):
        (tmp_path / "photos" / name).write_bytes(b"")
    (tmp_path / "photos" / "class1" / "photo 3.jpg").write_bytes(b"damage")
    plan = plan_ingest(config, str(tmp_path / "images"), seed=0)
    for shard in missing(plan):
        write_shard(plan.inputs, shard)
    done = finish(plan)
    (split,) = (split for split, manifest in done.manifests.items() if manifest.quarantined)
    assert describe(plan, done) == (
        f"19 images ({done.manifests['train'].samples} train, {done.manifests['validation'].samples} validation); "
        f"2 classes; 1 set aside (listed in {tmp_path}/images/{split}/quarantine.json); "
        "skipped: 1 hidden, 2 of an operating system"
    )


def test_a_class_whose_images_are_all_set_aside_is_named_in_the_last_line(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", classes=3, per_class=2)
    for number in range(2):
        (tmp_path / "photos" / "class1" / f"photo {number}.jpg").write_bytes(b"damage")
    (tmp_path / "photos" / "class9").mkdir()
    source = FolderSource(path=str(tmp_path / "photos"), allow_empty_classes=True)
    plan = plan_ingest(DataConfig(source=source, max_bad_share=0.5), str(tmp_path / "images"), seed=0)
    for shard in missing(plan):
        write_shard(plan.inputs, shard)
    done = finish(plan)
    assert done.manifests["train"].classes == ("class0", "class1", "class2", "class9")
    assert describe(plan, done).endswith("skipped: nothing; 2 classes without an image to train on: class1, class9")
