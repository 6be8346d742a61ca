"""One shard under the glass: everything about it that is not as it should be, by check, with shard and key.

A shard is held in memory while it is looked at; what is kept of it are its keys and labels.
"""

from __future__ import annotations

import tarfile
import zlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from data_pipeline import storage
from data_pipeline.errors import FoldtrainError
from data_pipeline.shards import token_shards
from data_pipeline.shards.image_shards import ShardIndex, first_damage, index_name, read_index
from data_pipeline.shards.manifest import (
    ImageManifest,
    ImageShardRecord,
    ShardRecord,
    TokenCommit,
    TokenManifest,
    differences,
)
from data_pipeline.shards.shard_table import shard_folder, shard_uri
from data_pipeline.shards.token_archive import TokenArchive, check_sample_keys, parse_token_shard, read_columns
from data_pipeline.storage.tar import list_members
from data_pipeline.tokens.tokenizing import record_name

FILES, CHECKSUMS, SAMPLES, COUNTS = "files", "checksums", "samples", "counts"
MORE_BYTES = 2**20
"""A shard that is longer than its manifest says by more than its size and this is not read."""
TOKENS, LABELS, LINEAGE = "token range", "label range", "lineage"


@dataclass
class Findings:
    """What was found in one shard."""

    shard: str
    key: npt.NDArray[np.bytes_] = field(default_factory=lambda: np.array([], "S1"))
    label: npt.NDArray[np.int64] = field(default_factory=lambda: np.array([], np.int64))
    made_by: dict[str, Any] = field(default_factory=dict)
    """What a shard of tokens says that it follows from, beyond what the manifest says."""
    problems: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """What is wrong, by check."""

    def add(self, check: str, problem: str) -> None:
        """Note what is wrong, after the name of the shard."""
        self.problems[check].append(f"{self.shard}: {problem}")

    def key_at(self, row: int | np.signedinteger[Any]) -> str:
        """The key of a sample, for messages."""
        return f"sample {bytes(self.key[row]).decode(errors='replace')}"

    def check_labels(self, classes: int) -> None:
        """Note labels that name no class."""
        bad = np.flatnonzero((self.label < 0) | (self.label >= classes))
        if len(bad):
            self.add(LABELS, f"{self.key_at(bad[0])} has label {self.label[bad[0]]} of {classes} classes{_more(bad)}")


def examine_images(
    uri: str, manifest: ImageManifest, shard: ImageShardRecord, size: int | None, quick: bool
) -> Findings:
    """What is wrong with a shard of images.

    Args:
        uri: of the data set.
        manifest: of the data set.
        shard: which one.
        size: bytes of the tar; None if it is not there.
        quick: look at sizes and at the index alone.
    """
    found = Findings(shard.name)
    try:
        index = read_index(uri, shard)
    except FoldtrainError as error:
        found.add(CHECKSUMS, str(error))
        return found
    found.key = np.array([key.encode() for key in index.key], "S")
    found.label = np.array(index.label, np.int64)
    found.check_labels(len(manifest.classes))
    if len(index.key) != shard.samples:
        found.add(COUNTS, f"{len(index.key)} samples in its index, {shard.samples} in the manifest")
    if (index.sha256, index.size) != (shard.sha256, shard.bytes):
        found.add(LINEAGE, f"{index_name(shard.name)} is about another tar than the manifest")
    archive = _read(uri, shard, size, quick, found)
    if archive is not None:
        if storage.sha256(archive) != shard.sha256:
            found.add(CHECKSUMS, f"sha256 differs; {first_damage(index, archive)}")
        _examine_images(found, index, archive)
    return found


def _examine_images(found: Findings, index: ShardIndex, archive: bytes) -> None:
    for row, (offset, length, crc32) in enumerate(zip(index.offset, index.length, index.crc32, strict=True)):
        data = archive[offset : offset + length]
        if len(data) != length or zlib.crc32(data) != crc32:
            found.add(SAMPLES, f"{found.key_at(row)} is corrupt (CRC-32 differs)")
    try:
        places = list_members(archive)
        members = {place.name: archive[place.offset : place.offset + place.length] for place in places}
    except (tarfile.TarError, ValueError) as error:
        found.add(COUNTS, f"it is cut or its headers are corrupt ({error})")
        return
    if len(members) != 2 * len(index.key):
        found.add(COUNTS, f"{len(members)} members in the tar, but an image and a label for {len(index.key)} samples")
    for row, (key, extension, label) in enumerate(zip(index.key, index.extension, index.label, strict=True)):
        if f"{key}.{extension}" not in members or members.get(f"{key}.cls") != str(label).encode():
            found.add(COUNTS, f"{found.key_at(row)} is not in the tar with label {label}, as its index says")


