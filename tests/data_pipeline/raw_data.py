"""Raw images as they are found in the world, made small: one writer per kind of source."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline import storage
from data_pipeline.config import (
    FolderSource,
    IdxSource,
    ILSVRCSource,
    ILSVRCValidationSource,
    ParquetSource,
    Source,
    WebDatasetSource,
)
from data_pipeline.storage.tar import write_tar
from tests.data_pipeline.small_data import contents, jpeg, write_photos

Files = Sequence[tuple[str, bytes]]


def tiny_png(grey: int) -> bytes:
    """A PNG of one pixel, made of bytes that no version of a library decides."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = bytes([0, grey])
    stored = b"\x78\x01" + b"\x01" + struct.pack("<HH", 2, 0xFFFD) + row + struct.pack(">I", zlib.adler32(row))
    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", stored) + chunk(b"IEND", b"")


def idx(*shape: int, data: bytes) -> bytes:
    """An idx file of unsigned bytes."""
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + data


def write_idx(folder: Path, images: bytes, labels: bytes) -> IdxSource:
    """A pair of files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "images").write_bytes(images)
    (folder / "labels").write_bytes(labels)
    return IdxSource(images=str(folder / "images"), labels=str(folder / "labels"))


def write_ilsvrc(path: Path, classes: Mapping[str, Files]) -> ILSVRCSource:
    """A tar of one tar per class."""
    path.write_bytes(write_tar([(f"{wnid}.tar", write_tar(files)[0]) for wnid, files in classes.items()])[0])
    return ILSVRCSource(path=str(path))


def write_ilsvrc_validation(
    folder: Path, images: Files, labels: str, synsets: str | None = None
) -> ILSVRCValidationSource:
    """A tar of images, and its text files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "val.tar").write_bytes(write_tar(images)[0])
    (folder / "labels.txt").write_text(labels)
    (folder / "synsets.txt").write_text(synsets or "")
    return ILSVRCValidationSource(
        path=str(folder / "val.tar"),
        labels=str(folder / "labels.txt"),
        synsets=str(folder / "synsets.txt") if synsets else None,
    )


def write_webdataset(folder: Path, shards: Mapping[str, Files], **fields: Any) -> WebDatasetSource:
    """A folder of tars."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, files in shards.items():
        (folder / name).write_bytes(write_tar(files)[0])
    return WebDatasetSource(path=str(folder), **fields)


def write_parquet(
    path: Path,
    images: Sequence[bytes | None],
    labels: Sequence[int],
    rows: int = 4,
    classes: Sequence[str] | None = None,
    plain: bool = False,
) -> ParquetSource:
    """A file with so many rows in a row group, as the Hugging Face hub has it or with a plain column of bytes."""
    import pyarrow as pa
    import pyarrow.parquet

    struct_type = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    column = (
        pa.array(images, pa.binary())
        if plain
        else pa.array([{"bytes": data, "path": f"{n}.jpg"} for n, data in enumerate(images)], struct_type)
    )
    table = pa.table({"image": column, "label": pa.array(labels, pa.int64())})
    if classes is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": list(classes), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pa.parquet.write_table(table, path, row_group_size=rows)
    return ParquetSource(path=str(path))


def write_every_source(folder: Path) -> None:
    """One small source of each kind, where `every_source` looks for it."""
    write_idx(folder / "idx", idx(4, 2, 2, data=bytes(range(16))), idx(4, data=b"\x00\x01\x00\x01"))
    write_photos(folder / "photos", classes=2, per_class=3)
    write_ilsvrc(
        folder / "train.tar",
        {f"n0{label}": [(f"n0{label}_{n}.JPEG", jpeg(label * 3 + n)) for n in range(3)] for label in (2, 1)},
    )
    write_ilsvrc_validation(folder / "val", [(f"val_{n}.JPEG", jpeg(n)) for n in range(4)], "n02\nn01\nn01\nn02\n")
    for shard in range(3):
        files = [
            file
            for n in range(shard * 4, shard * 4 + 4)
            for file in ((f"{n:04d}.jpg", jpeg(n)), (f"{n:04d}.cls", str(n % 2).encode()))
        ]
        write_webdataset(folder / "webdataset", {f"shard-{shard}.tar": files})
        images = [jpeg(shard * 10 + n) for n in range(10)]
        write_parquet(folder / "parquet" / f"train-{shard}.parquet", images, [n % 2 for n in range(10)])


def every_source(folder: str) -> list[Source]:
    """The sources of `write_every_source`, in a folder at any URI."""

    def at(*parts: str) -> str:
        return storage.join(folder, *parts)

    return [
        IdxSource(images=at("idx", "images"), labels=at("idx", "labels")),
        FolderSource(path=at("photos")),
        ILSVRCSource(path=at("train.tar")),
        ILSVRCValidationSource(path=at("val", "val.tar"), labels=at("val", "labels.txt")),
        WebDatasetSource(path=at("webdataset")),
        WebDatasetSource(path=at("webdataset", "shard-{0..2}.tar")),
        WebDatasetSource(path=at("webdataset", "shard-1.tar")),
        ParquetSource(path=at("parquet")),
        ParquetSource(path=at("parquet", "train-*.parquet")),
        ParquetSource(path=at("parquet", "train-1.parquet")),
    ]


def upload(folder: Path, uri: str) -> None:
    """Copy a folder to object storage."""
    for name, data in contents(folder).items():
        storage.write_bytes(storage.join(uri, name), data)
