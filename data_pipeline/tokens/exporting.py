"""Tokens in the formats of other people's trainers, with a record beside them that says what they are.

    webdataset   <shard>-000.tar: <key>.tokens.npy uint16 or uint32 [views, positions, folds] and <key>.cls
    npz          <shard>.npz: tokens uint16 or uint32 [samples, views, positions, folds], label int32, key
    parquet      <shard>.parquet: key, label, and per view a flat list of uint16 or uint32

export.json is written anew after every shard and lists the files so far; `complete` says whether all are there. An
export that was interrupted goes on: files that are there with the right digest are kept.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, StringConstraints, TypeAdapter, ValidationError

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, UsageError
from data_pipeline.shards.manifest import ShardRecord, TokenManifest, differences, first_problem
from data_pipeline.shards.token_reader import TokenReader
from data_pipeline.shards.token_shards import TokenBlock
from data_pipeline.shards.versions import check_version
from data_pipeline.storage.tar import END_OF_ARCHIVE, encode_member
from data_pipeline.text.names import Count, Sha256, ShardName, StoredName

EXPORT_NAME = "export.json"
EXPORT_VERSION = 2
"""Version of this record; the first had none in it."""
FILE_BYTES = 100_000_000
"""Most bytes of a file of the webdataset format."""


class ExportFormat(Protocol):
    """One format: the files of one shard of tokens."""

    def files(self, stem: str, block: TokenBlock, manifest: TokenManifest) -> Iterator[tuple[str, int, bytes]]:
        """Name, samples and bytes of each file; `stem` is the shard's name without its ending."""


@dataclass(frozen=True)
class WebDatasetFormat:
    """A member per sample, as WebDataset's own readers and writers have it; it takes more room than our shards."""

    most_bytes: int = FILE_BYTES

    def files(self, stem: str, block: TokenBlock, manifest: TokenManifest) -> Iterator[tuple[str, int, bytes]]:  # noqa: ARG002 - an ExportFormat has it
        """Tars of bounded size."""
        archive, samples, number = bytearray(), 0, 0
        for row in range(len(block.key)):
            sample = _tar_sample(block, row)
            if samples and len(archive) + len(sample) + len(END_OF_ARCHIVE) > self.most_bytes:
                yield f"{stem}-{number:03d}.tar", samples, bytes(archive) + END_OF_ARCHIVE
                archive, samples, number = bytearray(), 0, number + 1
            archive += sample
            samples += 1
        yield f"{stem}-{number:03d}.tar", samples, bytes(archive) + END_OF_ARCHIVE


def _tar_sample(block: TokenBlock, row: int) -> bytes:
    key = bytes(block.key[row]).decode()
    if "." in key.rpartition("/")[2]:
        raise UsageError(f"key {key}: WebDataset cuts keys at their first dot; export to npz or parquet")
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(block.tokens_NWLF[row]), allow_pickle=False)
    try:
        tokens = encode_member(f"{key}.tokens.npy", buffer.getvalue())
    except ValueError as error:
        raise UsageError(f"key {key}: {error}; export to npz or parquet") from error
    return tokens + encode_member(f"{key}.cls", str(block.condition[row]).encode())


class NpzFormat:
    """numpy's own archive, uncompressed."""

    def files(self, stem: str, block: TokenBlock, manifest: TokenManifest) -> Iterator[tuple[str, int, bytes]]:  # noqa: ARG002 - an ExportFormat has it
        """One file."""
        buffer = io.BytesIO()
        np.savez(buffer, tokens=block.tokens_NWLF, label=block.condition, key=block.key)
        yield f"{stem}.npz", len(block.key), buffer.getvalue()


