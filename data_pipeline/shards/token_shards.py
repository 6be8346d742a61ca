"""Token shards: WebDataset tars whose members each hold a block of samples.

    tokens-00000.tar
      tokens-00000.tokens.npy     uint16 or uint32 [samples, views, positions, folds]
      tokens-00000.condition.npy  int32 [samples]: the class (conditions.py)
      tokens-00000.key.npy        bytes [samples], as numpy's S type
      tokens-00000.crc.npy        uint32 [samples], CRC-32 of each sample's tokens, condition and key
      tokens-00000.meta.json      version, kind of the conditions, and what made the tokens

Nothing is compressed and every array is aligned, so a shard on a disk can be memory-mapped where it lies. Training
reads them through token_dataset.py.
Shape suffixes: N samples, W views, L positions, F folds.
"""

from __future__ import annotations

import io
import tarfile
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards.conditions import CLASS, check_condition
from data_pipeline.shards.manifest import ShardRecord, TokenizerRecord, TokenManifest, differences
from data_pipeline.shards.weights import Card
from data_pipeline.storage.tar import list_members, write_tar
from data_pipeline.text.names import MOST_KEY_BYTES
from data_pipeline.text.npy import parse_npy
from model.layout import TokenLayout

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
"""As `TokenLayout.dtype` says: uint32 where a fold has more than 65,536 codes."""

REMEDY = "delete the shard and run foldtrain tokenize again"
SHARD_VERSION = 2
"""Version of this format, in each meta.json; the first had none there, and a member label."""
FIELDS = ("tokens", "condition", "key", "crc")
"""The arrays of a shard."""
_DTYPES = {"tokens": ("u2", "u4"), "key": (), "crc": ("u4",)}


@dataclass(frozen=True)
class TokenBlock:
    """The samples of a shard."""

    tokens_NWLF: Tokens
    condition: npt.NDArray[np.int32]
    """Of kind class: the labels."""
    key: npt.NDArray[np.bytes_]

    def crc32(self) -> npt.NDArray[np.uint32]:
        """A checksum per sample over its tokens, condition and key."""
        rows = zip(self.tokens_NWLF, self.condition, self.key, strict=True)
        sums = [
            zlib.crc32(key, zlib.crc32(condition.tobytes(), zlib.crc32(tokens.tobytes())))
            for tokens, condition, key in rows
        ]
        return np.array(sums, dtype=np.uint32)


def encode_token_shard(name: str, block: TokenBlock, meta: dict[str, Any]) -> bytes:
    """The tar of a shard; the same content gives the same bytes."""
    assert block.tokens_NWLF.dtype in (np.uint16, np.uint32), block.tokens_NWLF.dtype
    check_condition(block.condition)
    stem = name.removesuffix(".tar")
    arrays: dict[str, npt.NDArray[Any]] = {
        "tokens": block.tokens_NWLF,
        "condition": block.condition,
        "key": block.key,
        "crc": block.crc32(),
    }
    files = [(f"{stem}.{field}.npy", _npy(array)) for field, array in arrays.items()]
    meta = {"condition": CLASS.model_dump(mode="json")} | meta | {"version": SHARD_VERSION}
    archive, _ = write_tar([*files, (f"{stem}.meta.json", storage.canonical_json(meta))])
    return archive


def write_token_shard(uri: str, name: str, block: TokenBlock, meta: dict[str, Any]) -> ShardRecord:
    """Commit a shard by one write."""
    archive = encode_token_shard(name, block, meta)
    storage.write_bytes(storage.join(uri, name), archive)
    return ShardRecord(name=name, samples=len(block.key), bytes=len(archive), sha256=storage.sha256(archive))


