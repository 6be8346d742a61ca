"""A fault in a set of images fails the check that it is about, with shard and key."""

from __future__ import annotations

import json
from typing import Any

import pytest

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards.image_shards import ShardIndex, index_name, read_index, shard_record
from data_pipeline.shards.manifest import FileStatement, ImageManifest
from data_pipeline.shards.sample_index import SampleIndexWriter
from data_pipeline.storage.tar import END_OF_ARCHIVE, encode_member, read_members
from data_pipeline.tools.verifying import verify
from tests.data_pipeline.small_data import Images, flip_byte
from tests.data_pipeline.verified_sets import failures, finish


def put_images(images: Images, number: int, archive: bytes, **changes: Any) -> None:
    """Commit other bytes as the tar of a shard, with an index of other columns, so that every digest is right."""
    manifest = ImageManifest.read(images.uri)
    shard = manifest.shards[number]
    columns = vars(read_index(images.uri, shard)) | {"size": len(archive), "sha256": storage.sha256(archive)} | changes
    data = ShardIndex(**columns).encode()
    (images.folder / shard.name).write_bytes(archive)
    (images.folder / index_name(shard.name)).write_bytes(data)
    record = shard_record(shard.name, ShardIndex(**columns), data)
    finish(images, images.uri, [record if each.name == shard.name else each for each in manifest.shards])


def put_index(images: Images, column: str, value: object) -> str:
    """Commit an index.bin in which a sample of the second shard has another value, and none else; its key."""
    manifest = ImageManifest.read(images.uri)
    key = read_index(images.uri, manifest.shards[1]).key[2]
    with SampleIndexWriter() as writer:
        for number, shard in enumerate(manifest.shards):
            index = read_index(images.uri, shard)
            if number == 1:
                getattr(index, column)[2] = value
            writer.add(index)
        written = writer.write(images.uri)
    fields = {name: getattr(manifest, name) for name in type(manifest).model_fields if name != "fingerprint"}
    stated = FileStatement(bytes=written.bytes, sha256=written.sha256)
    ImageManifest.build(**fields | {"index": stated}).write(images.uri)
    return key


@pytest.mark.usefixtures("pieces")
def test_a_damaged_image_fails_checksum_and_crc_with_shard_and_key(images: Images) -> None:
    member = read_members(str(images.folder / "images-00001.tar"))[4]
    flip_byte(images.folder / "images-00001.tar", member.offset + 9)
    found, sample = failures(verify(images.uri)), f"sample {member.name.removesuffix('.jpg')} is corrupt"
    assert set(found) == {"checksums", "samples"}
    assert found["samples"] == (f"images-00001.tar: {sample} (CRC-32 differs)",)
    assert sample in found["checksums"][0]


@pytest.mark.usefixtures("pieces")
def test_a_damaged_label_of_an_image_is_traced_to_its_key(images: Images) -> None:
    member = read_members(str(images.folder / "images-00001.tar"))[5]
    flip_byte(images.folder / "images-00001.tar", member.offset)
    (problem,) = failures(verify(images.uri))["counts"]
    assert problem.startswith(f"images-00001.tar: sample {member.name.removesuffix('.cls')} is not in the tar")


@pytest.mark.parametrize("name", ["images-00001.tar", "images-00001.index.json"])
def test_a_file_that_is_gone_is_named(images: Images, name: str) -> None:
    (images.folder / name).unlink()
    problems = [problem for found in failures(verify(images.uri)).values() for problem in found]
    assert any(name in problem and "is missing" in problem for problem in problems)


@pytest.mark.parametrize(
    ("column", "value"),
    [("label", 7), ("key", "class0/stranger"), ("extension", "png"), ("offset", 513), ("length", 3), ("crc32", 5)],
)
def test_a_value_that_is_wrong_in_index_bin_alone_is_found(images: Images, column: str, value: object) -> None:
    stated = getattr(read_index(images.uri, ImageManifest.read(images.uri).shards[1]), column)[2]
    key = put_index(images, column, value)
    text = f"images-00001.tar: sample {key} has the {column} {value} in index.bin, {stated} in its shard"
    assert failures(verify(images.uri)) == {"index.bin": (text,)}


@pytest.mark.parametrize("quick", [True, False])
def test_an_index_bin_that_is_damaged_fails(images: Images, quick: bool) -> None:
    flip_byte(images.folder / "index.bin", 700)
    (problem,) = failures(verify(images.uri, quick=quick))["index.bin"]
    assert "its sha256 is not that of the manifest" in problem