class ParquetFormat:
    """A row per sample; the shape of its lists stands in the schema's metadata. Bytes depend on pyarrow's version."""

    def files(self, stem: str, block: TokenBlock, manifest: TokenManifest) -> Iterator[tuple[str, int, bytes]]:
        """One file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        samples, views, positions, folds = block.tokens_NWLF.shape
        columns = {
            "key": pa.array([bytes(key).decode() for key in block.key], pa.string()),
            "label": pa.array(block.condition, pa.int32()),
        }
        width = positions * folds
        ends = pa.array(np.arange(samples + 1) * width, pa.int32())
        for number in range(views):
            flat = pa.array(block.tokens_NWLF[:, number].ravel())
            columns[f"tokens_{manifest.views[number]}"] = pa.ListArray.from_arrays(ends, flat)
        record = {**describe(manifest), "shape": [positions, folds]}
        table = pa.table(columns).replace_schema_metadata({"foldtrain": storage.canonical_json(record)})
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        yield f"{stem}.parquet", samples, buffer.getvalue()


FORMATS: dict[str, Callable[[], ExportFormat]] = {
    "webdataset": WebDatasetFormat,
    "npz": NpzFormat,
    "parquet": ParquetFormat,
}
"""The formats by name."""


def describe(manifest: TokenManifest) -> dict[str, Any]:
    """What a reader of exported tokens has to know: the manifest without its shards, and what the axes are."""
    record = manifest.model_dump(mode="json", exclude={"shards", "version"})
    axes = "positions run group by group, as the layout lists them; a fold of a position holds one of its tokens"
    return record | {"axes": axes}


def export_tokens(
    uri: str,
    output: str,
    export_format: str,
    writer: ExportFormat | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[str, Any]:
    """Write the tokens at `uri` below `output` in another format. One shard is held in memory at a time.

    Args:
        uri: of the token data set.
        output: folder at any URI; an export of the same tokens that is there is completed.
        export_format: one of FORMATS.
        writer: the format with other settings.
        progress: called with (shards done, shards in all).

    Returns:
        The content of export.json.

    Raises:
        UsageError: if there are no tokens at `uri`, or the output holds another export.
        CorruptShardError: if a shard is damaged; it names shard and key.
    """
    if export_format not in FORMATS:
        raise UsageError(f"--format {export_format}: choose one of {', '.join(FORMATS)}")
    writer = writer or FORMATS[export_format]()
    manifest = TokenManifest.read(uri)
    record = {"version": EXPORT_VERSION, "format": export_format, "tokens": describe(manifest)}
    kept = _files_of(output, record)
    files: dict[str, dict[str, Any]] = {}
    reader = TokenReader(uri, manifest)
    for done, record_of in enumerate(manifest.shards, start=1):
        shard = _as_exported(manifest, done - 1, record_of)
        files |= _kept_of_shard(output, shard, kept) or _write_shard(reader, done - 1, output, shard, writer)
        complete = done == len(manifest.shards)
        rest = {name: entry for name, entry in kept.items() if not complete and name not in files}
        listed = [files.get(name) or rest[name] for name in sorted(files | rest)]
        storage.write_json(storage.join(output, EXPORT_NAME), record | {"files": listed, "complete": complete})
        progress(done, len(manifest.shards))
    return record | {"files": [files[name] for name in sorted(files)], "complete": True}


class _File(BaseModel):
    """What export.json says of a file."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[StoredName, StringConstraints(pattern=r"^[^/]+$")]
    shard: ShardName
    samples: Count
    bytes: Count
    sha256: Sha256


_FILES: TypeAdapter[list[_File]] = TypeAdapter(list[_File])


def _files_of(output: str, record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The files that an earlier start of the same export wrote."""
    path = storage.join(output, EXPORT_NAME)
    try:
        found = storage.read_json(path)
        if isinstance(found, dict):
            remedy = "choose another --to, or delete that folder"
            check_version(path, "a record of an export", found.get("version"), EXPORT_VERSION, remedy)
        listed = {file.name: file.model_dump() for file in _FILES.validate_python(found.pop("files"))}
        found.pop("complete")
    except FileNotFoundError:
        return {}
    except (KeyError, TypeError, AttributeError, ValidationError) as error:
        reason = first_problem(error) if isinstance(error, ValidationError) else error
        raise UsageError(f"{path} is no record of an export ({reason}): delete it, or choose another --to") from None
    changed = differences(found, record)
    if changed:
        reason = "\n  ".join(changed)
        raise UsageError(f"{output} holds another export (there -> now):\n  {reason}\nChoose another --to")
    return listed


def _kept_of_shard(output: str, shard: ShardRecord, kept: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The files of a shard, if all of them are there as they were written."""
    files = {name: entry for name, entry in kept.items() if entry["shard"] == shard.name}
    if sum(entry["samples"] for entry in files.values()) != shard.samples:
        return {}
    for name, entry in files.items():
        try:
            data = storage.read_bytes(storage.join(output, name), entry["bytes"])
        except (FileNotFoundError, CorruptShardError):
            return {}
        if storage.sha256(data) != entry["sha256"]:
            return {}
    return files


def _as_exported(manifest: TokenManifest, number: int, shard: ShardRecord) -> ShardRecord:
    """A shard under the name of its files: of a set that is made of others the number, as names may come twice."""
    return shard if manifest.edit is None else shard.model_copy(update={"name": f"tokens-{number:05d}.tar"})


def _write_shard(
    reader: TokenReader, number: int, output: str, shard: ShardRecord, writer: ExportFormat
) -> dict[str, dict[str, Any]]:
    block = reader.block(number)
    files = {}
    for name, samples, data in writer.files(shard.name.removesuffix(".tar"), block, reader.manifest):
        storage.write_bytes(storage.join(output, name), data)
        digest = storage.sha256(data)
        files[name] = {
            "name": name,
            "shard": shard.name,
            "samples": samples,
            "bytes": len(data),
            "sha256": digest,
        }
    return files
