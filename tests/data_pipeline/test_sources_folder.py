"""A folder per class, as people have it: what is not an image is an error that names it, or is counted."""

from __future__ import annotations

import os
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import storage
from data_pipeline.config import DataConfig, FolderSource
from data_pipeline.errors import UsageError
from data_pipeline.ingest.ingesting import ingest
from data_pipeline.sources import open_source, safe_key
from tests.data_pipeline.small_data import jpeg, write_photos
from tests.data_pipeline.test_local_listing import AS_ROOT, UNPRIVILEGED


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos", classes=2, per_class=2)


def source_of(folder: Path, **fields: object) -> FolderSource:
    return FolderSource.model_validate({"path": str(folder), **fields})


def test_a_class_folder_without_images_is_named_with_the_way_to_allow_it(photos: Path) -> None:
    (photos / "class0b").mkdir()
    (photos / "class0c" / "deeper").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"class folders without images \(2\): class0b, class0c\. .*allow_empty"):
        open_source(source_of(photos))


def test_an_empty_class_that_is_allowed_keeps_its_label(photos: Path) -> None:
    (photos / "class0b").mkdir()
    source = open_source(source_of(photos, allow_empty_classes=True))
    assert source.classes == ("class0", "class0b", "class1")
    assert {item.label for item in source.items} == {0, 2}


def test_an_empty_class_in_object_storage_is_named_if_its_folder_has_an_object(photos: Path) -> None:
    folder = "memory://empty-class"
    storage.write_bytes(f"{folder}/a/1.jpg", jpeg(1))
    storage.filesystem(folder).mkdir(f"{folder}/b")
    with pytest.raises(UsageError, match=r"class folders without images \(1\): b"):
        open_source(FolderSource(path=folder))


def test_a_class_without_a_listed_extension_is_named(photos: Path) -> None:
    (photos / "class2").mkdir()
    (photos / "class2" / "1.jpeg").write_bytes(jpeg(1))
    with pytest.raises(UsageError, match=r"class folders without images ending in jpg, png \(1\): class2"):
        open_source(source_of(photos, extensions=["jpg", "png"]))


@pytest.mark.parametrize("extension", ["jpg", ".jpg", "JPG", ".Jpg", "*.jpg", " jpg"])
def test_an_extension_may_be_written_in_many_ways(photos: Path, extension: str) -> None:
    (photos / "class0" / "shout.JPG").write_bytes(jpeg(1))
    (photos / "class0" / "notes.txt").write_bytes(b"x")
    (photos / "readme.md").write_bytes(b"x")
    source = open_source(source_of(photos, extensions=[extension]))
    assert len(source.items) == 5
    assert source.skipped == {"with another extension": 2}


@pytest.mark.parametrize("extension", ["", ".", "*", "a/b"])
def test_what_is_no_extension_is_refused(extension: str) -> None:
    with pytest.raises(ValueError, match="is no extension"):
        source_of(Path("photos"), extensions=[extension])


