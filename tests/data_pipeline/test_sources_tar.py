"""Raw images in tars: ILSVRC's validation images with their labels, and WebDataset shards."""

from __future__ import annotations

import gc
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import storage
from data_pipeline.config import WebDatasetSource
from data_pipeline.errors import UsageError
from data_pipeline.sources import open_source
from data_pipeline.sources.parts import LISTING_THREADS, find_parts, in_parallel
from data_pipeline.sources.tar_listing import Window, list_tar
from data_pipeline.storage.tar import write_tar
from tests.data_pipeline.raw_data import write_ilsvrc, write_ilsvrc_validation, write_webdataset
from tests.data_pipeline.small_data import jpeg

VALIDATION = [(f"ILSVRC2012_val_0000000{n}.JPEG", jpeg(n)) for n in (3, 1, 2)]
WNIDS = {1: "n02", 2: "n01", 3: "n02"}
BY_NAME = "".join(f"ILSVRC2012_val_0000000{n},{WNIDS[n]} 85 1 499 272 \n" for n in (2, 3, 1))


def sample(key: str, label: int, image: bytes | None = None) -> list[tuple[str, bytes]]:
    return [(f"{key}.jpg", image or jpeg(label)), (f"{key}.cls", str(label).encode())]


@pytest.mark.parametrize(
    ("labels", "synsets"),
    [
        ("n02\nn01\nn02\n", None),
        ("\n".join(["ImageId,PredictionString", BY_NAME]), None),
        (BY_NAME.replace(",", ".JPEG\t"), None),
        (
            "490\n361\n490\n",
            "\n".join({361: "n01 tench, Tinca tinca", 490: "n02"}.get(n, f"n9{n}") for n in range(1, 999)),
        ),
    ],
    ids=["wnids in file order", "Kaggle's csv", "names and blanks", "ids and synsets"],
)
def test_validation_labels_are_read_in_all_their_forms(tmp_path: Path, labels: str, synsets: str | None) -> None:
    source = open_source(write_ilsvrc_validation(tmp_path, VALIDATION, labels, synsets))
    assert source.classes == ("n01", "n02")
    assert [(item.key[-1], item.label) for item in source.items] == [("1", 1), ("2", 0), ("3", 1)]
    assert [source.reader.read(item) for item in source.items] == [jpeg(1), jpeg(2), jpeg(3)]


