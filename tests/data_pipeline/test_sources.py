"""Raw images as they are found: idx files, class folders, ILSVRC's tar of tars."""

from __future__ import annotations

import gzip
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.config import (
    FolderSource,
    IdxSource,
    ILSVRCSource,
    ILSVRCValidationSource,
    ParquetSource,
    Source,
    WebDatasetSource,
)
from data_pipeline.errors import UsageError
from data_pipeline.images.decoding import image_extension
from data_pipeline.sources import open_source, safe_key
from data_pipeline.storage.tar import write_tar
from tests.data_pipeline.raw_data import idx, write_idx, write_ilsvrc
from tests.data_pipeline.small_data import jpeg, write_photos

FASHION = IdxSource(
    images="embedded:fashion_mnist/t10k-images-idx3-ubyte.gz", labels="embedded:fashion_mnist/t10k-labels-idx1-ubyte.gz"
)


def test_the_embedded_set_has_a_thousand_images_of_each_of_ten_classes() -> None:
    source = open_source(FASHION)
    assert np.bincount([item.label for item in source.items]).tolist() == [1000] * 10
    assert source.items[17].key == "00000017"


def test_an_idx_image_becomes_a_png_with_the_same_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 3), dtype=np.uint8)
    config = write_idx(tmp_path, gzip.compress(idx(2, 4, 3, data=pixels.tobytes())), idx(2, data=b"\x01\x00"))
    source = open_source(config)
    with Image.open(io.BytesIO(source.reader.read(source.items[1]))) as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), pixels[1])
    assert [item.label for item in source.items] == [1, 0]
    assert source.classes == ("0", "1")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (b"no idx", idx(1, data=b"0"), "images is not an idx3 file"),
        (idx(1, 2, 2, data=b"123"), idx(1, data=b"0"), "images says that its shape is .* it was cut"),
        (idx(1, 2, 2, data=b"1234"), idx(2, data=b"00"), "1 images, but .* 2 labels"),
        (gzip.compress(idx(1, 2, 2, data=b"1234"), mtime=0)[:-9], idx(1, data=b"0"), "images is a damaged gzip file"),
    ],
)
def test_idx_files_that_are_wrong_are_named(tmp_path: Path, images: bytes, labels: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_source(write_idx(tmp_path, images, labels))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (gzip.compress(idx(1, 2, 2, data=bytes(200_000_000)), 9), "shape is .*, but holds more than 4 bytes"),
        (idx(2**32 - 1, 2**32 - 1, 2**32 - 1, data=b""), "which is more than 1073741824 bytes in all"),
        (gzip.compress(idx(2**20, 2**10, 2, data=b"")), "which is more than 1073741824 bytes in all"),
    ],
    ids=["a gzip bomb", "sides whose product overflows", "more than memory"],
)
def test_an_idx_file_costs_no_more_than_its_sizes(tmp_path: Path, images: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_source(write_idx(tmp_path, images, idx(1, data=b"0")))


def test_an_idx_file_that_is_a_device_or_a_fifo_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in ("/dev/zero", str(tmp_path / "fifo")):
        with pytest.raises(UsageError, match=rf"{path} is no regular file"):
            open_source(IdxSource(images=path, labels=path))


def test_a_folder_source_that_is_none_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_bytes(b"")
    for name, kind in (("fifo", "a FIFO"), ("file", "a file")):
        with pytest.raises(UsageError, match=rf"/{name} is {kind}, not a folder"):
            open_source(FolderSource(path=str(tmp_path / name)))


def test_class_names_must_cover_the_labels() -> None:
    with pytest.raises(UsageError, match="labels up to 9, but 2 classes are named"):
        open_source(FASHION.model_copy(update={"classes": ("shirt", "shoe")}))


def test_a_folder_gives_the_original_bytes_with_classes_in_sorted_order(tmp_path: Path) -> None:
    source = open_source(FolderSource(path=str(write_photos(tmp_path, classes=3, per_class=2))))
    assert source.classes == ("class0", "class1", "class2")
    assert [(item.key, item.label) for item in source.items[:3]] == [
        ("class0/photo_0", 0),
        ("class0/photo_1", 0),
        ("class1/photo_0", 1),
    ]
    assert source.reader.read(source.items[0]) == (tmp_path / "class0" / "photo 0.jpg").read_bytes()


def test_two_files_with_one_key_are_both_named(tmp_path: Path) -> None:
    write_photos(tmp_path, classes=1, per_class=1)
    (tmp_path / "class0" / "photo.0.png").write_bytes(b"")
    with pytest.raises(
        UsageError, match=r"class0/photo\.0\.png and class0/photo 0\.jpg would both have the key class0/photo_0"
    ):
        open_source(FolderSource(path=str(tmp_path)))


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    write_photos(tmp_path, classes=1, per_class=1)
    (tmp_path / "class0" / ".DS_Store").write_bytes(b"x")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_bytes(b"x")
    assert len(open_source(FolderSource(path=str(tmp_path))).items) == 1


def test_a_file_beside_the_class_folders_is_named(tmp_path: Path) -> None:
    write_photos(tmp_path, classes=1, per_class=1)
    (tmp_path / "notes.txt").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"notes\.txt lies beside them"):
        open_source(FolderSource(path=str(tmp_path)))


