"""Tokens in the formats of other people's trainers, with a record beside them that says what they are.

    webdataset   <shard>-000.tar: <key>.tokens.npy uint16 or uint32 [views, positions, folds] and <key>.cls
    npz          <shard>.npz: tokens uint16 or uint32 [samples, views, positions, folds], label int32, key
    parquet      <shard>.parquet: key, label, and per view a flat list of uint16 or uint32

export.json says what the tokens are, and names the lists of its files: export-00000.json for those of the first
PART_SHARDS shards, and so on. Only the list of the shard's own part is written anew after a shard, so that time grows
with the number of shards and memory does not. export.json is written twice, at the beginning and at the end: `complete`
says whether all files are there. An export that was interrupted goes on: files that are there with the right digest are
kept.
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
EXPORT_VERSION = 3
"""Version of this record; the first had none in it, the second listed all files."""
PART_SHARDS = 50
"""Shards of tokens whose files one list has."""
FILE_BYTES = 100_000_000
"""Most bytes of a file of the webdataset format."""


File = tuple[str, int, bytes | memoryview]
"""Name, samples and bytes of a file."""


class ExportFormat(Protocol):
    """One format: the files of one shard of tokens."""

    def files(self, stem: str, block: TokenBlock, manifest: TokenManifest) -> Iterator[File]:
        """The files; `stem` is the shard's name without its ending."""


@dataclass(frozen=True)
class WebDatasetFormat:
    """A member per sample, as WebDataset's own readers and writers have it; it takes more room than our shards."""

    most_bytes: int = FILE_BYTES

    def files(self, stem: str, block: TokenBlock, manifest: TokenManifest) -> Iterator[File]:  # noqa: ARG002 - an ExportFormat has it
        """Tars of bounded size."""
        archive, samples, number = bytearray(), 0, 0
        for row in range(len(block.key)):
            sample = _tar_sample(block, row)
            if samples and len(archive) + len(sample) + len(END_OF_ARCHIVE) > self.most_bytes:
                archive += END_OF_ARCHIVE
                yield f"{stem}-{number:03d}.tar", samples, memoryview(archive)
                archive, samples, number = bytearray(), 0, number + 1
            archive += sample
            samples += 1
        archive += END_OF_ARCHIVE
        yield f"{stem}-{number:03d}.tar", samples, memoryview(archive)


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

    def files(self, stem: str, block: TokenBlock, manifest: TokenManifest) -> Iterator[File]:  # noqa: ARG002 - an ExportFormat has it
        """One file."""
        buffer = io.BytesIO()
        np.savez(buffer, tokens=block.tokens_NWLF, label=block.condition, key=block.key)
        yield f"{stem}.npz", len(block.key), buffer.getvalue()


class ParquetFormat:
    """A row per sample; the shape of its lists stands in the schema's metadata. Bytes depend on pyarrow's version."""

    def files(self, stem: str, block: TokenBlock, manifest: TokenManifest) -> Iterator[File]:
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
    path, shards = storage.join(output, EXPORT_NAME), len(manifest.shards)
    is_begun, is_open = _is_begun(path, output, record), False
    parts: list[dict[str, Any]] = []
    reader = TokenReader(uri, manifest)
    for first in range(0, shards, PART_SHARDS):
        name = part_name(first // PART_SHARDS)
        part = _Part(storage.join(output, name), is_begun)
        for number in range(first, min(first + PART_SHARDS, shards)):
            shard = _as_exported(manifest, number, manifest.shards[number])
            if not part.keep(output, shard):
                files = _write_shard(reader, number, output, shard, writer)
                if not is_open:
                    storage.write_json(path, record | {"parts": [], "complete": False})
                    is_open = True
                part.put(shard, files)
            progress(number + 1, shards)
        parts.append({"name": name} | part.sums())
    whole = record | {"parts": parts, "complete": True}
    storage.write_json(path, whole)
    return whole


def part_name(number: int) -> str:
    """The file that lists the files of a part."""
    return f"export-{number:05d}.json"


def exported_files(output: str) -> Iterator[dict[str, Any]]:
    """Name, shard, samples, bytes and sha256 of each file of a complete export, in the order of the samples.

    Raises:
        UsageError: if there is no complete export at `output`.
    """
    path = storage.join(output, EXPORT_NAME)
    try:
        record = storage.read_json(path)
        count = len(record["parts"]) if record["complete"] else None
    except (FileNotFoundError, KeyError, TypeError):
        count = None
    if count is None:
        raise UsageError(f"{output} holds no complete export: run foldtrain export again")
    for number in range(count):
        yield from _read_part(storage.join(output, part_name(number))).values()


class _Part:
    """The list of the files of some shards, as it is stored.

    Args:
        uri: of the list.
        is_begun: whether it may be there already.
    """

    def __init__(self, uri: str, is_begun: bool) -> None:
        self._uri = uri
        self._files = _read_part(uri) if is_begun else {}

    def keep(self, output: str, shard: ShardRecord) -> bool:
        """Whether all files of a shard are there as they were written."""
        files = [entry for entry in self._files.values() if entry["shard"] == shard.name]
        return sum(entry["samples"] for entry in files) == shard.samples and all(_holds(output, each) for each in files)

    def put(self, shard: ShardRecord, files: dict[str, dict[str, Any]]) -> None:
        """Note the files of a shard, which are there, in place of what was noted of it."""
        others = {name: entry for name, entry in self._files.items() if entry["shard"] != shard.name}
        self._files = dict(sorted((others | files).items()))
        storage.write_json(self._uri, list(self._files.values()))

    def sums(self) -> dict[str, int]:
        """For export.json."""
        entries = self._files.values()
        return {"files": len(entries), **{each: sum(entry[each] for entry in entries) for each in ("samples", "bytes")}}


def _holds(output: str, entry: dict[str, Any]) -> bool:
    try:
        data = storage.read_bytes(storage.join(output, entry["name"]), entry["bytes"])
    except (FileNotFoundError, CorruptShardError):
        return False
    return bool(storage.sha256(data) == entry["sha256"])


class _File(BaseModel):
    """What export.json says of a file."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[StoredName, StringConstraints(pattern=r"^[^/]+$")]
    shard: ShardName
    samples: Count
    bytes: Count
    sha256: Sha256


_FILES: TypeAdapter[list[_File]] = TypeAdapter(list[_File])


def _is_begun(path: str, output: str, record: dict[str, Any]) -> bool:
    """Whether an earlier start of the same export has begun."""
    try:
        found = storage.read_json(path)
    except FileNotFoundError:
        return False
    remedy = "choose another --to, or delete that folder"
    if not isinstance(found, dict):
        raise UsageError(f"{path} is no record of an export: {remedy}")
    check_version(path, "a record of an export", found.get("version"), EXPORT_VERSION, remedy)
    changed = differences({name: found[name] for name in found if name not in {"parts", "complete"}}, record)
    if changed:
        reason = "\n  ".join(changed)
        raise UsageError(f"{output} holds another export (there -> now):\n  {reason}\nChoose another --to")
    return True


def _read_part(uri: str) -> dict[str, dict[str, Any]]:
    """The files on a list, by name; none if there is no list."""
    try:
        return {file.name: file.model_dump() for file in _FILES.validate_python(storage.read_json(uri))}
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        raise UsageError(
            f"{uri} is no list of files of an export ({first_problem(error)}): delete it, or choose another --to"
        ) from None


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
