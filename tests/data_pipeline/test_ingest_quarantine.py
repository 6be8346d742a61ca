"""Images that cannot be decoded are left out and listed, up to a limit; odd ones that can be are read right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline import storage
from data_pipeline.config import DataConfig, FolderSource
from data_pipeline.errors import FoldtrainError
from data_pipeline.images.transforms import decode
from data_pipeline.ingest.ingesting import finish, ingest, look, missing, plan_ingest, write_shard
from data_pipeline.shards.image_shards import ImageShards, parse_index
from data_pipeline.shards.manifest import ImageManifest
from data_pipeline.storage.tar import read_members
from data_pipeline.tools.preflight import check_images
from tests.data_pipeline.odd_images import ODD
from tests.data_pipeline.raw_data import upload, write_parquet
from tests.data_pipeline.small_data import contents, data_sets, jpeg, write_photos

BAD = {
    "class0/photo 2.jpg": (b"", "is empty"),
    "class0/photo 5.jpg": (jpeg(5, 200, 200)[:-900], "cannot be decoded"),
    "class1/photo 1.jpg": (b"<html>404</html>", "is not an image that can be read"),
    "class1/photo 7.jpg": (jpeg(7)[:30], "is not an image that can be read"),
}


def config_with(folder: Path, bad: dict[str, bytes], share: float = 0.2, **fields: Any) -> DataConfig:
    """Twenty pictures, some of them replaced."""
    write_photos(folder)
    for name, data in bad.items():
        (folder / name).write_bytes(data)
    return DataConfig(source=FolderSource(path=str(folder)), shard_samples=7, max_bad_share=share, **fields)


@pytest.fixture
def damaged(tmp_path: Path) -> DataConfig:
    return config_with(tmp_path / "photos", {name: data for name, (data, _) in BAD.items()})


def test_bad_images_are_left_out_and_listed_with_source_key_and_reason(damaged: DataConfig, tmp_path: Path) -> None:
    manifest = ingest(damaged, str(tmp_path / "images"), seed=0)["train"]
    listed = json.loads((tmp_path / "images" / "train" / "quarantine.json").read_text())
    assert [entry["source"] for entry in listed] == list(BAD)
    assert [entry["key"] for entry in listed] == [name.replace(" ", "_").removesuffix(".jpg") for name in BAD]
    for entry, (_, reason) in zip(listed, BAD.values(), strict=True):
        assert reason in entry["reason"]
    assert (manifest.samples, manifest.quarantined) == (16, 4)
    keys = set(ImageShards(str(tmp_path / "images" / "train")).keys.tolist())
    assert len(keys) == 16
    assert not keys & {entry["key"].encode() for entry in listed}


def test_the_index_of_a_shard_lists_what_is_left_out_of_it(damaged: DataConfig, tmp_path: Path) -> None:
    plan = plan_ingest(damaged, str(tmp_path / "images"), seed=0)
    ingest(damaged, str(tmp_path / "images"), seed=0)
    for shard in plan.shards:
        name = tmp_path / "images" / "train" / shard.name.replace(".tar", ".index.json")
        index = parse_index(str(name), name.read_bytes())
        left_out = [entry["key"] for entry in index.quarantined]
        assert [item.key for item in plan.items(shard) if item.key not in left_out] == index.key
        assert len(left_out) + len(index.key) == shard.images


def test_a_data_set_without_bad_images_has_no_word_of_them(tmp_path: Path) -> None:
    ingest(config_with(tmp_path / "photos", {}), str(tmp_path / "images"), seed=0)
    assert not any(
        b"quarantine" in data or "quarantine" in name for name, data in contents(tmp_path / "images").items()
    )


def test_the_same_damage_gives_the_same_bytes(damaged: DataConfig, tmp_path: Path) -> None:
    ingest(damaged, str(tmp_path / "a"), seed=0)
    ingest(damaged, str(tmp_path / "b"), seed=0)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_data_set_with_a_quarantine_is_whole(damaged: DataConfig, tmp_path: Path) -> None:
    written = ingest(damaged, str(tmp_path / "images"), seed=0)["train"]
    assert ImageManifest.read(str(tmp_path / "images" / "train")) == written
    assert check_images(str(tmp_path / "images" / "train"), every_byte=True) == written


def test_one_bad_image_of_a_few_stops_ingest_before_the_manifest(tmp_path: Path) -> None:
    config = config_with(tmp_path / "photos", {"class1/photo 3.jpg": b""}, share=0.01)
    with pytest.raises(FoldtrainError, match=r"class1/photo 3\.jpg \(key class1/photo_3\) is empty"):
        ingest(config, str(tmp_path / "images"), seed=0)
    assert not (tmp_path / "images" / "train" / "manifest.json").exists()


def test_one_more_than_the_limit_over_all_shards_stops_ingest(damaged: DataConfig, tmp_path: Path) -> None:
    config = damaged.model_copy(update={"max_bad_share": 0.15, "shard_samples": 2})
    with pytest.raises(FoldtrainError, match=r"(?s)4 images are bad, but only 3 may be \(data\.max_bad_share\).* is "):
        ingest(config, str(tmp_path / "images"), seed=0)


def test_a_higher_limit_continues_what_was_stopped(damaged: DataConfig, tmp_path: Path) -> None:
    strict = damaged.model_copy(update={"max_bad_share": 0.15})
    with pytest.raises(FoldtrainError, match="but only 3 may be"):
        ingest(strict, str(tmp_path / "images"), seed=0)
    ingest(damaged, str(tmp_path / "images"), seed=0)
    ingest(damaged, str(tmp_path / "unbroken"), seed=0)
    assert contents(tmp_path / "images") == contents(tmp_path / "unbroken")


def test_the_limit_is_checked_whenever_the_driver_asks(damaged: DataConfig, tmp_path: Path) -> None:
    plan = plan_ingest(damaged.model_copy(update={"max_bad_share": 0.15, "shard_samples": 2}), str(tmp_path / "x"), 0)
    for shard in plan.shards:
        write_shard(plan.inputs, shard)
    for check in (look, missing, finish):
        with pytest.raises(FoldtrainError, match="4 images are bad, but only 3 may be"):
            check(plan)


@pytest.mark.parametrize(("share", "limit"), [(0.0, 0), (0.29, 5), (0.05, 1), (0.35, 7), (1.0, 20)])
def test_the_limit_is_rounded_down(tmp_path: Path, share: float, limit: int) -> None:
    assert plan_ingest(config_with(tmp_path / "photos", {}, share), str(tmp_path / "x"), 0).max_bad == limit


def test_a_share_that_is_no_binary_fraction_is_not_rounded_below_itself(tmp_path: Path) -> None:
    source = FolderSource(path=str(write_photos(tmp_path / "photos", per_class=50)))
    assert plan_ingest(DataConfig(source=source, max_bad_share=0.29), str(tmp_path / "x"), 0).max_bad == 29


def test_a_shard_whose_images_are_all_bad_is_left_out_of_the_manifest(tmp_path: Path) -> None:
    config = config_with(tmp_path / "photos", {}, share=0.5, validation_samples=6)
    plan = plan_ingest(config, str(tmp_path / "images"), seed=0)
    for item in plan.items(plan.shards[0]):
        (tmp_path / "photos" / item.name).write_bytes(b"")
    again = plan_ingest(config, str(tmp_path / "images"), seed=0)
    manifests = ingest(config, str(tmp_path / "images"), seed=0)
    assert [shard.name for shard in manifests["train"].shards] == ["images-00001.tar"]
    assert manifests["train"].quarantined == 7
    assert missing(again) == []
    assert read_members(str(tmp_path / "images" / "train" / "images-00000.tar")) == []
    shards = ImageShards(str(tmp_path / "images" / "train"))
    assert sum(1 for _ in shards.scan(0, shards.count)) == 7


def test_a_split_whose_images_are_all_bad_is_an_empty_data_set(tmp_path: Path) -> None:
    config = config_with(tmp_path / "photos", {}, share=0.5, validation_samples=6)
    plan = plan_ingest(config, str(tmp_path / "images"), seed=0)
    for shard in plan.shards:
        for item in plan.items(shard) if shard.split == "validation" else ():
            (tmp_path / "photos" / item.name).write_bytes(b"")
    manifest = ingest(config, str(tmp_path / "images"), seed=0)["validation"]
    assert (manifest.samples, manifest.quarantined, manifest.shards) == (0, 6, ())
    assert ImageShards(str(tmp_path / "images" / "validation")).count == 0


def test_an_interrupted_ingest_with_bad_images_ends_in_the_same_bytes(damaged: DataConfig, tmp_path: Path) -> None:
    ingest(damaged, str(tmp_path / "images"), seed=0)
    before = contents(tmp_path / "images")
    folder = tmp_path / "images" / "train"
    for name in ("manifest.json", "quarantine.json", "images-00001.index.json", "images-00002.tar"):
        (folder / name).unlink()
    (folder / "images-00001.tar").write_bytes(b"half")
    ingest(damaged, str(tmp_path / "images"), seed=0)
    assert contents(tmp_path / "images") == before


@pytest.mark.xdist_group("s3")
def test_an_interrupted_ingest_on_s3_ends_in_the_same_bytes_as_on_a_disk(
    damaged: DataConfig, tmp_path: Path, s3_uri: str
) -> None:
    ingest(damaged, str(tmp_path / "images"), seed=0)
    upload(tmp_path / "photos", f"{s3_uri}/photos")
    remote = damaged.model_copy(update={"source": FolderSource(path=f"{s3_uri}/photos")})
    plan = plan_ingest(remote, f"{s3_uri}/images", seed=0)
    write_shard(plan.inputs, plan.shards[1])
    storage.write_bytes(f"{s3_uri}/images/train/images-00000.tar", b"half")
    ingest(remote, f"{s3_uri}/images", seed=0)
    names = [name for name in storage.walk(f"{s3_uri}/images") if name.startswith("train/")]
    assert {name: storage.read_bytes(f"{s3_uri}/images/{name}") for name in names} == data_sets(tmp_path / "images")


def test_bad_rows_of_a_parquet_file_are_left_out(tmp_path: Path) -> None:
    images: list[bytes | None] = [jpeg(n) for n in range(12)]
    images[3], images[8] = None, b"GIF89a"
    source = write_parquet(tmp_path / "train.parquet", images, [0] * 12)
    ingest(DataConfig(source=source, shard_samples=8, max_bad_share=0.2), str(tmp_path / "images"), seed=0)
    listed = json.loads((tmp_path / "images" / "train" / "quarantine.json").read_text())
    assert [entry["source"] for entry in listed] == ["train.parquet row 3", "train.parquet row 8"]


def test_a_reason_does_not_depend_on_the_process(tmp_path: Path) -> None:
    names = [f"class{label}/photo {n}.jpg" for label in range(2) for n in range(10)]
    pieces = {name: jpeg(3, 64, 64)[: 20 + 50 * n] for n, name in enumerate(names)}
    pieces["class0/photo 0.jpg"] = b"P6 oops"
    ingest(config_with(tmp_path / "photos", pieces, share=1.0), str(tmp_path / "images"), seed=0)
    text = (tmp_path / "images" / "train" / "quarantine.json").read_text()
    assert " at 0x" not in text


@pytest.fixture
def odd(tmp_path: Path) -> ImageShards:
    """The odd files after ingest, in which no image may be bad."""
    (tmp_path / "raw" / "odd").mkdir(parents=True)
    for name, (data, _, _, _) in ODD.items():
        (tmp_path / "raw" / "odd" / name).write_bytes(data)
    ingest(DataConfig(source=FolderSource(path=str(tmp_path / "raw"))), str(tmp_path / "images"), seed=0)
    return ImageShards(str(tmp_path / "images" / "train"))


@pytest.mark.parametrize("name", ODD)
def test_odd_files_keep_their_bytes_and_are_decoded_right(name: str, odd: ImageShards) -> None:
    data, extension, first, last = ODD[name]
    stem = name.partition(".")[0]
    index = [odd.key(number) for number in range(odd.count)].index(f"odd/{stem}")
    assert odd.read(index) == data
    pixels_HWC = np.asarray(decode(odd.read(index))).astype(int)
    assert np.abs(pixels_HWC[0, 0] - first).max() <= 3
    assert np.abs(pixels_HWC[-1, -1] - last).max() <= 3
    members = read_members(str(Path(odd.uri) / "images-00000.tar"))
    assert f"odd/{stem}.{extension}" in {member.name for member in members}


def test_a_picture_that_exif_turns_is_upright(odd: ImageShards) -> None:
    data = ODD["turned.JPEG"][0]
    assert np.asarray(decode(data)).shape == (16, 8, 3)
