"""Names of places: a path of this machine, or anything that fsspec opens (s3://bucket/folder)."""

from __future__ import annotations

from pathlib import Path


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
