"""Raw images in parquet files: columns, classes, keys, and row groups that are read as a whole."""

from __future__ import annotations

import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from data_pipeline import storage
from data_pipeline.config import ParquetSource
from data_pipeline.errors import UsageError
from data_pipeline.sources import open_source
from tests.data_pipeline.raw_data import write_parquet
from tests.data_pipeline.small_data import jpeg

IMAGES = [jpeg(n) for n in range(10)]
LABELS = [n % 3 for n in range(10)]


@pytest.mark.parametrize("plain", [False, True], ids=["struct", "binary"])
def test_rows_become_images_with_their_labels(tmp_path: Path, plain: bool) -> None:
    source = open_source(write_parquet(tmp_path / "train.parquet", IMAGES, LABELS, plain=plain))
    assert [source.reader.read(item) for item in source.items] == IMAGES
    assert [item.label for item in source.items] == LABELS
    assert source.items[7].key == "train/0000007"
    assert source.classes == ("0", "1", "2")


def test_a_row_group_is_a_block(tmp_path: Path) -> None:
    source = open_source(write_parquet(tmp_path / "train.parquet", IMAGES, LABELS, rows=4))
    assert [(item.block, item.offset) for item in source.items] == [(n // 4, n % 4) for n in range(10)]


def test_class_names_come_from_the_hugging_face_metadata(tmp_path: Path) -> None:
    config = write_parquet(tmp_path / "train.parquet", IMAGES, LABELS, classes=("tench", "goldfish", "shark", "ray"))
    assert open_source(config).classes == ("tench", "goldfish", "shark", "ray")
    assert open_source(config.model_copy(update={"classes": ("a", "b", "c")})).classes == ("a", "b", "c")


def test_files_with_other_class_names_are_not_mixed(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", IMAGES, LABELS, classes=("x", "y", "z"))
    write_parquet(tmp_path / "b.parquet", IMAGES, LABELS, classes=("x", "z", "y"))
    with pytest.raises(UsageError, match=r"a\.parquet and b\.parquet name their classes differently"):
        open_source(ParquetSource(path=str(tmp_path)))


def test_a_row_without_an_image_reads_as_empty(tmp_path: Path) -> None:
    source = open_source(write_parquet(tmp_path / "train.parquet", [None, IMAGES[0]], [0, 0]))
    assert [source.reader.read(item) for item in source.items] == [b"", IMAGES[0]]


def test_a_row_group_is_read_once_while_its_images_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(write_parquet(tmp_path / "train.parquet", IMAGES, LABELS, rows=5))
    reads: list[int] = []
    read_range = storage.read_range

    def counted(uri: str, start: int, length: int) -> bytes:
        reads.append(start)
        return read_range(uri, start, length)

    monkeypatch.setattr(storage, "read_range", counted)
    source.reader.read(source.items[0])
    for_one = len(reads)
    for item in source.items[1:5]:
        source.reader.read(item)
    assert len(reads) == for_one


def test_listing_reads_no_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [data + bytes(500_000) for data in IMAGES]
    config = write_parquet(tmp_path / "train.parquet", images, LABELS, plain=True)
    fetched: list[int] = []
    read_range = storage.read_range

    def counted(uri: str, start: int, length: int) -> bytes:
        data = read_range(uri, start, length)
        fetched.append(len(data))
        return data

    monkeypatch.setattr(storage, "read_range", counted)
    assert len(open_source(config).items) == 10
    assert sum(fetched) < 500_000


def test_a_reader_is_sent_to_another_process_without_what_it_holds(tmp_path: Path) -> None:
    source = open_source(write_parquet(tmp_path / "train.parquet", IMAGES, LABELS))
    source.reader.read(source.items[0])
    sent = pickle.dumps(source.reader)
    assert len(sent) < 500
    assert pickle.loads(sent).read(source.items[9]) == IMAGES[9]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"photo": pa.array([b""]), "label": pa.array([0])}, "has no column image, but photo, label"),
        ({"image": pa.array([b""])}, "has no column label, but image"),
        ({"image": pa.array(["a.jpg"]), "label": pa.array([0])}, "column image is string, not image files"),
        ({"image": pa.array([b""]), "label": pa.array(["cat"])}, "column label is string, not whole numbers"),
        ({"image": pa.array([b"", b""]), "label": pa.array([0, -1])}, "row 1 has the label -1"),
        ({"image": pa.array([b"", b""]), "label": pa.array([0, None])}, "row 1 has the label None"),
        ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, "holds no images"),
    ],
)
def test_columns_that_are_wrong_are_named(tmp_path: Path, columns: dict[str, pa.Array], message: str) -> None:
    path = tmp_path / "a.parquet"
    pa.parquet.write_table(pa.table(columns), path)
    with pytest.raises(UsageError, match=message):
        open_source(ParquetSource(path=str(path)))


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(UsageError, match=r"a\.parquet is not a parquet file, or is damaged"):
        open_source(ParquetSource(path=str(tmp_path / "a.parquet")))


def test_a_damaged_page_and_a_damaged_footer_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    config = write_parquet(path, [bytes(5000)] * 4, [0] * 4)  # it compresses well, so damage cannot go unseen
    whole = path.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    path.write_bytes(whole[:footer] + bytes(len(whole) - footer - 8) + whole[-8:])
    with pytest.raises(UsageError, match=r"a\.parquet is not a parquet file, or is damaged \(Couldn't deserialize"):
        open_source(config)
    path.write_bytes(whole)
    source = open_source(config)
    path.write_bytes(b"PAR1" + b"\xff" * 60 + whole[64:])
    with pytest.raises(UsageError, match=r"a\.parquet is not a parquet file, or is damaged"):
        source.reader.read(source.items[0])


def test_a_storage_that_fails_is_not_taken_for_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_parquet(tmp_path / "a.parquet", IMAGES, LABELS)

    def refuse(uri: str, start: int, length: int) -> bytes:
        raise TimeoutError(110, f"no answer for {uri} {start} {length}")

    monkeypatch.setattr(storage, "read_range", refuse)
    with pytest.raises(TimeoutError):
        open_source(config)
