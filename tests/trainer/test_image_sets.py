"""Sets of images that are measured: each gives the images that were put there, by number, and says which they are."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline.errors import UsageError
from data_pipeline.images.transforms import Pixels, Transform
from data_pipeline.loading.loader import decode_all
from data_pipeline.shards.image_shards import ImageShards
from data_pipeline.text import json_records
from tests.trainer import small_runs
from trainer.evaluation.samples.label_plan import plan_of
from trainer.evaluation.samples.sample_files import VERSION, Kind, Parts, SamplePlan, write_part
from trainer.evaluation.samples.sample_record import begin, finish
from trainer.evaluation.sets import FolderSet, NpzSet, SampledSet, open_images

CPU = torch.device("cpu")


def draw(count: int, size: int = 8) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_image_shards_are_cut_to_squares(tmp_path: Path) -> None:
    uri = small_runs.write_images(tmp_path)
    shards = ImageShards(uri)
    expected = decode_all(shards, Transform(16))

    images = open_images(uri, 16, most=14)
    pixels, labels = images.open(CPU).read(3, 14)

    assert images.count == 14
    np.testing.assert_array_equal(pixels, expected[3:14])
    np.testing.assert_array_equal(labels, shards.labels[3:14])
    assert images.identity()["sha256"] == shards.manifest.fingerprint
    assert images.identity()["crop"] == {"size": 16, "fit": "crop", "crop": {"kind": "center"}}


def test_image_shards_need_a_size(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give --size"):
        open_images(small_runs.write_images(tmp_path), None)


def test_a_folder_gives_its_pictures_by_name(tmp_path: Path) -> None:
    pixels = draw(3)
    (tmp_path / "b").mkdir()
    for name, each in zip(("b/1.png", "a.png", "c.png"), pixels, strict=True):
        Image.fromarray(each).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")

    images = open_images(str(tmp_path), None)
    found, labels = images.open(CPU).read(0, 3)

    np.testing.assert_array_equal(found, pixels[[1, 0, 2]])
    assert labels.tolist() == [-1, -1, -1]
    assert isinstance(images, FolderSet)


def test_pictures_of_several_sizes_are_cut_or_refused(tmp_path: Path) -> None:
    Image.fromarray(draw(1, 8)[0]).save(tmp_path / "a.png")
    Image.fromarray(draw(1, 12)[0]).save(tmp_path / "b.png")

    with pytest.raises(UsageError, match="pictures of several sizes: give --size"):
        open_images(str(tmp_path), None).open(CPU).read(0, 2)
    pixels, _ = open_images(str(tmp_path), 8).open(CPU).read(0, 2)
    assert pixels.shape == (2, 8, 8, 3)


def test_a_picture_that_was_replaced_by_one_of_as_many_bytes_is_another_set(tmp_path: Path) -> None:
    path = tmp_path / "a.bmp"  # whose length does not depend on what it shows
    Image.fromarray(draw(1)[0]).save(path)
    before, written = open_images(str(tmp_path), None).identity(), path.stat()
    Image.fromarray(255 - draw(1)[0]).save(path)
    os.utime(path, (written.st_atime, written.st_mtime + 1))

    assert path.stat().st_size == written.st_size
    assert open_images(str(tmp_path), None).identity() != before


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no pictures"):
        open_images(str(tmp_path), None)


def test_an_npz_is_read_by_ranges(tmp_path: Path) -> None:
    pixels, labels = draw(20), np.arange(20)
    np.savez(tmp_path / "images.npz", arr_0=pixels, arr_1=labels)

    images = open_images(str(tmp_path / "images.npz"), None, most=18)
    found, classes = images.open(CPU).read(5, 18)

    assert images.count == 18
    np.testing.assert_array_equal(found, pixels[5:18])
    np.testing.assert_array_equal(classes, labels[5:18])


def test_an_npz_without_labels_has_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", draw(4))

    assert NpzSet.of(str(tmp_path / "images.npz")).open(CPU).read(0, 2)[1].tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": np.zeros((2, 4, 4, 3), np.float32)}, "arr_0 is float32"),
        ({"arr_0": np.zeros((2, 4, 4), np.uint8)}, r"arr_0 is uint8 \[2, 4, 4\]"),
        ({"images": draw(2)}, "no npz of images"),
        ({"arr_0": draw(2), "arr_1": np.arange(3)}, "3 labels"),
    ],
)
def test_an_npz_of_something_else_is_refused(tmp_path: Path, arrays: dict[str, Pixels], message: str) -> None:
    np.savez(tmp_path / "other.npz", **arrays)  # type: ignore[arg-type]

    with pytest.raises(UsageError, match=message):
        NpzSet.of(str(tmp_path / "other.npz"))


def test_a_compressed_npz_is_refused_with_the_remedy(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "images.npz", draw(2))

    with pytest.raises(UsageError, match=r"write it with numpy\.savez"):
        NpzSet.of(str(tmp_path / "images.npz"))


def test_two_npz_of_different_images_have_different_identities(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", draw(2))
    np.savez(tmp_path / "two.npz", 255 - draw(2))

    one, two = (NpzSet.of(str(tmp_path / f"{name}.npz")).identity() for name in ("one", "two"))

    assert one != two


def write_samples(folder: Path, kind: Kind, pixels: Pixels) -> SamplePlan:
    """All but the end of a sampling: its parts are there."""
    output = str(folder / ("out.npz" if kind == "npz" else "out"))
    plan = SamplePlan(output, kind, plan_of((3, 1), 10), 4, {"seed": 5, "weights": "ema"})
    begin(plan)
    for part in range(plan.parts):
        write_part(plan, part, pixels[slice(*plan.span(part))], {})
    return plan


def finish_samples(plan: SamplePlan) -> None:
    parts = Parts(plan)
    parts.look()
    finish(plan, parts, ["a", "b", "c", "d"], {})


DRAWN_BY = {"seed": 5, "weights": "ema", "labels": [{"labels": [3, 1], "images": 10}]}


@pytest.mark.parametrize("kind", ["png", "shards"])
def test_samples_are_those_that_were_drawn_with_what_made_them(tmp_path: Path, kind: Kind) -> None:
    pixels = draw(10)
    plan = write_samples(tmp_path, kind, pixels)

    with pytest.raises(UsageError, match="until it is finished"):
        SampledSet.of(plan.output)
    finish_samples(plan)
    images = open_images(plan.output, None)
    found, labels = images.open(CPU).read(2, 9)

    assert isinstance(images, SampledSet)
    np.testing.assert_array_equal(found, pixels[2:9])
    assert labels.tolist() == [3, 1, 3, 1, 3, 1, 3]
    assert images.made_by == DRAWN_BY


def test_samples_in_an_npz_carry_what_made_them_wherever_they_go(tmp_path: Path) -> None:
    pixels = draw(10)
    finish_samples(write_samples(tmp_path, "npz", pixels))
    (tmp_path / "out.npz").rename(tmp_path / "elsewhere.npz")

    images = NpzSet.of(str(tmp_path / "elsewhere.npz"), 9)
    found, labels = images.open(CPU).read(2, 9)

    assert images.made_by == DRAWN_BY
    np.testing.assert_array_equal(found, pixels[2:9])
    assert labels.tolist() == [3, 1, 3, 1, 3, 1, 3]
    with np.load(tmp_path / "elsewhere.npz") as loaded:  # by whoever knows ADM's layout alone
        np.testing.assert_array_equal(loaded["arr_0"], pixels)


def with_record(path: Path, record: str) -> str:
    np.savez(path, draw(2))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("sampling.json", record)
    return str(path)


def test_an_npz_of_another_maker_or_version_is_known_by_its_images_alone(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", draw(2))
    assert NpzSet.of(str(tmp_path / "images.npz")).made_by is None
    uri = with_record(tmp_path / "later.npz", json.dumps({"version": 10**6, "plan": "unknown"}))
    assert NpzSet.of(uri).made_by is None


def test_an_npz_whose_plan_is_damaged_or_of_other_images_is_refused(tmp_path: Path) -> None:
    no_plan, deep = json.dumps({"version": VERSION, "made_by": {}}), "[" * 100_000
    for number, record in enumerate(('{"plan"', "[1]", no_plan, deep, " " * (json_records.MOST_BYTES + 1))):
        with pytest.raises(UsageError, match=r"damaged\.npz: its sampling\.json is damaged .* sample again"):
            NpzSet.of(with_record(tmp_path / f"{number}damaged.npz", record))
    plan = SamplePlan("out.npz", "npz", plan_of((3, 1), 10), 4, {})
    uri = with_record(tmp_path / "cut.npz", json.dumps({"version": VERSION} | plan.to_json()))
    with pytest.raises(UsageError, match=r"cut\.npz: 2 images \(arr_0\), and 10 in its sampling\.json"):
        NpzSet.of(uri)