@pytest.mark.parametrize(
    ("labels", "synsets", "message"),
    [
        ("n01\nn02\n", None, "labels.txt has 2 labels, but .*val.tar holds 3 images"),
        ("1\n2\n1\n", None, "has ILSVRC ids: set data.source.synsets"),
        ("1\n3\n1\n", "n01\nn02\n", "has the id 3 in line 2, but synsets are 1 to 2"),
        (
            BY_NAME.replace("val_00000001", "val_00000009"),
            None,
            "names the image ILSVRC2012_val_00000009 in line 3, which",
        ),
        (BY_NAME + BY_NAME, None, "names the image ILSVRC2012_val_00000002 in line 4, again"),
        (BY_NAME[: BY_NAME.index("\n") + 1], None, "has no label for ILSVRC2012_val_00000001"),
    ],
)
def test_validation_labels_that_do_not_fit_are_named(
    tmp_path: Path, labels: str, synsets: str | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        open_source(write_ilsvrc_validation(tmp_path, VALIDATION, labels, synsets))


def test_webdataset_samples_keep_their_keys_and_bytes(tmp_path: Path) -> None:
    shards = {"b.tar": sample("x/0002", 1), "a.tar": sample("x/0001", 0) + sample("x/0003", 1, jpeg(3))}
    source = open_source(write_webdataset(tmp_path, shards))
    assert source.classes == ("0", "1")
    assert [(item.key, item.label, item.part) for item in source.items] == [
        ("x/0001", 0, "a.tar"),
        ("x/0002", 1, "b.tar"),
        ("x/0003", 1, "a.tar"),
    ]
    assert [source.reader.read(item) for item in source.items] == [jpeg(0), jpeg(1), jpeg(3)]


def test_keys_that_two_tars_share_begin_with_the_names_of_their_tars(tmp_path: Path) -> None:
    shards = {"a.tar": sample("0001", 0), "b.tar": sample("0001", 1) + sample("0002", 1)}
    source = open_source(write_webdataset(tmp_path, shards))
    assert [item.key for item in source.items] == ["a/0001", "b/0001", "b/0002"]


def test_a_label_may_be_a_field_of_a_json_member(tmp_path: Path) -> None:
    files = [("1.PNG", jpeg(1)), ("1.json", json.dumps({"label": 3, "caption": "é" * 9000}).encode())]
    source = open_source(write_webdataset(tmp_path, {"a.tar": files}, label="json:label"))
    assert [(item.label, source.reader.read(item)) for item in source.items] == [(3, jpeg(1))]


def test_the_first_extension_that_is_there_is_the_image(tmp_path: Path) -> None:
    files = [("1.seg.png", b"mask"), ("1.png", b"png"), ("1.jpg", b"jpg"), ("1.cls", b"0\n")]
    source = open_source(write_webdataset(tmp_path, {"a.tar": files}, images=("webp", "png", "jpg")))
    assert source.reader.read(source.items[0]) == b"png"


def test_class_names_of_a_webdataset_must_cover_the_labels(tmp_path: Path) -> None:
    config = write_webdataset(tmp_path, {"a.tar": sample("1", 2)}, classes=("cat", "dog"))
    with pytest.raises(UsageError, match="labels up to 2, but 2 classes are named"):
        open_source(config)


def test_a_number_that_is_too_large_for_a_label_is_named(tmp_path: Path) -> None:
    config = write_webdataset(tmp_path, {"a.tar": [("1.jpg", jpeg(1)), ("1.cls", b"280375465082880")]})
    with pytest.raises(UsageError, match="has the label 280375465082880, which is too large to be a class"):
        open_source(config)


@pytest.mark.parametrize(
    ("files", "label", "message"),
    [
        ([("1.cls", b"0")], "cls", r"a\.tar: sample 1 has no image \(jpg, jpeg, png, webp, avif, jp2\), but only cls"),
        ([("1.jpg", b"0")], "cls", r"a\.tar: sample 1 has no label \(cls\), but only jpg"),
        ([("1.jpg", b"0"), ("1.cls", b"cat")], "cls", r"a\.tar: sample 1 has the label b'cat'"),
        ([("1.jpg", b"0"), ("1.cls", b"-1")], "cls", r"a\.tar: sample 1 has the label b'-1'"),
        ([("1.jpg", b"0"), ("1.json", b"{")], "json:label", r"a\.tar: sample 1 has a \.json member that is not JSON"),
        ([("1.jpg", b"0"), ("1.json", b"{}")], "json:label", r"a\.tar: sample 1 has no field label"),
        ([("1.jpg", b"0"), ("1.jpg", b"1")], "cls", r"a\.tar holds 1\.jpg twice"),
    ],
)
def test_webdataset_samples_that_are_wrong_are_named(
    tmp_path: Path, files: list[tuple[str, bytes]], label: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        open_source(write_webdataset(tmp_path, {"a.tar": files}, label=label))


def test_files_that_are_no_tars_and_hidden_ones_are_left_out_of_a_folder(tmp_path: Path) -> None:
    write_webdataset(
        tmp_path / "sub", {"a.tar": sample("1", 0), ".b.tar": sample("2", 0), "index.json": sample("3", 0)}
    )
    parts = find_parts(str(tmp_path), ".tar")
    assert (parts.root, parts.names) == (str(tmp_path), ["sub/a.tar"])
    assert parts.skipped.counts() == {"hidden": 1, "with another extension": 1}


def test_a_folder_without_tars_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no \.tar files"):
        open_source(WebDatasetSource(path=str(tmp_path)))


def test_a_pattern_names_the_tar_that_is_missing(tmp_path: Path) -> None:
    write_webdataset(tmp_path, {"s-0.tar": sample("1", 0)})
    with pytest.raises(UsageError, match=r"there is no file .*s-1\.tar"):
        open_source(WebDatasetSource(path=f"{tmp_path}/s-{{0..1}}.tar"))


def test_a_pattern_may_have_braces_in_a_folder(tmp_path: Path) -> None:
    for number in range(2):
        write_webdataset(tmp_path / f"part{number}", {"s.tar": sample(str(number), 0)})
    source = open_source(WebDatasetSource(path=f"{tmp_path}/part{{0,1}}/s.tar"))
    assert [item.part for item in source.items] == ["part0/s.tar", "part1/s.tar"]


def test_listing_reads_headers_and_labels_but_not_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = jpeg(1) + bytes(2_000_000)
    train = write_ilsvrc(tmp_path / "train.tar", {"n01": [("a.JPEG", big)], "n02": [("b.JPEG", big), ("c.JPEG", big)]})
    shards = write_webdataset(tmp_path / "wds", {"a.tar": sample("1", 0, big) + sample("2", 1, big)})
    fetched: list[int] = []
    read_range = storage.read_range

    def counted(uri: str, start: int, length: int) -> bytes:
        data = read_range(uri, start, length)
        fetched.append(len(data))
        return data

    monkeypatch.setattr(storage, "read_range", counted)
    assert len(open_source(train).items) == 3
    assert len(open_source(shards).items) == 2
    assert sum(fetched) < 20 * 16 * 1024


@given(
    data=st.binary(max_size=200),
    start=st.integers(0, 50),
    steps=st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99))),
)
def test_a_window_reads_what_is_there(
    data: bytes, start: int, steps: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("window") / "file"
    path.write_bytes(data)
    window = Window(str(path), start, 60)
    for position, size in steps:
        window.seek(position)
        assert window.read(size) == data[start : start + 60][position : position + size]


def test_long_names_are_listed(tmp_path: Path) -> None:
    name = "folder/" * 30 + "image.jpg"
    (tmp_path / "image.jpg").write_bytes(jpeg(1))
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "long.tar", "w", format=form) as archive:
            archive.add(tmp_path / "image.jpg", name)
        (((member, _),), _) = list_tar(str(tmp_path / "long.tar"))
        assert member.name == name
        assert (tmp_path / "long.tar").read_bytes()[member.offset :][: member.length] == jpeg(1)


