"""Token shards: WebDataset tars whose members each hold a block of samples.

    tokens-00000.tar
      tokens-00000.tokens.npy   uint16 [samples, views, positions, folds]
      tokens-00000.label.npy    int32  [samples]
      tokens-00000.key.npy      bytes  [samples], as numpy's S type
      tokens-00000.crc.npy      uint32 [samples], CRC-32 of each sample's tokens, label and key
      tokens-00000.meta.json    what made the tokens

Nothing is compressed and every array is aligned, so a local shard is memory-mapped where it lies. A remote one is
copied to this machine once, under its sha256.
Shape suffixes: N samples, W views, L positions, F folds.
"""

from __future__ import annotations

import io
import os
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, UsageError
from data_pipeline.manifest import ShardRecord, TokenizerRecord, TokenManifest, differences, shard_starts
from data_pipeline.tar import read_members, write_tar
from model.layout import TokenLayout

Tokens = npt.NDArray[np.uint16]

REMEDY = "delete the shard and run foldtrain tokenize again"


@dataclass(frozen=True)
class TokenBlock:
    """The samples of a shard."""

    tokens_NWLF: Tokens
    label: npt.NDArray[np.int32]
    key: npt.NDArray[np.bytes_]

    def crc32(self) -> npt.NDArray[np.uint32]:
        """A checksum per sample over its tokens, label and key."""
        rows = zip(self.tokens_NWLF, self.label, self.key, strict=True)
        sums = [
            zlib.crc32(key, zlib.crc32(label.tobytes(), zlib.crc32(tokens.tobytes()))) for tokens, label, key in rows
        ]
        return np.array(sums, dtype=np.uint32)


def encode_token_shard(name: str, block: TokenBlock, meta: dict[str, Any]) -> bytes:
    """The tar of a shard; the same content gives the same bytes."""
    assert block.tokens_NWLF.dtype == np.uint16, block.tokens_NWLF.dtype
    assert block.label.dtype == np.int32, block.label.dtype
    stem = name.removesuffix(".tar")
    arrays: dict[str, npt.NDArray[Any]] = {
        "tokens": block.tokens_NWLF,
        "label": block.label,
        "key": block.key,
        "crc": block.crc32(),
    }
    files = [(f"{stem}.{field}.npy", _npy(array)) for field, array in arrays.items()]
    archive, _ = write_tar([*files, (f"{stem}.meta.json", storage.canonical_json(meta))])
    return archive


def write_token_shard(uri: str, name: str, block: TokenBlock, meta: dict[str, Any]) -> ShardRecord:
    """Commit a shard by one write."""
    archive = encode_token_shard(name, block, meta)
    storage.write_bytes(storage.join(uri, name), archive)
    return ShardRecord(name=name, samples=len(block.label), bytes=len(archive), sha256=storage.sha256(archive))


