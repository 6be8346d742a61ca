"""What is in a token shard, from its bytes or from a few range reads; for tools that look at one shard at a time.

Training maps a copy of the whole data set instead (data_pipeline.token_dataset).
"""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError
from data_pipeline.manifest import ShardRecord
from data_pipeline.tar import BLOCK, Member
from data_pipeline.token_shards import FIELDS, REMEDY, TokenBlock, first_damage, read_arrays
from data_pipeline.watchdog import reading


class TokenArchive(NamedTuple):
    """A shard that was read whole."""

    block: TokenBlock
    crc: npt.NDArray[np.uint32]
    """CRC-32 of each sample as it was committed."""
    meta: dict[str, Any]
    """Its meta.json."""


class TokenColumns(NamedTuple):
    """What a shard says of its samples, without their tokens."""

    label: npt.NDArray[np.int32]
    key: npt.NDArray[np.bytes_]
    meta: dict[str, Any]


def read_token_shard(uri: str, shard: ShardRecord) -> TokenBlock:
    """The samples of one shard of the data set at `uri`.

    Raises:
        CorruptShardError: if it is missing or is not what the manifest names; it names the shard and the first bad key.
    """
    path = storage.join(uri, shard.name)
    try:
        with reading(path):
            archive = storage.read_bytes(path)
    except FileNotFoundError:
        raise CorruptShardError(f"{path} is missing; {REMEDY}") from None
    if storage.sha256(archive) != shard.sha256:
        raise CorruptShardError(f"{path}: {first_damage(shard.name, archive)}; {REMEDY}")
    return parse_token_shard(path, archive).block


def parse_token_shard(path: str, archive: bytes) -> TokenArchive:
    """The content of a shard's tar; `path` ends with its name.

    Raises:
        CorruptShardError: if it is not a tar with the members that belong to it.
    """
    stem = path.rpartition("/")[2].removesuffix(".tar")
    try:
        fields = read_arrays(f"{stem}.tar", archive)
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
            members = {info.name: info for info in tar.getmembers()}
        place = members.pop(f"{stem}.meta.json")
        meta = json.loads(archive[place.offset_data : place.offset_data + place.size])
    except (tarfile.TarError, KeyError, ValueError, EOFError) as error:
        raise CorruptShardError(f"{path} is cut or its headers are corrupt ({error}); {REMEDY}") from error
    stray = members.keys() - {f"{stem}.{field}.npy" for field in FIELDS}
    if stray:
        raise CorruptShardError(f"{path} holds members that are none of a token shard ({', '.join(stray)}); {REMEDY}")
    return TokenArchive(TokenBlock(fields["tokens"], fields["label"], fields["key"]), fields["crc"], meta)


def read_columns(uri: str, shard: ShardRecord) -> TokenColumns:
    """Labels, keys and meta.json of a shard by a few range reads; not checked against its digest.

    Raises:
        CorruptShardError: as `parse_token_shard`, or if it is missing.
    """
    path = storage.join(uri, shard.name)
    stem = shard.name.removesuffix(".tar")
    try:
        places = {member.name: member for member in _members(path)}
        wanted = (f"{stem}.label.npy", f"{stem}.key.npy", f"{stem}.meta.json")
        label, key, meta = (storage.read_range(path, places[name].offset, places[name].length) for name in wanted)
        return TokenColumns(_load(label), _load(key), json.loads(meta))
    except FileNotFoundError:
        raise CorruptShardError(f"{path} is missing; {REMEDY}") from None
    except (tarfile.TarError, KeyError, ValueError, EOFError) as error:
        raise CorruptShardError(f"{path} is cut or its headers are corrupt ({error}); {REMEDY}") from error


def _members(path: str) -> list[Member]:
    """The members of a tar, from its headers alone, wherever it is."""
    found: list[Member] = []
    offset = 0
    while True:
        header = storage.read_range(path, offset, BLOCK)
        if header == bytes(BLOCK):
            return found
        info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        found.append(Member(info.name, offset + BLOCK, info.size))
        offset += BLOCK + -(-info.size // BLOCK) * BLOCK


def _load(data: bytes) -> Any:
    return np.load(io.BytesIO(data), allow_pickle=False)