def test_contents_that_were_cut_are_an_error(tmp_path: Path) -> None:
    archive = write_tar([("1.cls", b"7" * 600)])[0]
    (tmp_path / "a.tar").write_bytes(archive[:900])
    with pytest.raises(UsageError, match=r"a\.tar is not a tar, or is damaged"):
        open_source(WebDatasetSource(path=str(tmp_path / "a.tar")))


def test_a_remote_tar_of_small_images_is_listed_in_fewer_requests_than_it_has_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [100_000] * 30 + [1_500_000, 100_000, 700, 400_000, 0, 100_000]
    files = [(f"n01_{number}.JPEG", bytes(size)) for number, size in enumerate(sizes)]
    near = write_ilsvrc(tmp_path / "train.tar", {"n01": files})
    far = "memory://tar-of-small-images/train.tar"
    storage.write_bytes(far, (tmp_path / "train.tar").read_bytes())
    fetched: list[str] = []
    read_range = storage.read_range

    def counted(uri: str, start: int, length: int) -> bytes:
        fetched.append(uri)
        return read_range(uri, start, length)

    monkeypatch.setattr(storage, "read_range", counted)
    here = open_source(near).items
    fetched.clear()
    assert open_source(near.model_copy(update={"path": far})).items == here
    assert [item.size for item in sorted(here, key=lambda item: item.offset)] == sizes
    assert len(fetched) < len(sizes) / 2


def test_a_listing_keeps_no_header_of_a_tar(tmp_path: Path) -> None:
    (tmp_path / "many.tar").write_bytes(write_tar([(f"{n}.cls", b"0") for n in range(50)])[0])
    alive: dict[str, int] = {}

    def is_wanted(name: str) -> bool:
        if name in {"5.cls", "49.cls"}:  # walking through all objects of a process takes a while
            alive[name] = sum(isinstance(each, tarfile.TarInfo) for each in gc.get_objects())
        return False

    list_tar(str(tmp_path / "many.tar"), is_wanted=is_wanted)
    assert alive["49.cls"] <= alive["5.cls"] + 3


def test_no_more_parts_are_held_than_are_listed_at_a_time() -> None:
    begun: list[int] = []

    def list_part(number: int) -> int:
        begun.append(number)
        return number

    for taken, part in enumerate(in_parallel("s3://bucket/folder", list_part, range(200))):
        assert part == taken
        assert len(begun) - taken <= LISTING_THREADS
    assert sorted(begun) == list(range(200))
