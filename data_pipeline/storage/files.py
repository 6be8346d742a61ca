"""Bytes at any URI: a disk, S3 (s3fs and obstore), or what else fsspec opens. A write is there whole or not at all.

Endpoint and credentials come from the standard chain (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ~/.aws, instance roles).
What passes by itself is retried, and other failures are explained with a remedy (retries, local_disk). Every
request keeps to a pace (pacing), and has a time limit.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from data_pipeline.errors import CorruptShardError, FoldtrainError, UsageError
from data_pipeline.storage import local_disk, object_clients, object_listing, object_reads, object_writes
from data_pipeline.storage.local_disk import TEMPORARY
from data_pipeline.storage.local_listing import scan
from data_pipeline.storage.object_listing import Entry, UnfinishedUpload
from data_pipeline.storage.retries import retried
from data_pipeline.storage.store_errors import TooLargeError
from data_pipeline.storage.uris import absolute, is_remote, join, local_path
from data_pipeline.text import json_records

__all__ = ["TEMPORARY", "Entry", "UnfinishedUpload", "absolute", "is_remote", "join", "local_path"]


def filesystem(uri: str) -> Any:
    """The fsspec filesystem of a remote URI, opened once per process and endpoint. It does not retry."""
    return object_clients.open_filesystem(uri)


def read_bytes(uri: str, most: int | None = None) -> bytes:
    """The whole object. Its length is checked; whoever has a sha256 or CRC-32 of it compares that.

    Args:
        uri: of the object.
        most: bytes that it may have; more are not read, nor is a device or a pipe. None for no bound.

    Raises:
        FileNotFoundError: if there is none.
        CorruptShardError: if it has more than `most` bytes; it names the file.
    """
    if is_remote(uri):
        return _read_whole(uri, most)
    if most is None:
        return local_disk.read_file(local_path(uri))
    data = local_disk.read_file(local_path(uri), 0, most + 1)
    _check_size(uri, len(data), most)
    return data


def _check_size(uri: str, found: int, most: int | None) -> None:
    if most is not None and found > most:
        raise _too_large(uri, most)


def _too_large(uri: str, most: int) -> CorruptShardError:
    return CorruptShardError(f"{uri} has more than the {most:,} bytes that such a file may have: it is another file")


@retried
def _read_whole(uri: str, most: int | None) -> bytes:
    try:
        return object_reads.read_whole(filesystem(uri), uri, most, functools.partial(read_range, uri))
    except TooLargeError as error:
        raise _too_large(uri, most or 0) from error


@retried
def read_range(uri: str, start: int, length: int) -> bytes:
    """`length` bytes from `start`, in one request; fewer only where the object ends."""
    if length <= 0 or start < 0:
        return b""  # HTTP has no empty range
    if is_remote(uri):
        return object_reads.get_range(filesystem(uri), uri, start, length)
    return local_disk.read_file(local_path(uri), start, length)


def read_ranges(uri: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Several ranges of one object, each as (start, length), in their order; neighbours in one request.

    A range is shorter than asked for only where the object ends.

    Raises:
        FileNotFoundError: if there is no such object, and any range has a length.
    """
    read = functools.partial(read_range, uri)
    if not is_remote(uri):
        return [read(*each) for each in ranges]
    return object_reads.read_coalesced(
        read, ranges, lambda wanted: object_reads.read_together(filesystem(uri), uri, wanted)
    )


def write_bytes(uri: str, data: bytes | memoryview) -> None:
    """Put an object in place of what was there; a reader sees the old bytes or the new, never a part.

    Memory that a view shows is not copied as a whole, on disk and on S3; it must not change meanwhile.
    """
    if is_remote(uri):
        object_writes.put(filesystem(uri), uri, data, functools.partial(holds, uri, data))
    else:
        local_disk.write_file(local_path(uri), data, lambda temporary, path: temporary.replace(path))


