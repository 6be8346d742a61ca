"""One shard of tokens: its bytes, its samples, its tokens' range, and what it says that it was made by.

Shape suffixes: N samples, W views, L positions, F folds, R samples of a piece.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from data_pipeline import storage
from data_pipeline.errors import FoldtrainError
from data_pipeline.shards.manifest import ShardRecord, TokenCommit, TokenManifest, differences
from data_pipeline.shards.shard_table import shard_folder, shard_uri
from data_pipeline.shards.token_archive import check_sample_keys, parse_meta
from data_pipeline.shards.token_reader import TokenReader
from data_pipeline.shards.token_shards import FIELDS, check_field, check_kind, check_lengths, first_outside
from data_pipeline.storage.tar import Member, walk_headers
from data_pipeline.text import json_records
from data_pipeline.text.names import MOST_KEY_BYTES
from data_pipeline.text.npy import MOST_START, NpyHeader, parse_header
from data_pipeline.tokens.commits import record_name
from data_pipeline.tools.examining import (
    CHECKSUMS,
    CORRUPT,
    COUNTS,
    FILES,
    LINEAGE,
    SAMPLES,
    TOKENS,
    Findings,
    and_more,
)
from data_pipeline.tools.one_pass import OnePass
from model.layout import TokenLayout

ROW_BYTES = 4 * 2**20
"""Tokens that are looked at at a time."""


def examine_tokens(uri: str, manifest: TokenManifest, shard: ShardRecord, size: int | None) -> Findings:
    """What is wrong with a shard of tokens; arguments as of `examining_images.examine_images`."""
    found = Findings(shard.name)
    if not found.check_size(shard, size) or size is None:
        return found
    path = shard_uri(uri, shard)
    tar = OnePass(path, size)
    content = _Content(shard, manifest.layout)
    try:
        damage = _read_content(content, found, path, tar, size)
        if tar.finish() != shard.sha256:
            found.add(CHECKSUMS, f"sha256 differs; {damage or 'its headers or its meta.json are corrupt'}")
    except FileNotFoundError:
        found.add(FILES, "is missing")
        return found
    except FoldtrainError as error:  # of another version, or a key that cannot be
        found.add(COUNTS, str(error))
        return found
    if content.is_whole:
        _examine_samples(content, found, manifest, path)
        _examine_lineage(found, uri, manifest, shard, content.meta)
    return found


@dataclass
class _Content:
    """What one pass over a shard leaves of it."""

    shard: ShardRecord
    layout: TokenLayout
    header: NpyHeader | None = None
    """Of the tokens."""
    tokens_crc_N: npt.NDArray[np.uint32] = field(default_factory=lambda: np.empty(0, np.uint32))
    """CRC-32 of the tokens alone."""
    outside: list[tuple[int, int, int]] = field(default_factory=list)
    """Sample, fold and token of the first token that its fold's vocabulary does not have."""
    outside_samples: int = 0
    arrays: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    """Condition, key and crc."""
    meta: dict[str, Any] = field(default_factory=dict)
    is_whole: bool = False
    """Whether all members are there and fit each other."""

    def damaged(self) -> npt.NDArray[np.intp]:
        """Samples whose checksum is not the one that was committed."""
        rows = zip(self.tokens_crc_N.tolist(), self.arrays["condition"], self.arrays["key"], strict=True)
        sums = [zlib.crc32(key, zlib.crc32(condition.tobytes(), crc)) for crc, condition, key in rows]
        return np.flatnonzero(np.array(sums, np.uint32) != self.arrays["crc"])


def _read_content(content: _Content, found: Findings, path: str, tar: OnePass, size: int) -> str:
    """Fill `content`; what is wrong with it in words, or nothing."""
    try:
        _read_members(content, path, tar, size)
        check_lengths(content.arrays | {"tokens": content.tokens_crc_N})
    except (tarfile.TarError, ValueError, EOFError) as error:
        found.add(COUNTS, f"it is cut or its headers are corrupt ({error})")
        return f"the shard is cut or its headers are corrupt ({error})"
    content.is_whole = True
    found.key, found.label = content.arrays["key"], content.arrays["condition"].astype(np.int64)
    damaged = content.damaged()
    for row in damaged:
        found.add(SAMPLES, f"{found.key_at(row)} {CORRUPT}")
    return f"{found.key_at(damaged[0])} {CORRUPT}" if len(damaged) else ""


def _read_members(content: _Content, path: str, tar: OnePass, size: int) -> None:
    """All members of a shard, in the order in which they lie there."""
    stem = content.shard.name.removesuffix(".tar")
    names = {f"{stem}.{name}.npy": name for name in FIELDS} | {f"{stem}.meta.json": "meta"}
    seen: set[str] = set()
    for member in walk_headers(lambda offset, length: _read_at(tar, offset, length), size):
        name = names.get(member.name)
        if name is None or name in seen:
            raise ValueError(f"it holds {member.name}, which is none of a token shard, or there twice")
        seen.add(name)
        if name == "tokens":
            _read_tokens(content, tar, member)
            continue
        most = json_records.MOST_BYTES if name == "meta" else MOST_START + content.shard.samples * MOST_KEY_BYTES
        if member.length > most:
            raise ValueError(f"its member {name} has {member.length:,} bytes, and {most:,} are enough")
        data = tar.read(member.length)
        if name == "meta":
            content.meta = parse_meta(path, data)
        else:
            content.arrays[name] = check_field(name, data)
    absent = {*FIELDS, "meta"} - seen
    if absent:
        raise ValueError(f"it has no member {', '.join(sorted(absent))}")


