"""The index of a data set's samples: what the shards say, mapped, and checked once, whoever wrote the file."""

from __future__ import annotations

import mmap
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import numpy as np
import pytest

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError
from data_pipeline.ingest.ingesting import ingest
from data_pipeline.node.node_cache import NodeCache
from data_pipeline.shards.column_file import Columns, Place, Written, open_columns
from data_pipeline.shards.image_shards import (
    ImageSample,
    ImageShards,
    ShardIndex,
    finish_images,
    read_indexes,
    write_image_shard,
)
from data_pipeline.shards.manifest import ImageManifest
from data_pipeline.shards.sample_index import SampleIndex, SampleIndexWriter, check_samples, open_sample_index
from tests.data_pipeline.small_data import Images, contents, flip_byte

CLASSES = ("a", "b", "c")


def write_set(uri: str) -> ImageManifest:
    records = []
    for shard, count in enumerate((3, 1, 2)):
        samples = [
            ImageSample(
                f"c{shard}/{'x' * number}é", (shard + number) % 3, ("jpg", "png")[number % 2], b"1" * (700 + number)
            )
            for number in range(count)
        ]
        records.append(write_image_shard(uri, f"images-{shard:05d}.tar", samples, "plan"))
    return finish_images(uri, read_indexes(uri, records), classes=CLASSES, split="train")


@pytest.fixture
def remote() -> Iterator[str]:
    uri = f"memory://{uuid4().hex}"
    write_set(uri)
    yield uri
    fsspec.filesystem("memory").rm(uri, recursive=True)


def opened(folder: Path) -> SampleIndex:
    return open_sample_index(str(folder), ImageManifest.read(str(folder)), NodeCache(str(folder / "cache")))


def test_it_says_of_each_sample_what_the_index_of_its_shard_says(images: Images) -> None:
    manifest, found = ImageManifest.read(images.uri), opened(images.folder)
    expected = [index for _, index in read_indexes(images.uri, manifest.shards)]
    for name in ("label", "offset", "length", "crc32"):
        assert getattr(found, name).tolist() == [value for index in expected for value in getattr(index, name)]
    assert [key.decode() for key in found.key.tolist()] == [key for index in expected for key in index.key]
    extensions = [found.extensions[code] for code in found.extension]
    assert extensions == [extension for index in expected for extension in index.extension]


def test_keys_of_different_lengths_and_scripts_come_back(tmp_path: Path) -> None:
    write_set(str(tmp_path))
    keys = ["c0/é", "c0/xé", "c0/xxé", "c1/é", "c2/é", "c2/xé"]
    assert [key.decode() for key in opened(tmp_path).key.tolist()] == keys
    assert [ImageShards(str(tmp_path)).key(index) for index in range(6)] == keys


def test_a_local_index_is_mapped_where_it_lies_and_read_only(images: Images) -> None:
    shards = ImageShards(images.uri)
    for column in (shards.labels, shards.keys, shards.starts):
        base: Any = column
        while isinstance(base, np.ndarray):
            base = base.base
        assert isinstance(base, memoryview | mmap.mmap)
        with pytest.raises(ValueError, match="read-only"):
            column[0] = column[1]


def test_processes_of_a_node_read_a_remote_index_once(remote: str, tmp_path: Path) -> None:
    cache, before = NodeCache(str(tmp_path / "cache")), storage.requests()
    first = ImageShards(remote, index_cache=cache)
    assert storage.requests() - before == {"head": 1, "get": 3}  # manifest.json, shards.bin, index.bin
    for name in ("shards.bin", "index.bin"):
        fsspec.filesystem("memory").rm(f"{remote}/{name}")
    other = ImageShards(remote, index_cache=NodeCache(str(tmp_path / "cache")))
    assert other.keys.tolist() == first.keys.tolist()
    assert other.read(4) == b"1" * 700


def test_a_copy_is_kept_while_its_columns_are_in_use(remote: str, tmp_path: Path) -> None:
    """The map holds the lock, although nobody holds the file."""
    cache = NodeCache(str(tmp_path / "cache"), limit=20_000)
    shards = ImageShards(remote, index_cache=cache)
    names = {path.name for path in cache.folder.iterdir()}
    with pytest.raises(Exception, match="leaves no room"):
        cache.open("other", 19_000, lambda draft: draft.write(b"x"))
    assert names <= {path.name for path in cache.folder.iterdir()}
    assert shards.labels.tolist() == [0, 1, 2, 1, 2, 0]