def test_files_of_operating_systems_and_hidden_ones_are_counted_by_kind(photos: Path) -> None:
    for name in ("class0/._photo 0.jpg", "class0/.DS_Store", "class1/Thumbs.db", "class1/.hidden.jpg", ".git/a/b"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(b"x")
    (photos / "lost+found").mkdir(mode=0o700)
    for name in ("__MACOSX/class0/._photo 0.jpg", "class1/@eaDir/photo 0.jpg"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(jpeg(1))
    source = open_source(source_of(photos))
    assert source.classes == ("class0", "class1")
    assert len(source.items) == 4
    assert source.skipped == {"hidden": 2, "of an operating system": 6}


def test_a_name_that_is_no_utf8_is_named_in_escaped_form(photos: Path) -> None:
    (photos / "class0").rename(photos / os.fsdecode(b"caf\xe9"))
    with pytest.raises(UsageError, match=r"photos holds caf\\xe9, whose name is no UTF-8: rename it"):
        open_source(source_of(photos))


def test_a_dangling_link_is_named(photos: Path) -> None:
    (photos / "class1" / "link.jpg").symlink_to("/gone/1.jpg")
    with pytest.raises(UsageError, match=r"class1/link\.jpg is a link to /gone/1\.jpg, which is not there"):
        open_source(source_of(photos))


def test_linked_images_and_class_folders_are_read(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "class1").symlink_to(photos / "class1")
    (tmp_path / "few" / "class2").mkdir()
    (tmp_path / "few" / "class2" / "link.jpg").symlink_to(photos / "class0" / "photo 0.jpg")
    source = open_source(source_of(tmp_path / "few"))
    assert [source.reader.read(item) for item in source.items][2] == jpeg(0)
    assert [item.key for item in source.items] == ["class1/photo_0", "class1/photo_1", "class2/link"]


def test_a_fifo_among_the_images_is_named(photos: Path) -> None:
    os.mkfifo(photos / "class0" / "queue.jpg")
    with pytest.raises(UsageError, match=r"class0/queue\.jpg is a FIFO, neither a file nor a folder"):
        open_source(source_of(photos))


@AS_ROOT
def test_an_image_that_may_not_be_read_is_named_by_the_listing(photos: Path) -> None:
    (photos / "class1" / "photo 1.jpg").chmod(0)
    code = (
        "from data_pipeline.config import FolderSource; from data_pipeline.sources import open_source;"
        f"open_source(FolderSource(path={str(photos)!r}))"
    )
    done = subprocess.run([*UNPRIVILEGED, sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"{photos}/class1/photo 1.jpg cannot be read by this user" in done.stderr


@pytest.mark.parametrize(
    ("one", "other"), [("Cat", "cat"), ("é", "e\u0301"), ("Straße", "strasse"), ("cat", "cat "), ("É", "e\u0301")]
)
def test_two_classes_that_look_alike_are_both_named(tmp_path: Path, one: str, other: str) -> None:
    for name in (one, other):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(jpeg(1))
    with pytest.raises(UsageError) as raised:
        open_source(source_of(tmp_path))
    assert ascii(one) in str(raised.value)
    assert ascii(other) in str(raised.value)


@pytest.mark.parametrize(
    ("one", "other"),
    [("कि", "की"), ("ที่", "ที"), ("தமிழ்", "தமழ"), ("e\u0301", "e")],
    ids=["Hindi", "Thai", "Tamil", "decomposed"],
)
def test_keys_keep_vowel_signs_and_accents(one: str, other: str) -> None:
    assert safe_key(one) == one
    assert safe_key(one) != safe_key(other)


@given(st.text(max_size=60))
def test_a_key_is_a_name_below_a_folder_that_fits_a_header(name: str) -> None:
    key = safe_key(name)
    assert key == safe_key(key) or len(key.encode()) > 80
    assert len(key.encode()) <= 90
    assert not {"", ".", ".."} & set(key.split("/"))
    assert not any(unicodedata.category(character).startswith(("C", "Z")) for character in key)


def test_a_file_that_changes_after_the_listing_is_named(photos: Path) -> None:
    source = open_source(source_of(photos))
    first, second = source.items[:2]
    (photos / first.name).write_bytes(jpeg(1) + b"more")
    (photos / second.name).write_bytes(jpeg(1)[:-9])
    for item, change in ((first, "longer"), (second, "shorter")):
        with pytest.raises(UsageError, match=rf"{item.name} \(key {item.key}\) had \d+ bytes when .*, and is {change}"):
            source.reader.read(item)


KINDS = st.sampled_from(["image", "damaged", "text", "hidden", "._", "Thumbs.db"])


@given(
    tree=st.dictionaries(
        st.tuples(st.sampled_from("ab"), st.sampled_from(["", "deep/"]), st.integers(0, 3)), KINDS, max_size=8
    )
)
def test_images_and_what_is_set_aside_and_skipped_are_all_that_a_folder_holds(
    tree: dict[tuple[str, str, int], str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("tree")
    names = {"hidden": ".{}.jpg", "._": "._{}.jpg", "Thumbs.db": "{}/Thumbs.db", "text": "{}.txt"}
    for (label, below, number), kind in {("a", "", 9): "image", ("b", "", 9): "image", **tree}.items():
        path = folder / "raw" / label / below / names.get(kind, "{}.jpg").format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number) if kind == "image" else b"damage")
    source = FolderSource(path=str(folder / "raw"), extensions=("jpg",))
    manifest = ingest(DataConfig(source=source, max_bad_share=1), str(folder / "out"), seed=0)["train"]
    kinds = Counter(tree.values())
    assert (manifest.samples, manifest.quarantined) == (2 + kinds["image"], kinds["damaged"])
    assert Counter(open_source(source).skipped) == Counter(
        {
            "hidden": kinds["hidden"],
            "of an operating system": kinds["._"] + kinds["Thumbs.db"],
            "with another extension": kinds["text"],
        }
    )
