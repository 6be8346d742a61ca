"""Image files of a command: found in their order, cut to squares one by one, and written under safe names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline.errors import FoldtrainError, UsageError
from data_pipeline.images.transforms import center_crop
from trainer.inference.image_files import find_images, png_names, read_batches, read_square


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("b.png", "a/c.JPG", "a/d.webp", "odd")):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        picture = Image.effect_noise((20 + number, 30), 50).convert("RGB")
        picture.save(
            tmp_path / "in" / name, format={"odd": "PNG", "a/d.webp": "WEBP", "b.png": "PNG"}.get(name, "JPEG")
        )
    (tmp_path / "in/labels.txt").write_text("x")
    return tmp_path / "in"


def test_files_come_as_they_are_named_and_those_of_a_folder_by_name(folder: Path) -> None:
    found = find_images([str(folder / "b.png"), f"{folder}/", str(folder / "odd")])
    assert found.names == ("b.png", "a/c.JPG", "a/d.webp", "b.png", "odd")
    assert found.uris[1] == str(folder / "a/c.JPG")
    assert found.others == 2  # labels.txt, and odd, which no image is called as


def test_a_place_without_images_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing: there is no such image, and no folder with images"):
        find_images([str(tmp_path / "nothing")])
    (folder / "texts").mkdir()
    (folder / "texts/a.txt").write_text("x")
    with pytest.raises(UsageError, match=r"texts holds 1 file, and none ends in \.jpg"):
        find_images([str(folder / "texts")])


def test_batches_hold_the_squares_of_the_transform(folder: Path) -> None:
    found = find_images([str(folder)])
    batches = list(read_batches(found, 16, "crop", 2))
    assert [names for names, _ in batches] == [("a/c.JPG", "a/d.webp"), ("b.png",)]
    expected = np.asarray(center_crop(Image.open(folder / "b.png"), 16)).transpose(2, 0, 1) / 127.5 - 1
    assert torch.allclose(batches[1][1][0].double(), torch.from_numpy(expected), atol=1e-6)


def test_a_file_that_is_no_image_is_named(folder: Path) -> None:
    with pytest.raises(FoldtrainError, match=r"labels\.txt cannot be decoded as an image"):
        read_square(str(folder / "labels.txt"), 16, "crop")
    with pytest.raises(UsageError, match=r"there is no image .*none\.png"):
        read_square(str(folder / "none.png"), 16, "crop")


def test_png_files_are_called_as_images_and_a_second_of_a_name_has_a_number() -> None:
    names = ["a/one.jpg", "one.jpg", "one.png", "two", "a/one.tar.gz"]
    assert png_names(names) == ["a/one.png", "one.png", "one-2.png", "two.png", "a/one.tar.png"]
    with pytest.raises(UsageError, match="two images would be written to one file"):
        png_names(["one.jpg", "one.png", "one-2.png"])


@pytest.mark.parametrize("name", ["../x.png", "/etc/x.png", "a//b", "a\\b", "a\x1bb", ""])
def test_a_name_that_leads_out_of_the_folder_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="a name that cannot be a file's"):
        png_names(["fine.png", name])