def test_a_tar_of_tars_is_read_in_place_with_classes_by_wnid(tmp_path: Path) -> None:
    classes = {
        "n02": [("n02_1.JPEG", jpeg(1)), ("n02_2.JPEG", jpeg(2))],
        "n01": [("n01_10026.JPEG", jpeg(3))],
    }
    source = open_source(write_ilsvrc(tmp_path / "train.tar", classes))
    assert source.classes == ("n01", "n02")
    assert [(item.key, item.label) for item in source.items] == [("n01_10026", 0), ("n02_1", 1), ("n02_2", 1)]
    assert [source.reader.read(item) for item in source.items] == [jpeg(3), jpeg(1), jpeg(2)]


def test_a_tar_that_was_cut_is_named(tmp_path: Path) -> None:
    config = write_ilsvrc(tmp_path / "train.tar", {"n01": [("n01_1.JPEG", jpeg(1))]})
    path = tmp_path / "train.tar"
    path.write_bytes(path.read_bytes()[:1100])
    with pytest.raises(UsageError, match=r"train\.tar is not a tar of one tar per class, or is damaged"):
        open_source(config)


def test_a_class_that_was_cut_between_two_images_is_named(tmp_path: Path) -> None:
    inner = write_tar([("n01_1.JPEG", jpeg(1)), ("n01_2.JPEG", jpeg(2))])[0]
    cut = inner[: 512 + -(-len(jpeg(1)) // 512) * 512]
    (tmp_path / "train.tar").write_bytes(write_tar([("n01.tar", cut)])[0])
    with pytest.raises(UsageError, match=r"no end-of-archive mark at byte \d+, so it was cut"):
        open_source(ILSVRCSource(path=str(tmp_path / "train.tar")))


def test_a_tar_of_images_is_no_tar_of_tars(tmp_path: Path) -> None:
    (tmp_path / "flat.tar").write_bytes(write_tar([("n01_1.JPEG", jpeg(1))])[0])
    with pytest.raises(UsageError, match=r"one tar per class, but holds n01_1\.JPEG"):
        open_source(ILSVRCSource(path=str(tmp_path / "flat.tar")))


@pytest.mark.parametrize(
    "config",
    [
        IdxSource(images="nowhere/a", labels="nowhere/b"),
        IdxSource(images="embedded:nothing", labels="embedded:nothing"),
        FolderSource(path="nowhere"),
        ILSVRCSource(path="nowhere.tar"),
        ILSVRCValidationSource(path="nowhere.tar", labels="nowhere.txt"),
        WebDatasetSource(path="nowhere.tar"),
        WebDatasetSource(path="nowhere"),
        WebDatasetSource(path="nowhere/{0..3}.tar"),
        ParquetSource(path="nowhere.parquet"),
        ParquetSource(path="nowhere"),
        ParquetSource(path="nowhere/*.parquet"),
    ],
    ids=lambda config: config.kind,
)
def test_a_source_that_is_not_there_is_named(config: Source) -> None:
    with pytest.raises(UsageError, match=r"there is no .*no(where|thing)"):
        open_source(config)


def test_keys_fit_a_tar_header_and_stay_distinct() -> None:
    one, other = safe_key("folder/" + "é" * 200 + ".a"), safe_key("folder/" + "é" * 200 + ".b")
    assert one != other
    assert max(len(key.encode()) for key in (one, other)) <= 90
    assert "." not in one


@pytest.mark.parametrize(("data", "reason"), [(b"", "is empty"), (b"<html>", "is not an image that can be read")])
def test_what_is_no_image_is_said_to_be_none(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        image_extension(data)


def test_the_extension_follows_the_content_not_the_name() -> None:
    buffer = io.BytesIO()
    Image.new("L", (2, 2)).save(buffer, "PNG")
    assert image_extension(buffer.getvalue()) == "png"
