"""All that a folder holds which is a source, on a disk or in object storage: files, folders, and what is left out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.sources.skipped import Skipped
from data_pipeline.storage.local_listing import check_readable, kind_of, scan, shown


@dataclass(frozen=True)
class Tree:
    """A folder's listing."""

    files: dict[str, int]
    """Bytes of each file by relative name, sorted."""
    folders: tuple[str, ...]
    """Relative names of all folders, with or without files in them, sorted. Object storage knows empty ones only by
    an object of their own."""
    skipped: Skipped
    """What is hidden or belongs to an operating system."""
    guarded: frozenset[str]
    """Files that not everybody may read."""


def list_tree(uri: str) -> Tree:
    """List a folder; nothing is in it if it is not there.

    Raises:
        UsageError: if something in it cannot be read, is neither a file nor a folder, is a link to nothing or in a
            circle, or has a name that cannot be spelled; it names it.
    """
    skipped = Skipped()
    guarded: set[str] = set()
    listed = _list_remote(uri, skipped) if storage.is_remote(uri) else _list_local(uri, skipped, guarded)
    files = {name: size for name, size in listed.items() if not name.endswith("/")}
    folders = {name.rstrip("/") for name in listed if name.endswith("/")}
    for name in files:
        folders.update(_folders_of(name))
    return Tree(dict(sorted(files.items())), tuple(sorted(folders)), skipped, frozenset(guarded))


def check_all_readable(uri: str, tree: Tree, names: Iterable[str]) -> None:
    """See that this user may read files of a folder; what is remote is asked for when it is read.

    Raises:
        UsageError: if not; it names the first that cannot be read.
    """
    for name in sorted(tree.guarded.intersection(names)):
        check_readable(f"{storage.local_path(uri)}/{name}")


def _folders_of(name: str) -> set[str]:
    parts = name.split("/")[:-1]
    return {"/".join(parts[:depth]) for depth in range(1, len(parts) + 1)}


def _list_local(uri: str, skipped: Skipped, guarded: set[str]) -> dict[str, int]:
    root = storage.local_path(uri)
    listed = {}
    for found in scan(root, strict=True, is_skipped=skipped.takes):
        check_name(uri, found.name)
        if not found.is_folder and not found.is_file:
            raise UsageError(
                f"{root / found.name} is {kind_of(found.status)}, neither a file nor a folder: move it out of {uri}"
            )
        listed[found.name + "/" * found.is_folder] = found.status.st_size
        if found.is_file and not found.is_for_all:
            guarded.add(found.name)
    return listed


def _list_remote(uri: str, skipped: Skipped) -> dict[str, int]:
    listed = {}
    for name, entry in storage.entries(uri, folders=True).items():
        if name.startswith("/") or "//" in name:
            raise UsageError(f"{uri}/{name} has an empty folder name in its key, which no path can have: rename it")
        if name.endswith("/") and entry.bytes and uri.startswith("s3"):
            raise UsageError(f"{uri}/{name} holds {entry.bytes} bytes, but its key is that of a folder: rename it")
        if not skipped.takes(name.rstrip("/")):
            listed[name] = entry.bytes
    return listed


def check_name(where: str, name: str) -> None:
    """See that a name is text.

    Raises:
        UsageError: if it is not; it shows its bytes.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"{where} holds {shown(name)}, whose name is no UTF-8: rename it (convmv -f latin1 -t utf8 does it for a "
            "folder)"
        ) from None
