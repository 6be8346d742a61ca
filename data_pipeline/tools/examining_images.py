"""One shard of images: its index against the manifest, and every byte of its tar against the index.

A tar of ours follows from its index but for the images themselves, and those have a CRC-32 each. So what lies between
the images is compared with what has to lie there, and nothing in the tar is left out.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_pipeline.errors import FoldtrainError
from data_pipeline.shards.image_shards import ShardIndex, index_name, read_index
from data_pipeline.shards.manifest import ImageManifest, ImageShardRecord
from data_pipeline.shards.shard_table import shard_uri
from data_pipeline.storage.tar import BLOCK, END_OF_ARCHIVE, encode_header, encode_member
from data_pipeline.tools.examining import CHECKSUMS, CORRUPT, COUNTS, FILES, LINEAGE, SAMPLES, Findings
from data_pipeline.tools.one_pass import OnePass


def examine_images(uri: str, manifest: ImageManifest, shard: ImageShardRecord, size: int | None) -> Findings:
    """What is wrong with a shard of images.

    Args:
        uri: of the data set.
        manifest: of the data set.
        shard: which one.
        size: bytes of the tar; None if it is not there.
    """
    found = Findings(shard.name)
    is_there = found.check_size(shard, size)
    try:
        index = read_index(uri, shard)
    except FoldtrainError as error:
        found.add(CHECKSUMS, str(error))
        return found
    found.index = index
    found.key = np.array([key.encode() for key in index.key], "S")
    found.label = np.array(index.label, np.int64)
    found.check_labels(len(manifest.classes))
    if len(index.key) != shard.samples:
        found.add(COUNTS, f"{len(index.key)} samples in its index, {shard.samples} in the manifest")
    if (index.sha256, index.size) != (shard.sha256, shard.bytes):
        found.add(LINEAGE, f"{index_name(shard.name)} is about another tar than the manifest")
    if is_there and size is not None:
        tar = OnePass(shard_uri(uri, shard), size)
        try:
            damage = _examine_tar(found, index, tar)
            digest = tar.finish()
        except FileNotFoundError:
            found.add(FILES, "is missing")
            return found
        if digest != shard.sha256:
            found.add(CHECKSUMS, f"sha256 differs; {damage or 'its images and headers are those of its index'}")
    return found


@dataclass(frozen=True)
class _Row:
    """A sample as the index has it."""

    name: str
    offset: int
    length: int
    crc32: int
    label_file: bytes
    """What follows its image up to the next one's header: the rest of a block, and the member with the label."""

    def header(self) -> bytes:
        """The block before its image."""
        return encode_header(self.name, self.length)


def _rows(index: ShardIndex) -> Iterator[_Row]:
    columns = zip(index.key, index.extension, index.offset, index.length, index.crc32, index.label, strict=True)
    for key, extension, offset, length, crc32, label in columns:
        label_file = bytes(-length % BLOCK) + encode_member(f"{key}.cls", str(label).encode())
        yield _Row(f"{key}.{extension}", offset, length, crc32, label_file)


def _examine_tar(found: Findings, index: ShardIndex, tar: OnePass) -> str:
    """Note what differs from the index; the first of it in words, or nothing."""
    damage = ""
    for number, row in enumerate(_rows(index)):
        is_named = _read_gap(tar, row.offset - tar.at) == row.header()
        is_whole = _passes(tar, row)
        is_named = tar.read(len(row.label_file)) == row.label_file and is_named
        if not is_whole:
            found.add(SAMPLES, f"{found.key_at(number)} {CORRUPT}")
        if not is_named:
            label = index.label[number]
            found.add(COUNTS, f"{found.key_at(number)} is not in the tar with label {label}, as its index says")
        if not damage and not (is_whole and is_named):
            what = CORRUPT if not is_whole else "is corrupt (its tar headers or its label differ)"
            damage = f"{found.key_at(number)} {what}"
    if tar.read(len(END_OF_ARCHIVE) + 1) != END_OF_ARCHIVE:
        found.add(COUNTS, "its end is not where the last sample of its index ends: it was cut, or holds more")
        damage = damage or "its end is corrupt, after the last sample"
    return damage


def _read_gap(tar: OnePass, length: int) -> bytes:
    """What lies before an image, if it can be its header; the rest of it is passed over."""
    if length == BLOCK:
        return tar.read(length)
    tar.skip(length)
    return b""


def _passes(tar: OnePass, row: _Row) -> bool:
    """Read an image; whether it is the one that was committed."""
    crc, length = 0, 0
    for piece in tar.pieces(row.length if row.offset == tar.at else 0):
        crc, length = zlib.crc32(piece, crc), length + len(piece)
    return (crc, length) == (row.crc32, row.length)