def examine_tokens(uri: str, manifest: TokenManifest, shard: ShardRecord, size: int | None, quick: bool) -> Findings:
    """What is wrong with a shard of tokens; arguments as of `examine_images`. `quick` reads conditions and keys."""
    found = Findings(shard.name)
    archive = _read(uri, shard, size, quick, found)
    if size is None or (archive is None and not quick):
        return found
    whole: TokenArchive | None = None
    try:
        if archive is None:
            condition, key, meta = read_columns(uri, shard)
        else:
            if storage.sha256(archive) != shard.sha256:
                found.add(CHECKSUMS, f"sha256 differs; {token_shards.first_damage(shard.name, archive)}")
            whole = parse_token_shard(shard_uri(uri, shard), archive)
            condition, key, meta = whole.block.condition, whole.block.key, whole.meta
    except FoldtrainError as error:
        found.add(COUNTS, str(error))
        return found
    found.key, found.label = key, condition.astype(np.int64)
    try:
        check_sample_keys(shard.name, key)
    except FoldtrainError as error:
        found.add(SAMPLES, str(error))
    found.check_labels(len(manifest.classes))
    if not len(condition) == len(key) == shard.samples:
        found.add(COUNTS, f"{len(condition)} conditions, {len(key)} keys, but {shard.samples} samples in the manifest")
    elif whole is not None:
        _examine_tokens(found, whole, manifest)
    _examine_lineage(found, uri, manifest, shard, meta)
    return found


def _examine_tokens(found: Findings, whole: TokenArchive, manifest: TokenManifest) -> None:
    tokens_NWLF, layout = whole.block.tokens_NWLF, manifest.layout
    shape = (len(found.key), len(manifest.views), layout.positions, layout.folds)
    if tokens_NWLF.shape != shape or tokens_NWLF.dtype != layout.dtype or whole.crc.shape != shape[:1]:
        found.add(
            COUNTS, f"tokens are {tokens_NWLF.dtype} {tokens_NWLF.shape}, the manifest says {layout.dtype} {shape}"
        )
        return
    damaged = np.flatnonzero(whole.block.crc32() != whole.crc)
    for row in damaged:
        found.add(SAMPLES, f"{found.key_at(row)} is corrupt (CRC-32 differs)")
    codes_F = np.array(layout.vocabularies, dtype=np.int64)
    wrong = np.flatnonzero((tokens_NWLF >= codes_F).any(axis=(1, 2, 3)))
    outside = token_shards.first_outside(tokens_NWLF, layout)
    if outside is not None:
        _, fold, token = outside
        problem = f"{found.key_at(wrong[0])} has token {token} of a codebook of {layout.vocabularies[fold]}"
        found.add(TOKENS, problem + _more(wrong))


def _examine_lineage(
    found: Findings, uri: str, manifest: TokenManifest, shard: ShardRecord, meta: dict[str, Any]
) -> None:
    stated = {name: value for name, value in manifest.content().items() if name not in _NOT_OF_SHARDS}
    for difference in differences(stated, {name: meta.get(name) for name in stated}):
        found.add(LINEAGE, f"meta.json differs from the manifest (manifest -> meta.json): {difference}")
    made_by = {name: value for name, value in meta.items() if name != "software"}
    found.made_by = {name: value for name, value in made_by.items() if name not in stated}
    path = storage.join(shard_folder(uri, shard.folder), record_name(shard.name))
    try:
        commit = TokenCommit.model_validate(storage.read_json(path))
    except FileNotFoundError:
        return  # a copy of a finished data set needs none
    except (ValidationError, FoldtrainError):
        found.add(LINEAGE, f"{path} is no commit record")
        return
    committed = {"shard": commit.shard.model_dump(), "made_by": commit.made_by}
    for difference in differences(committed, {"shard": shard.model_dump(exclude={"folder"}), "made_by": made_by}):
        found.add(LINEAGE, f"its commit record is about another shard: {difference}")


_NOT_OF_SHARDS = {"version", "kind", "samples", "classes", "shards", "software"}
"""Fields of a manifest that are about the whole data set."""


def _read(uri: str, shard: ShardRecord, size: int | None, quick: bool, found: Findings) -> bytes | None:
    """The bytes of a shard, unless it is not there or need not be read."""
    if size != shard.bytes:
        state = "is missing" if size is None else f"has {size} bytes, {shard.bytes} in the manifest"
        found.add(FILES, state)
    if quick or size is None or size > 2 * shard.bytes + MORE_BYTES:
        return None
    return storage.read_bytes(shard_uri(uri, shard), 2 * shard.bytes + MORE_BYTES)


def _more(rows: npt.NDArray[np.intp]) -> str:
    return f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""


EXAMINERS: dict[str, Callable[[str, Any, Any, int | None, bool], Findings]] = {
    "images": examine_images,
    "tokens": examine_tokens,
}
"""Who looks at a shard, by the kind of its data set."""