@pytest.mark.parametrize("quick", [True, False])
def test_an_index_bin_that_is_gone_fails(images: Images, quick: bool) -> None:
    (images.folder / "index.bin").unlink()
    (problem,) = failures(verify(images.uri, quick=quick))["index.bin"]
    assert "is missing" in problem


def test_an_index_bin_of_another_number_of_samples_fails(images: Images) -> None:
    manifest = ImageManifest.read(images.uri)
    with SampleIndexWriter() as writer:
        writer.add(read_index(images.uri, manifest.shards[0]))
        written = writer.write(images.uri)
    fields = {name: getattr(manifest, name) for name in type(manifest).model_fields if name != "fingerprint"}
    stated = FileStatement(bytes=written.bytes, sha256=written.sha256)
    ImageManifest.build(**fields | {"index": stated}).write(images.uri)
    assert "its column key holds" in failures(verify(images.uri))["index.bin"][0]


def test_a_file_in_a_tar_that_its_index_does_not_know_fails(images: Images) -> None:
    archive = (images.folder / "images-00001.tar").read_bytes().removesuffix(END_OF_ARCHIVE)
    put_images(images, 1, archive + encode_member("stranger.jpg", b"x") + END_OF_ARCHIVE)
    assert failures(verify(images.uri)) == {
        "counts": (
            "images-00001.tar: its end is not where the last sample of its index ends: it was cut, or holds more",
        )
    }


@pytest.mark.parametrize("column", ["label", "key", "extension", "offset", "length"])
def test_an_index_that_is_not_about_its_tar_fails_with_the_key(images: Images, column: str) -> None:
    index = read_index(images.uri, ImageManifest.read(images.uri).shards[1])
    other = {
        "label": 1 - index.label[2],
        "key": "class0/stranger",
        "extension": "png",
        "offset": index.offset[2] + 512,
        "length": index.length[2] - 1,
    }
    values = [*getattr(index, column)]
    values[2] = other[column]
    put_images(images, 1, (images.folder / "images-00001.tar").read_bytes(), **{column: values})
    key = values[2] if column == "key" else index.key[2]
    found = failures(verify(images.uri))
    assert found["counts"][0].startswith(f"images-00001.tar: sample {key} is not in the tar with label ")
    assert ("samples" in found) == (column in {"offset", "length"})


def test_a_header_of_an_image_that_is_damaged_is_traced_to_its_key(images: Images) -> None:
    member = read_members(str(images.folder / "images-00001.tar"))[4]
    flip_byte(images.folder / "images-00001.tar", member.offset - 500)
    key, found = member.name.removesuffix(".jpg"), failures(verify(images.uri))
    assert set(found) == {"checksums", "counts"}
    assert f"sample {key} is corrupt (its tar headers or its label differ)" in found["checksums"][0]
    assert found["counts"][0].startswith(f"images-00001.tar: sample {key} is not in the tar")


def test_a_quarantined_image_that_is_there_all_the_same_is_named(images: Images) -> None:
    manifest = ImageManifest.read(images.uri)
    key = read_index(images.uri, manifest.shards[0]).key[2]
    storage.write_json(f"{images.uri}/quarantine.json", [{"key": key, "source": "a.jpg", "reason": "cut"}])
    fields = {name: getattr(manifest, name) for name in type(manifest).model_fields if name != "fingerprint"}
    ImageManifest.build(**fields | {"quarantined": 1}).write(images.uri)
    assert failures(verify(images.uri))["quarantine"] == (f"sample {key} is quarantined and there all the same",)


def test_a_quarantine_list_that_is_gone_fails(images: Images) -> None:
    manifest = ImageManifest.read(images.uri)
    fields = {name: getattr(manifest, name) for name in type(manifest).model_fields if name != "fingerprint"}
    ImageManifest.build(**fields | {"quarantined": 2}).write(images.uri)
    (problem,) = failures(verify(images.uri))["quarantine"]
    assert problem.endswith("quarantine.json lists 0 images, the manifest states 2")


@pytest.mark.parametrize("record", [7, [7], [{}], {"a": 1}])
def test_a_quarantine_that_is_no_list_of_images_is_named(images: Images, record: object) -> None:
    (images.folder / "quarantine.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match=r"quarantine\.json is no list of images"):
        verify(images.uri)
