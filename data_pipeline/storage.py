"""Bytes at any URI, local or object storage, through fsspec. A write is there whole or not at all.

Endpoint and credentials come from the standard chain (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ~/.aws, instance roles).
A filesystem is opened in the process that uses it: s3fs does not survive a fork (s3fs#369).
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Concatenate, ParamSpec, TypeVar, cast
from uuid import uuid4

from tenacity import retry, retry_if_exception, stop_after_attempt, wait_random_exponential

from data_pipeline.errors import FoldtrainError, UsageError

_TEMPORARY = ".tmp-"

P = ParamSpec("P")
R = TypeVar("R")


def is_remote(uri: str) -> bool:
    """Whether the URI names something other than a path of this machine."""
    return "://" in uri and not uri.startswith("file://")


def local_path(uri: str) -> Path:
    """The path behind a local URI."""
    assert not is_remote(uri), uri
    return Path(uri.removeprefix("file://"))


def join(uri: str, *parts: str) -> str:
    """A URI below another."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def absolute(uri: str) -> str:
    """The same place, named so that a process with another working directory finds it."""
    return uri if is_remote(uri) else str(local_path(uri).resolve())


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError | UsageError):
        return False
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if _is_unreachable(error):
        return True
    return isinstance(error, OSError) and error.errno in {None, 5, 11, 16}  # s3fs maps SlowDown and 5xx to these


def _is_unreachable(error: BaseException) -> bool:
    """Whether botocore could not connect. Its connection errors are no OSErrors."""
    botocore = sys.modules.get("botocore.exceptions")
    return botocore is not None and isinstance(error, botocore.ConnectionError | botocore.HTTPClientError)


def _retried(function: Callable[Concatenate[str, P], R]) -> Callable[Concatenate[str, P], R]:
    """Try again what fails for a moment; say which URI failed and what to check when storage refuses for good."""
    patient = retry(
        retry=retry_if_exception(_is_transient),
        stop=stop_after_attempt(6),
        wait=wait_random_exponential(multiplier=0.2, max=10),
        reraise=True,
    )(function)

    @functools.wraps(function)
    def guarded(uri: str, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return patient(uri, *args, **kwargs)
        except Exception as error:
            botocore = sys.modules.get("botocore.exceptions")
            refused = is_remote(uri) and isinstance(error, PermissionError)
            if not refused and not (botocore and isinstance(error, botocore.BotoCoreError)):
                raise
            raise FoldtrainError(
                f"{uri}: {error}. Check the URI, AWS_ENDPOINT_URL, and the credentials "
                "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials)"
            ) from error

    return guarded


@functools.cache
def _filesystem(protocol: str, pid: int) -> Any:  # noqa: ARG001 - the pid keys the cache, so that a fork opens its own
    import fsspec

    return fsspec.filesystem(protocol, use_listings_cache=False, skip_instance_cache=True)


def filesystem(uri: str) -> Any:
    """The fsspec filesystem of a remote URI, opened once per process."""
    return _filesystem(uri.split("://", 1)[0], os.getpid())


@_retried
def read_bytes(uri: str) -> bytes:
    """The whole object.

    Raises:
        FileNotFoundError: if there is none.
    """
    if not is_remote(uri):
        return local_path(uri).read_bytes()
    return bytes(filesystem(uri).cat_file(uri))


@_retried
def read_range(uri: str, start: int, length: int) -> bytes:
    """`length` bytes from `start`, in one request; fewer where the object ends."""
    if length == 0:
        return b""  # HTTP has no empty range
    if not is_remote(uri):
        with local_path(uri).open("rb") as file:
            file.seek(start)
            return file.read(length)
    try:
        return bytes(filesystem(uri).cat_file(uri, start=start, end=start + length))
    except OSError as error:
        if error.errno == errno.EINVAL:  # HTTP 416: nothing of the range is inside the object
            return b""
        raise


@_retried
def write_bytes(uri: str, data: bytes) -> None:
    """Put an object in place of what was there; a reader sees the old bytes or the new, never a part."""
    if is_remote(uri):
        filesystem(uri).pipe_file(uri, data)
        return
    path = local_path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_TEMPORARY}{uuid4().hex}-{path.name}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@_retried
def exists(uri: str) -> bool:
    """Whether there is an object (or a folder) at the URI."""
    return bool(filesystem(uri).exists(uri)) if is_remote(uri) else local_path(uri).exists()


@_retried
def list_names(uri: str) -> list[str]:
    """Names directly below a folder, sorted; empty if there is no such folder. Unfinished local writes are left out."""
    if not is_remote(uri):
        path = local_path(uri)
        return sorted(p.name for p in path.iterdir() if not p.name.startswith(_TEMPORARY)) if path.is_dir() else []
    try:
        return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in filesystem(uri).ls(uri, detail=False))
    except FileNotFoundError:
        return []


@_retried
def walk(uri: str) -> dict[str, int]:
    """Bytes of every file below a folder, by relative name, sorted; empty if there is none. Links are followed."""
    if not is_remote(uri):
        root = local_path(uri)
        files = [Path(folder, name) for folder, _, names in os.walk(root, followlinks=True) for name in names]
        found = {p.relative_to(root).as_posix(): p.stat().st_size for p in files if not p.name.startswith(_TEMPORARY)}
        return dict(sorted(found.items()))
    fs = filesystem(uri)
    prefix = fs._strip_protocol(uri).rstrip("/") + "/"
    found = {name.removeprefix(prefix): int(info["size"]) for name, info in fs.find(uri, detail=True).items()}
    return dict(sorted(found.items()))


def open_reader(uri: str) -> BinaryIO:
    """A seekable file for reading, to be closed by the caller; for formats whose library wants one.

    Raises:
        FileNotFoundError: if there is none.
    """
    return cast("BinaryIO", filesystem(uri).open(uri, "rb")) if is_remote(uri) else local_path(uri).open("rb")


@_retried
def size(uri: str) -> int:
    """Bytes of an object.

    Raises:
        FileNotFoundError: if there is none.
    """
    return int(filesystem(uri).size(uri)) if is_remote(uri) else local_path(uri).stat().st_size


@_retried
def remove_tree(uri: str) -> None:
    """Delete all objects below a folder. Some S3 servers (SeaweedFS) go on listing the empty folders."""
    import shutil

    if is_remote(uri):
        if filesystem(uri).exists(uri):
            filesystem(uri).rm(uri, recursive=True)
    else:
        shutil.rmtree(local_path(uri), ignore_errors=True)


def canonical_json(record: Any) -> bytes:
    """The one spelling of a record, so that the same content has the same bytes."""
    return (json.dumps(record, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


def write_json(uri: str, record: Any) -> None:
    """Commit a record in its canonical spelling."""
    write_bytes(uri, canonical_json(record))


def read_json(uri: str) -> Any:
    """A record.

    Raises:
        FileNotFoundError: if there is none.
        UsageError: if the file is not JSON; it names the file.
    """
    data = read_bytes(uri)
    try:
        return json.loads(data)
    except ValueError as error:
        raise UsageError(f"{uri} is not valid JSON ({error}); it was cut or edited: restore it or delete it") from error


def sha256(data: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(data).hexdigest()


def fingerprint(record: Any) -> str:
    """Hex digest of what made something: the sha256 of a record in its canonical spelling."""
    return sha256(canonical_json(record))