def write_stream(uri: str, fill: Callable[[BinaryIO], object]) -> None:
    """As `write_bytes`, for what is too large for memory: `fill` writes it to a file of this machine.

    A remote object is written to $TMPDIR first, from where it goes up in parts.
    """
    if not is_remote(uri):
        local_disk.write_file(local_path(uri), fill, lambda temporary, path: temporary.replace(path))
        return
    with contextlib.ExitStack() as files:
        with local_disk.disk_errors(Path(tempfile.gettempdir())):
            draft = files.enter_context(tempfile.TemporaryFile())
            fill(draft)
            draft.flush()
        whole = object_writes.FileBytes(draft)
        object_writes.put(filesystem(uri), uri, whole, functools.partial(holds, uri, whole))


def create_bytes(uri: str, data: bytes) -> bool:
    """Put an object only if there is none. Returns whether this call put it there.

    Of many callers at once one succeeds, locally (a hard link) and on S3 (If-None-Match: *). A store that refuses that
    header gets a plain put when nothing is there, and one that ignores it (some S3 servers do, silently) a plain put
    always: there two callers may both be told that they created it, and the last one's bytes stay. So nothing may
    depend on the winner alone: the bytes of a shard are a pure function of its plan, and whoever puts them puts the
    same. An object whose creation was answered into a connection that broke counts as created by that call.
    """
    if not is_remote(uri):
        try:
            local_disk.write_file(local_path(uri), data, local_disk.link)
        except FileExistsError:
            return False
        return True
    put = functools.partial(object_writes.put, filesystem(uri), uri, data, functools.partial(holds, uri, data))
    try:
        return put(only_if_absent=True)
    except object_writes.NoConditionalPutError:
        return not exists(uri) and put()


def commit_bytes(uri: str, data: bytes) -> None:
    """Make sure that an object has these bytes: put it if there is none, replace it if it has others."""
    if not create_bytes(uri, data) and not holds(uri, data):
        write_bytes(uri, data)


def holds(uri: str, data: object_writes.Body) -> bool:
    """Whether there is an object with exactly these bytes."""
    try:
        if isinstance(data, bytes):
            return read_bytes(uri, len(data)) == data
        if size(uri) != len(data):
            return False
        part = object_writes.VIEW_PART_BYTES
        return all(read_range(uri, at, part) == bytes(data[at : at + part]) for at in range(0, len(data), part))
    except (FileNotFoundError, CorruptShardError):  # the latter if it has more bytes
        return False


@retried
def exists(uri: str) -> bool:
    """Whether there is an object (or a folder) at the URI."""
    if is_remote(uri):
        return object_reads.exists(filesystem(uri), uri)
    with local_disk.disk_errors(local_path(uri)):
        return local_path(uri).exists()


def list_names(uri: str) -> list[str]:
    """Names directly below a folder, sorted; empty if there is no such folder. Unfinished local writes are left out."""
    if is_remote(uri):
        return object_listing.list_folder(filesystem(uri), uri)
    path = local_path(uri)
    with local_disk.disk_errors(path):
        return sorted(p.name for p in path.iterdir() if not _is_temporary(p.name)) if path.is_dir() else []


def walk(uri: str) -> dict[str, int]:
    """Bytes of every file below a folder, by relative name, sorted; empty if there is none. Links are followed."""
    return {name: entry.bytes for name, entry in entries(uri).items() if not _is_temporary(name)}


def entries(uri: str, *, folders: bool = False) -> dict[str, Entry]:
    """Every file below a folder, by relative name, sorted; unfinished local writes too. Links are followed.

    Args:
        uri: the folder.
        folders: whether to list folders, too, with a slash behind their names: on S3 those that have an object.

    Raises:
        UsageError: if a part of a local folder cannot be read, or a link leads in a circle.
    """
    if is_remote(uri):
        return object_listing.list_tree(filesystem(uri), uri, folders=folders)
    found = scan(local_path(uri), strict=False)
    kept = [one for one in found if folders or not one.is_folder]
    listed = {one.name + "/" * one.is_folder: Entry(one.status.st_size, one.status.st_mtime) for one in kept}
    return dict(sorted(listed.items()))


def iter_entries(uri: str) -> Iterator[tuple[str, Entry]]:
    """Every object and folder object below a remote folder, in the storage's order, so that not all are held at once.

    All objects of a folder in it come one after another on S3. Names are relative; those of folders end in a slash.
    """
    return object_listing.iter_tree(filesystem(uri), uri, folders=True)


