"""Names of places: a path of this machine, or anything that fsspec opens (s3://bucket/folder)."""

from __future__ import annotations

import re
from pathlib import Path

from data_pipeline.errors import UsageError

_WHOLE = re.compile(r"([A-Za-z][A-Za-z0-9+._-]*)://(.*)", re.DOTALL)
_HALF = re.compile(r"([A-Za-z][A-Za-z0-9+._-]*):(.*)", re.DOTALL)
_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "wasb", "wasbs", "oss", "hf"})
_SCHEMES = _STORES | {"hdfs", "webhdfs", "http", "https", "sftp", "ftp", "file"}


def split_scheme(uri: str) -> tuple[str | None, str]:
    """The scheme of a URI in lower case, and what follows ://; (None, the path) for a path of this machine.

    Raises:
        ValueError: if it is half a URI, which would be taken for a folder called `s3:`.
    """
    if whole := _WHOLE.fullmatch(uri):
        return whole[1].lower(), whole[2]
    half = _HALF.fullmatch(uri)
    if half and (half[1].lower() in _SCHEMES or half[2].startswith(("/", "\\"))):
        scheme, rest = half[1].lower(), half[2].strip("/") or "bucket/folder"
        meant = f"file:///{rest}" if scheme == "file" else f"{scheme}://{rest}"
        raise ValueError(f"{uri} is neither a URI nor a path: write {meant}, or ./{uri} for a folder of that name")
    return None, uri


def is_remote(uri: str) -> bool:
    """Whether the URI names something other than a path of this machine."""
    return "://" in uri and not uri.startswith("file://")


def local_path(uri: str) -> Path:
    """The path behind a local URI.

    Raises:
        UsageError: if it is half a URI (`s3:/bucket`).
    """
    assert not is_remote(uri), uri
    if ":" in uri:
        try:
            split_scheme(uri)
        except ValueError as error:
            raise UsageError(str(error)) from None
    return Path(uri.removeprefix("file://"))


def join(uri: str, *parts: str) -> str:
    """A URI below another."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def absolute(uri: str) -> str:
    """The same place, named so that a process with another working directory finds it.

    Raises:
        UsageError: if links lead in a circle, or the working directory is gone.
    """
    if is_remote(uri):
        return uri
    try:
        return str(local_path(uri).resolve())
    except RuntimeError as error:
        raise UsageError(f"{uri}: its links lead in a circle; take them away") from error
    except FileNotFoundError as error:
        raise UsageError("the working directory was removed: change to one that is there") from error