def test_the_same_shards_give_the_same_bytes_and_a_start_that_was_killed_is_repeated(
    images: Images, tmp_path: Path
) -> None:
    before = contents(images.folder)
    (images.folder / "manifest.json").unlink()
    (images.folder / "index.bin").write_bytes(b"of a start that was killed")
    ingest(images.config, str(tmp_path / "images"), seed=0)
    assert contents(images.folder) == before


@pytest.mark.parametrize("name", ["index.bin", "shards.bin"])
@pytest.mark.parametrize("damage", [lambda path: flip_byte(path, 700), Path.unlink])
def test_the_remedy_that_is_named_mends_it(
    images: Images, tmp_path: Path, name: str, damage: Callable[[Path], object]
) -> None:
    before = contents(images.folder)
    damage(images.folder / name)
    ingest(images.config, str(tmp_path / "images"), seed=0)
    assert contents(images.folder) == before


@pytest.mark.parametrize("far", [False, True])
def test_a_damaged_index_is_named_with_the_remedy(tmp_path: Path, remote: str, *, far: bool) -> None:
    uri = remote if far else str(tmp_path / "here")
    manifest = write_set(uri)
    whole = storage.read_bytes(f"{uri}/index.bin")
    damages = {
        f"it has {len(whole) - 1:,} bytes, and {len(whole):,} in the manifest": whole[:-1],
        "its sha256 is not that of the manifest": whole[:-1] + b"x",
        "": None,
    }
    for reason, data in damages.items():
        storage.remove_file(f"{uri}/index.bin")
        if data is not None:
            storage.write_bytes(f"{uri}/index.bin", data)
        found = rf"no index of images \({reason}\)" if reason else "missing"
        with pytest.raises(CorruptShardError, match=rf"index\.bin is {found}: run foldtrain ingest again"):
            open_sample_index(uri, manifest, NodeCache(str(tmp_path / "cache")))


def test_a_damaged_copy_is_fetched_again(remote: str, tmp_path: Path) -> None:
    folder = str(tmp_path / "cache")
    expected = ImageShards(remote, index_cache=NodeCache(folder)).labels.tolist()
    (path,) = NodeCache(folder).folder.glob("*.index")
    flip_byte(path, 400)
    cache = NodeCache(folder)
    assert ImageShards(remote, index_cache=cache).labels.tolist() == expected
    assert cache.damaged == 1


def put(column: str, row: int, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda arrays: arrays[column].__setitem__(row, value)


def replaced(column: str, make: Callable[[Any], Any]) -> Callable[[dict[str, Any]], object]:
    return lambda arrays: arrays.update({column: make(arrays[column])})


@pytest.mark.parametrize("rows", [1, 2, 100])
@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (put("label", 3, -1), "sample 'c1/é' has a label of none of 3"),
        (put("label", 3, 3), "sample 'c1/é' has a label of none of 3"),
        (put("extension", 5, 2), "sample 'c2/xé' has an extension of none"),
        (put("offset", 0, 511), "sample 'c0/é' overlaps the sample before it"),
        (put("offset", 1, 1211), "sample 'c0/xé' overlaps the sample before it"),
        (put("offset", 3, 0), "sample 'c1/é' overlaps the sample before it"),
        (put("length", 1, 9000), "sample 'c0/x.*é' (reaches beyond its tar|overlaps)"),
        (put("length", 2, 2**31), "sample 'c0/xxé' reaches beyond its tar"),
        (put("length", 5, 2**31), "sample 'c2/xé' reaches beyond its tar"),
        (replaced("offset", lambda held: held.astype("<u8") + 2**60), "sample 'c0/é' has a place beyond all bounds"),
        (replaced("length", lambda held: held.astype("<u8") + 2**63), "sample 'c0/é' has a place beyond all bounds"),
        (put("key", 2, b"../x"), "'../x' is no name below a folder"),
        (put("key", 2, b"/x"), "'/x' is no name below a folder"),
        (put("key", 2, b""), "'' is no name below a folder"),
        (put("key", 2, b"a\nb"), "is no name below a folder"),
        (put("key", 2, b"a\0b"), "is no name below a folder"),
        (put("key", 2, b"\xff"), "can't decode byte"),
        (
            replaced("key", lambda held: np.array([*held[:5], b"x" * 98], "S")),
            "sample 'xxx.*has a key that is too long",
        ),
        (replaced("crc32", lambda held: held[:-1]), "not of 6 samples"),
        (replaced("crc32", lambda held: held.astype("<u8")), "its column crc32 holds uint64"),
        (replaced("offset", lambda held: held.astype("<i8")), "its column offset holds int64"),
        (lambda arrays: arrays.pop("crc32"), "its columns are extension, key"),
    ],
)
def test_content_that_cannot_be_is_refused_in_pieces_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edit: Callable[[dict[str, Any]], object], reason: str, rows: int
) -> None:
    monkeypatch.setattr("data_pipeline.shards.sample_index._ROWS", rows)
    manifest = write_set(str(tmp_path))
    held = raw(tmp_path, manifest)
    check_samples(manifest, held)
    arrays = {name: array.copy() for name, array in held.arrays.items()}
    edit(arrays)
    with pytest.raises(ValueError, match=reason):
        check_samples(manifest, Columns(arrays, held.texts))