def _npy(array: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def map_arrays(path: Path, name: str) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a local shard by field, memory-mapped.

    Raises:
        CorruptShardError: if it is not a tar of .npy members with the names that belong to it.
    """
    stem = name.removesuffix(".tar")
    try:
        places = {member.name: member.offset for member in read_members(str(path))}
        return {field: _map_npy(path, places[f"{stem}.{field}.npy"]) for field in ("tokens", "label", "key", "crc")}
    except (tarfile.TarError, KeyError, ValueError) as error:
        raise CorruptShardError(f"{path} is corrupt ({error}); {REMEDY}") from error


def _map_npy(path: Path, offset: int) -> npt.NDArray[Any]:
    with path.open("rb") as file:
        file.seek(offset)
        major, _ = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        return np.memmap(path, dtype=dtype, mode="r", offset=file.tell(), shape=shape)


def first_damage(name: str, archive: bytes) -> str:
    """Which sample of a damaged shard is the first that is not as it was committed, in words."""
    stem = name.removesuffix(".tar")
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
            fields = {}
            for field in ("tokens", "label", "key", "crc"):
                member = tar.extractfile(f"{stem}.{field}.npy")
                assert member is not None, field
                fields[field] = np.load(io.BytesIO(member.read()), allow_pickle=False)
    except (tarfile.TarError, KeyError, ValueError, EOFError) as error:
        return f"the shard is cut or its headers are corrupt ({error})"
    found = TokenBlock(fields["tokens"], fields["label"], fields["key"]).crc32()
    bad = np.flatnonzero(found != fields["crc"])
    if not len(bad):
        return "its headers or its meta.json are corrupt"
    return f"sample {bytes(fields['key'][bad[0]]).decode(errors='replace')} is corrupt (CRC-32 differs)"


class TokenShards:
    """The samples of a token data set by number, in the order of its shards; memory-mapped, so opening reads little.

    Args:
        uri: the data set.
        cache_dir: where remote shards are kept on this machine; by default below the user's cache folder.

    Raises:
        UsageError: if there is no complete data set at `uri`.
        CorruptShardError: if a shard is not the one that the manifest names.
    """

    def __init__(self, uri: str, cache_dir: str | None = None) -> None:
        self.uri = uri
        self.manifest = TokenManifest.read(uri)
        self.count = self.manifest.samples
        self.starts: npt.NDArray[np.int64] = np.array(shard_starts(self.manifest.shards))
        cache = Path(cache_dir) if cache_dir else _default_cache()
        arrays = [map_arrays(local_shard(uri, shard, cache), shard.name) for shard in self.manifest.shards]
        self._tokens = [part["tokens"] for part in arrays]
        self.labels: npt.NDArray[np.int32] = np.concatenate([part["label"] for part in arrays])
        self.keys: npt.NDArray[np.bytes_] = np.concatenate([part["key"] for part in arrays])
        self._check_shapes()

    @property
    def layout(self) -> TokenLayout:
        """What the positions and folds of a sample are."""
        return self.manifest.layout

    def tokens(self, indices: npt.NDArray[np.int64]) -> Tokens:
        """uint16 [len(indices), views, positions, folds]."""
        every_view = np.arange(len(self.manifest.views))
        return self._gather(indices[:, None], np.broadcast_to(every_view, (len(indices), len(every_view))))

    def views(self, indices: npt.NDArray[np.int64], views: npt.NDArray[np.int64]) -> Tokens:
        """One view of each sample, uint16 [len(indices), positions, folds]."""
        return self._gather(indices, views)

    def _gather(self, indices: npt.NDArray[np.int64], views: npt.NDArray[np.int64]) -> Tokens:
        if len(self._tokens) == 1:
            return np.asarray(self._tokens[0][indices, views])
        shards = np.searchsorted(self.starts, indices.reshape(len(views), -1)[:, 0], side="right") - 1
        gathered = np.empty((*views.shape, *self._tokens[0].shape[2:]), dtype=np.uint16)
        for shard in np.unique(shards):
            here = shards == shard
            gathered[here] = self._tokens[shard][indices[here] - self.starts[shard], views[here]]
        return gathered

    def _check_shapes(self) -> None:
        sample = (len(self.manifest.views), self.layout.positions, self.layout.folds)
        for shard, tokens in zip(self.manifest.shards, self._tokens, strict=True):
            if tokens.shape != (shard.samples, *sample) or tokens.dtype != np.uint16:
                raise CorruptShardError(
                    f"{storage.join(self.uri, shard.name)} holds {tokens.dtype} {tokens.shape}, "
                    f"but its manifest says uint16 {(shard.samples, *sample)}; {REMEDY}"
                )


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "foldtrain" / "shards"


def local_shard(uri: str, shard: ShardRecord, cache: Path) -> Path:
    """The shard as a file of this machine: where it lies, or else copied once to `<cache>/<sha256>.tar`.

    Raises:
        CorruptShardError: if it is missing, or what arrives is not what the manifest names.
    """
    source = storage.join(uri, shard.name)
    path = storage.local_path(source) if not storage.is_remote(source) else cache / f"{shard.sha256}.tar"
    if path.is_file() and path.stat().st_size == shard.bytes:
        return path
    if not storage.is_remote(source):
        state = f"has {path.stat().st_size} bytes, not {shard.bytes}" if path.is_file() else "is missing"
        raise CorruptShardError(f"{source} {state}; {REMEDY}")
    try:
        archive = storage.read_bytes(source)
    except FileNotFoundError:
        raise CorruptShardError(f"{source} is missing; {REMEDY}") from None
    if storage.sha256(archive) != shard.sha256:
        raise CorruptShardError(f"{source}: {first_damage(shard.name, archive)}; {REMEDY}")
    storage.write_bytes(str(path), archive)
    return path


def check_tokenizer(manifest: TokenManifest, fingerprint: str, config: dict[str, Any]) -> None:
    """Refuse tokens that another tokenizer made.

    Args:
        manifest: of the tokens.
        fingerprint: of the tokenizer that is about to be used with them (`Card.fingerprint`).
        config: its config.

    Raises:
        UsageError: with both fingerprints, and where the configs differ.
    """
    made_by: TokenizerRecord = manifest.tokenizer
    if made_by.fingerprint == fingerprint:
        return
    found = differences(made_by.config, config)
    reason = "; ".join(found) if found else "the configs are equal, the weights differ"
    raise UsageError(
        f"the tokens were made by tokenizer {made_by.fingerprint[:16]}, but this run's tokenizer is {fingerprint[:16]} "
        f"({reason}). Run foldtrain tokenize with this tokenizer into another tokens.output, or use the one above"
    )