def _read_at(tar: OnePass, offset: int, length: int) -> bytes:
    tar.skip(offset - tar.at)
    return tar.read(length)


def _read_tokens(content: _Content, tar: OnePass, member: Member) -> None:
    """The tokens, some samples at a time: their checksums, and the first that is out of range."""
    start = tar.read(min(MOST_START, member.length))
    header = parse_header(start)
    header.check_bytes(member.length - header.start)
    check_kind("tokens", header.dtype, len(header.shape))
    if header.is_fortran:
        raise ValueError("its member tokens is in Fortran order")
    content.header = header
    samples = header.shape[0]
    sample_bytes = header.array_bytes // max(1, samples)
    if samples and not sample_bytes:
        raise ValueError(f"its member tokens has the shape {header.shape}")
    sums, held, first = [], start[header.start :], 0
    while first < samples:
        many = min(samples - first, max(1, ROW_BYTES // sample_bytes))
        held += tar.read(many * sample_bytes - len(held)) if len(held) < many * sample_bytes else b""
        piece, held = held[: many * sample_bytes], held[many * sample_bytes :]
        if len(piece) < many * sample_bytes:
            raise EOFError("it ends within its tokens")
        sums.append(_checksums(piece, many, sample_bytes))
        _note_outside(content, np.frombuffer(piece, header.dtype).reshape(many, *header.shape[1:]), first)
        first += many
    content.tokens_crc_N = np.concatenate([np.empty(0, np.uint32), *sums])


def _checksums(piece: bytes, samples: int, sample_bytes: int) -> npt.NDArray[np.uint32]:
    view = memoryview(piece)
    rows: Iterator[memoryview] = (view[row * sample_bytes : (row + 1) * sample_bytes] for row in range(samples))
    return np.fromiter(map(zlib.crc32, rows), np.uint32, samples)


def _note_outside(content: _Content, tokens_RWLF: npt.NDArray[np.integer[Any]], first: int) -> None:
    if not tokens_RWLF.size or tokens_RWLF.shape[-1] != content.layout.folds:
        return  # of another shape, which is told
    codes_F = np.array(content.layout.vocabularies, np.int64)
    if (tokens_RWLF.reshape(-1, len(codes_F)).max(0) < codes_F).all():
        return
    wrong = tokens_RWLF >= codes_F
    content.outside_samples += int(wrong.any(axis=(1, 2, 3)).sum())
    if not content.outside:
        place = np.argwhere(wrong)[0]
        content.outside.append((first + int(place[0]), int(place[-1]), int(tokens_RWLF[tuple(place)])))


def _examine_samples(content: _Content, found: Findings, manifest: TokenManifest, path: str) -> None:
    try:
        check_sample_keys(path, found.key)
    except FoldtrainError as error:
        found.add(SAMPLES, str(error))
    found.check_labels(len(manifest.classes))
    samples, layout, header = len(found.key), manifest.layout, content.header
    assert header is not None
    shape = (samples, len(manifest.views), layout.positions, layout.folds)
    if samples != content.shard.samples:
        found.add(COUNTS, f"{samples} samples, but {content.shard.samples} in the manifest")
    elif header.shape != shape or header.dtype != np.dtype(layout.dtype):
        problem = f"tokens are {header.dtype} {header.shape}, the manifest says {layout.dtype} {shape}"
        found.add(COUNTS, problem)
    elif content.outside:
        row, fold, token = content.outside[0]
        problem = f"{found.key_at(row)} has token {token} of a codebook of {layout.vocabularies[fold]}"
        found.add(TOKENS, problem + and_more(content.outside_samples))


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


def examine_edited(reader: TokenReader, number: int, size: int | None) -> Findings:
    """What is wrong with a shard of a data set that is made of others, read through them as training reads it.

    Args:
        reader: of the data set.
        number: of the shard.
        size: bytes of its tar; None if it is not there.
    """
    shard, manifest = reader.manifest.shards[number], reader.manifest
    found = Findings(shard.name)
    if not found.check_size(shard, size):
        return found
    try:
        block = reader.block(number)
    except FoldtrainError as error:
        found.add(CHECKSUMS, str(error))
        return found
    found.key, found.label = block.key.copy(), block.condition.astype(np.int64)
    found.check_labels(len(manifest.classes))
    outside = first_outside(block.tokens_NWLF, manifest.layout)
    if outside is not None:
        row, fold, token = outside
        found.add(
            TOKENS, f"{found.key_at(row)} has token {token} of a codebook of {manifest.layout.vocabularies[fold]}"
        )
    return found