@pytest.mark.parametrize("sample", [2, 3, 5])
def test_an_image_may_end_where_its_tar_does_and_no_byte_later(tmp_path: Path, sample: int) -> None:
    manifest = write_set(str(tmp_path))
    arrays = {name: array.copy() for name, array in raw(tmp_path, manifest).arrays.items()}
    size = manifest.shards[{2: 0, 3: 1, 5: 2}[sample]].bytes
    arrays["length"][sample] = size - arrays["offset"][sample]
    check_samples(manifest, Columns(arrays, {"extensions": ["jpg", "png"]}))
    arrays["length"][sample] += 1
    with pytest.raises(ValueError, match="reaches beyond its tar"):
        check_samples(manifest, Columns(arrays, {"extensions": ["jpg", "png"]}))


def test_a_copy_that_was_checked_for_one_manifest_is_not_taken_for_another(remote: str, tmp_path: Path) -> None:
    """Of another one, with fewer classes, the same index is not right."""
    cache = NodeCache(str(tmp_path / "cache"))
    manifest = ImageManifest.read(remote)
    open_sample_index(remote, manifest, cache)
    fields = {name: getattr(manifest, name) for name in type(manifest).model_fields if name != "fingerprint"}
    ImageManifest.build(**fields | {"classes": ("a", "b")}).write(remote)
    with pytest.raises(CorruptShardError, match=r"index\.bin is no index of images \(sample .* of none of 2\)"):
        open_sample_index(remote, ImageManifest.read(remote), cache)


@pytest.mark.parametrize("extension", ["", "../x", "JPG", "a" * 9])
def test_an_extension_that_is_none_is_refused(tmp_path: Path, extension: str) -> None:
    manifest = write_set(str(tmp_path))
    held = raw(tmp_path, manifest)
    with pytest.raises(ValueError, match="one of its extensions is none"):
        check_samples(manifest, Columns(held.arrays, {"extensions": ["jpg", extension]}))


def test_an_index_without_its_list_of_extensions_is_refused(tmp_path: Path) -> None:
    manifest = write_set(str(tmp_path))
    for texts in ({}, {"extensions": ["jpg", "png"], "others": []}):
        with pytest.raises(ValueError, match="its lists of text are"):
            check_samples(manifest, Columns(raw(tmp_path, manifest).arrays, texts))


def raw(folder: Path, manifest: ImageManifest) -> Columns:
    assert manifest.index is not None
    stated = Written(manifest.index.bytes, manifest.index.sha256)
    return open_columns(Place(str(folder / "index.bin"), "index of images", stated, ""), lambda _: None)


def index_of(keys: list[str], first: int = 0) -> ShardIndex:
    places = [512 + first + 1536 * number for number in range(len(keys))]
    same = [1] * len(keys)
    return ShardIndex("plan", 2**40, "0" * 64, keys, same, ["jpg"] * len(keys), places, same, same)


def test_places_beyond_four_gigabytes_are_kept(tmp_path: Path) -> None:
    with SampleIndexWriter() as writer:
        writer.add(index_of(["a", "b"], first=2**33))
        stated = writer.write(str(tmp_path))
    columns = open_columns(Place(str(tmp_path / "index.bin"), "index of images", stated, ""), lambda _: None)
    assert columns.arrays["offset"].tolist() == [2**33 + 512, 2**33 + 2048]


def test_a_writer_holds_one_shard_and_not_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_pipeline.shards.sample_index._ROWS", 1024)

    def write(shards: int) -> int:
        index = index_of([f"n01440764/n01440764_{number}" for number in range(1000)])
        tracemalloc.start()
        with SampleIndexWriter() as writer:
            for _ in range(shards):
                writer.add(index)
            stated = writer.write(str(tmp_path))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert stated.bytes > shards * 1000 * 35
        return peak

    assert write(400) < write(100) + 2**20
