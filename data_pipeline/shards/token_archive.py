"""What is in a token shard, from its bytes or from a few range reads; for tools that look at one shard at a time.

Training maps a copy of the whole data set instead (data_pipeline.shards.token_dataset).
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError
from data_pipeline.shards.conditions import Condition
from data_pipeline.shards.manifest import ShardRecord, TokenManifest, first_problem
from data_pipeline.shards.shard_table import shard_uri
from data_pipeline.shards.token_shards import (
    FIELDS,
    REMEDY,
    SHARD_VERSION,
    TokenBlock,
    check_field,
    check_lengths,
    first_damage,
    read_arrays,
)
from data_pipeline.shards.versions import check_version
from data_pipeline.storage.tar import Member, list_members, walk_headers
from data_pipeline.storage.watchdog import reading
from data_pipeline.text import json_records
from data_pipeline.text.names import check_keys
from data_pipeline.text.npy import MOST_START, NpyHeader, parse_header

_MEMBERS = len(FIELDS) + 1
"""Files of a shard: its arrays and its meta.json."""


class TokenArchive(NamedTuple):
    """A shard that was read whole."""

    block: TokenBlock
    crc: npt.NDArray[np.uint32]
    """CRC-32 of each sample as it was committed."""
    meta: dict[str, Any]
    """Its meta.json, but for the version."""


class TokenColumns(NamedTuple):
    """What a shard says of its samples, without their tokens."""

    condition: npt.NDArray[np.int32]
    key: npt.NDArray[np.bytes_]
    meta: dict[str, Any]


def read_token_shard(uri: str, shard: ShardRecord) -> TokenBlock:
    """The samples of one shard of the data set at `uri`.

    Raises:
        CorruptShardError: if it is missing or is not what the manifest names; it names the shard and the first bad key.
    """
    path = shard_uri(uri, shard)
    try:
        with reading(path):
            archive = storage.read_bytes(path, shard.bytes)
    except FileNotFoundError:
        raise CorruptShardError(f"{path} is missing; {REMEDY}") from None
    if storage.sha256(archive) != shard.sha256:
        raise CorruptShardError(f"{path}: {first_damage(shard.name, archive)}; {REMEDY}")
    block = parse_token_shard(path, archive).block
    check_sample_keys(path, block.key)
    _check_samples(path, len(block.key), shard)
    return block


def parse_token_shard(path: str, archive: bytes) -> TokenArchive:
    """The content of a shard's tar; `path` ends with its name.

    Raises:
        CorruptShardError: if it is not a tar with the members that belong to it.
        UsageError: if it is of another version.
    """
    stem = path.rpartition("/")[2].removesuffix(".tar")
    try:
        members = {member.name: member for member in list_members(archive)}
        place = members.pop(f"{stem}.meta.json")
        meta = parse_meta(path, archive[place.offset : place.offset + place.length])
        fields = read_arrays(f"{stem}.tar", archive)
    except (tarfile.TarError, KeyError, ValueError, EOFError) as error:
        raise CorruptShardError(f"{path} is cut or its headers are corrupt ({error}); {REMEDY}") from error
    stray = members.keys() - {f"{stem}.{field}.npy" for field in FIELDS}
    if stray:
        raise CorruptShardError(f"{path} holds members that are none of a token shard ({', '.join(stray)}); {REMEDY}")
    return TokenArchive(TokenBlock(fields["tokens"], fields["condition"], fields["key"]), fields["crc"], meta)


def read_columns(uri: str, shard: ShardRecord) -> TokenColumns:
    """Conditions, keys and meta.json of a shard by a few range reads; not checked against its digest.

    Raises:
        CorruptShardError: as `parse_token_shard`, or if it is missing.
        UsageError: as `parse_token_shard`.
    """
    path = shard_uri(uri, shard)
    stem = shard.name.removesuffix(".tar")
    try:
        places = {member.name: member for member in islice(_members(path, shard.bytes), _MEMBERS)}

        def read(member: str) -> bytes:
            place = places[f"{stem}.{member}"]
            return storage.read_range(path, place.offset, place.length)

        meta = parse_meta(path, read("meta.json"))
        arrays = {field: check_field(field, read(f"{field}.npy")) for field in ("condition", "key")}
        check_lengths(arrays)
        columns = TokenColumns(arrays["condition"], arrays["key"], meta)
    except FileNotFoundError:
        raise CorruptShardError(f"{path} is missing; {REMEDY}") from None
    except (tarfile.TarError, KeyError, ValueError, EOFError) as error:
        raise CorruptShardError(f"{path} is cut or its headers are corrupt ({error}); {REMEDY}") from error
    check_sample_keys(path, columns.key)
    _check_samples(path, len(columns.key), shard)
    return columns


def read_rows(uri: str, shard: ShardRecord, rows: npt.NDArray[np.int64]) -> TokenBlock:
    """Some samples of a shard, ascending, by range reads of their tokens; each is compared with its CRC-32.

    Raises:
        CorruptShardError: as `read_columns`, or if a sample is damaged; it names the shard and the key.
        UsageError: as `read_columns`.
    """
    path, stem = shard_uri(uri, shard), shard.name.removesuffix(".tar")
    condition, key, _ = read_columns(uri, shard)
    try:
        places = {member.name: member for member in islice(_members(path, shard.bytes), _MEMBERS)}
        crc_place, place = places[f"{stem}.crc.npy"], places[f"{stem}.tokens.npy"]
        crc = check_field("crc", storage.read_range(path, crc_place.offset, crc_place.length))
        header = parse_header(storage.read_range(path, place.offset, min(MOST_START, place.length)))
        header.check_bytes(place.length - header.start)
        _check_header(header, len(crc), len(key))
        length = header.array_bytes // max(1, len(key))
        first = place.offset + header.start
        pieces = storage.read_ranges(path, [(first + row * length, length) for row in rows.tolist()])
        tokens = np.frombuffer(b"".join(pieces), header.dtype).reshape(len(rows), *header.shape[1:])
    except (tarfile.TarError, KeyError, ValueError, EOFError) as error:
        raise CorruptShardError(f"{path} is cut or its headers are corrupt ({error}); {REMEDY}") from error
    block = TokenBlock(tokens, condition[rows], key[rows])
    bad = np.flatnonzero(block.crc32() != crc[rows])
    if len(bad):
        name = bytes(block.key[bad[0]]).decode(errors="replace")
        raise CorruptShardError(f"{path}: sample {name} is corrupt (CRC-32 differs); {REMEDY}")
    return block


def _check_header(header: NpyHeader, *samples: int) -> None:
    if header.is_fortran or len(header.shape) != 4 or {*samples} != {header.shape[0]}:
        raise ValueError(f"its member tokens holds {header.dtype} {header.shape}, of {samples} samples")


def check_sample_keys(path: str, key: npt.NDArray[np.bytes_]) -> None:
    """The keys of a shard are names below a folder: an export makes files of them.

    Raises:
        CorruptShardError: if one is not; it names the shard and the key.
    """
    try:
        check_keys([name.decode() for name in key.tolist()])
    except ValueError as error:
        raise CorruptShardError(f"{path} holds a key that cannot be: {error}; {REMEDY}") from error


def _check_samples(path: str, found: int, shard: ShardRecord) -> None:
    if found != shard.samples:
        raise CorruptShardError(f"{path} holds {found} samples, but its manifest says {shard.samples}; {REMEDY}")


def _members(path: str, size: int) -> Iterator[Member]:
    """The members of a tar, from its headers alone, wherever it is."""
    return walk_headers(lambda offset, length: storage.read_range(path, offset, length), size)


def parse_meta(path: str, data: bytes) -> dict[str, Any]:
    """A shard's meta.json, but for the version.

    Raises:
        ValueError: if it is none.
        UsageError: if it is of another version.
    """
    meta = json_records.parse(data)
    if not isinstance(meta, dict):
        raise ValueError("its meta.json holds no object")  # noqa: TRY004 - as for any other damage
    check_version(path, "a token shard", meta.pop("version", None), SHARD_VERSION, TokenManifest.anew)
    try:
        Condition.model_validate(meta.get("condition"))
    except ValidationError as error:
        raise ValueError(f"its meta.json: condition.{first_problem(error)}") from None
    return meta