def _is_temporary(name: str) -> bool:
    return name.rsplit("/", 1)[-1].startswith(TEMPORARY)


def open_reader(uri: str) -> BinaryIO:
    """A seekable file for reading, to be closed by the caller; for formats whose library wants one.

    Raises:
        FileNotFoundError: if there is none.
    """
    if not is_remote(uri):
        return local_disk.open_file(local_path(uri))
    raw = object_reads.RangeFile(functools.partial(read_range, uri), size(uri))
    return cast("BinaryIO", io.BufferedReader(raw, object_reads.BUFFER_BYTES))


@retried
def size(uri: str) -> int:
    """Bytes of an object.

    Raises:
        FileNotFoundError: if there is none.
    """
    if is_remote(uri):
        return object_reads.object_size(filesystem(uri), uri)
    with local_disk.disk_errors(local_path(uri)):
        return local_path(uri).stat().st_size


@retried
def stat(uri: str) -> Entry:
    """What tells this version of a file from another one, by one request: its length, time and ETag.

    Raises:
        FileNotFoundError: if there is none.
    """
    if is_remote(uri):
        return object_listing.stat_object(filesystem(uri), uri)
    with local_disk.disk_errors(local_path(uri)):
        status = local_path(uri).stat()
    return Entry(status.st_size, status.st_mtime)


def remove_tree(uri: str) -> None:
    """Delete all objects below a folder. Some S3 servers (SeaweedFS) go on listing the empty folders."""
    import shutil

    if is_remote(uri):
        object_listing.delete_tree(filesystem(uri), uri)
    else:
        shutil.rmtree(local_path(uri), ignore_errors=True)


@retried
def remove_file(uri: str) -> None:
    """Delete one object, if it is there."""
    if not is_remote(uri):
        with local_disk.disk_errors(local_path(uri)):
            local_path(uri).unlink(missing_ok=True)
        return
    with contextlib.suppress(FileNotFoundError):
        object_writes.delete(filesystem(uri), uri)


def unfinished_uploads(uri: str) -> list[UnfinishedUpload]:
    """Uploads in parts below a folder that were neither completed nor aborted; only S3 has any."""
    return object_listing.unfinished_uploads(filesystem(uri), uri) if is_remote(uri) else []


def abort_upload(upload: UnfinishedUpload) -> None:
    """Give the parts of an unfinished upload back, if they are still there."""
    object_listing.abort_upload(filesystem(upload.uri), upload.uri, upload.upload_id)


def canonical_json(record: Any) -> bytes:
    """The one spelling of a record, so that the same content has the same bytes; null for what is not finite."""
    spelling: dict[str, Any] = {"sort_keys": True, "indent": 1, "ensure_ascii": False, "allow_nan": False}
    try:
        text = json.dumps(record, **spelling)
    except ValueError:  # NaN is no JSON, and `read_json` takes none
        text = json.dumps(json_records.finite(record), **spelling)
    return (text + "\n").encode()


def write_json(uri: str, record: Any) -> None:
    """Commit a record in its canonical spelling.

    Raises:
        FoldtrainError: if it is larger than what `read_json` reads.
    """
    data = canonical_json(record)
    if len(data) > json_records.MOST_BYTES:
        raise FoldtrainError(
            f"{uri} would have {len(data):,} bytes, and a record has at most {json_records.MOST_BYTES:,}"
        )
    write_bytes(uri, data)


def read_json(uri: str) -> Any:
    """A record: JSON that is bounded in size and depth (`json_records`).

    Raises:
        FileNotFoundError: if there is none.
        UsageError: if the file is not such JSON; it names the file.
    """
    data = read_bytes(uri, json_records.MOST_BYTES)
    try:
        return json_records.parse(data)
    except ValueError as error:
        raise UsageError(f"{uri} is not valid JSON ({error}); it was cut or edited: restore it or delete it") from error


def sha256(data: bytes | memoryview) -> str:
    """Hex digest."""
    return hashlib.sha256(data).hexdigest()


def fingerprint(record: Any) -> str:
    """Hex digest of what made something: the sha256 of a record in its canonical spelling."""
    return sha256(canonical_json(record))