def _npy(array: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def read_arrays(name: str, archive: bytes) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a shard's bytes by field (tokens, condition, key, crc), read-only.

    Raises:
        ValueError: if it is not a tar of .npy members with the names that belong to it, each with a row for every
            sample; it says why.
    """
    stem = name.removesuffix(".tar")
    try:
        members = {member.name: member for member in list_members(archive)}
        places = {field: members[f"{stem}.{field}.npy"] for field in FIELDS}
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"it is no tar, or was cut: {error}") from error
    except KeyError as error:
        raise ValueError(f"it has no member {error}") from error
    view = memoryview(archive)
    found = {
        field: check_field(field, view[place.offset : place.offset + place.length]) for field, place in places.items()
    }
    check_lengths(found)
    return found


def check_field(field: str, data: bytes | memoryview) -> npt.NDArray[Any]:
    """One array of a shard from its member.

    Raises:
        ValueError: if it is no .npy file of the kind that the field has.
    """
    try:
        array = parse_npy(data)
    except ValueError as error:
        raise ValueError(f"its member {field}: {error}") from error
    if field == "condition":
        check_condition(array)
        return array
    check_kind(field, array.dtype, array.ndim)
    return array


def check_kind(field: str, dtype: np.dtype[Any], dimensions: int) -> None:
    """Whether an array is of the kind that a field has, which is none of `condition`.

    Raises:
        ValueError: if not.
    """
    is_right = dtype in map(np.dtype, _DTYPES[field]) or (field == "key" and dtype.kind == "S")
    if not is_right or dimensions != (4 if field == "tokens" else 1) or dtype.itemsize > MOST_KEY_BYTES:
        raise ValueError(f"its member {field} holds {dtype} in {dimensions} dimensions")


def first_outside(tokens: npt.NDArray[np.integer[Any]], layout: TokenLayout) -> tuple[int, int, int] | None:
    """The first sample that holds a token which its fold's vocabulary does not have.

    Args:
        tokens: any whole numbers, [samples, ..., folds].
        layout: what they should be.

    Returns:
        The sample, the fold and the token; None if all are in range.
    """
    if not tokens.size:
        return None
    codes_F = np.array(layout.vocabularies, dtype=np.int64)
    rows = tokens.reshape(-1, tokens.shape[-1])
    if (rows.max(0) < codes_F).all() and (rows.min(0) >= 0).all():
        return None
    wrong = (tokens < 0) | (tokens >= codes_F)
    place = np.argwhere(wrong)[0]
    return int(place[0]), int(place[-1]), int(tokens[tuple(place)])


def check_lengths(arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Each array has a row for every sample; a condition too many would shift those of the shards behind.

    Raises:
        ValueError: if not.
    """
    rows = {field: len(array) for field, array in arrays.items()}
    if len(set(rows.values())) > 1:
        raise ValueError(f"its members have different numbers of samples: {rows}")


def first_damage(name: str, archive: bytes) -> str:
    """Which sample of a damaged shard is the first that is not as it was committed, in words."""
    try:
        fields = read_arrays(name, archive)
    except ValueError as error:
        return f"the shard is cut or its headers are corrupt ({error})"
    found = TokenBlock(fields["tokens"], fields["condition"], fields["key"]).crc32()
    bad = np.flatnonzero(found != fields["crc"])
    if not len(bad):
        return "its headers or its meta.json are corrupt"
    return f"sample {bytes(fields['key'][bad[0]]).decode(errors='replace')} is corrupt (CRC-32 differs)"


def check_tokenizer(manifest: TokenManifest, tokenizer: Card) -> None:
    """Refuse tokens that another tokenizer made. One with the same encoding half and another decoder is the same here.

    Args:
        manifest: of the tokens.
        tokenizer: card of the one that is about to be used with them; its moving average, if it has one.

    Raises:
        UsageError: with both fingerprints, and where the settings of encoding differ.
    """
    made_by: TokenizerRecord = manifest.tokenizer
    encoder = tokenizer.encoder()
    if made_by.encoder == encoder:
        return
    if made_by.imported_from is not None:
        raise UsageError(
            f"the tokens were imported, and made by {made_by}, not by this run's tokenizer {encoder[:16]}, which "
            "would make noise of them. Take tokens that it has made (inputs.tokens, or foldtrain tokenize), or train "
            "without it, with a generator that learns token ids alone"
        )
    found = differences(made_by.config, tokenizer.encoder_config())
    reason = "; ".join(found) if found else "the configs are equal, the weights differ"
    raise UsageError(
        f"the tokens were made by tokenizer {made_by.encoder[:16]}, but this run's tokenizer is {encoder[:16]} "
        f"({reason}). Run foldtrain tokenize with this tokenizer into another tokens.output, or use the one above"
    )
