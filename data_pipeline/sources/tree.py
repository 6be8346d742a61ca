"""All that a folder holds which is a source, on a disk or in object storage: files, folders, and what is left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

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


class Node(NamedTuple):
    """A file or folder of a listing."""

    name: str
    """Relative to the folder that was listed."""
    is_folder: bool
    bytes: int
    modified: float | None
    """When it was written, in seconds since 1970."""
    is_guarded: bool = False
    """Whether not everybody may read it."""


def iter_tree(uri: str, skipped: Skipped) -> Iterator[Node]:
    """What a folder holds, one after another, so that not all is held at once; nothing if it is not there.

    What lies directly in it comes first on a disk; on S3 all that lies in one of its folders comes together.

    Args:
        uri: the folder.
        skipped: counts what is hidden or belongs to an operating system.

    Raises:
        UsageError: if something in it cannot be read, is neither a file nor a folder, is a link to nothing or in a
            circle, or has a name that cannot be spelled; it names it.
    """
    return _iter_remote(uri, skipped) if storage.is_remote(uri) else _iter_local(uri, skipped)


def list_tree(uri: str) -> Tree:
    """List a folder, as `iter_tree`."""
    skipped = Skipped()
    sizes: dict[str, int] = {}
    folders: set[str] = set()
    guarded: set[str] = set()
    for node in iter_tree(uri, skipped):
        folders.update(_folders_of(f"{node.name}/" if node.is_folder else node.name))
        if not node.is_folder:
            sizes[node.name] = node.bytes
        if node.is_guarded:
            guarded.add(node.name)
    return Tree(dict(sorted(sizes.items())), tuple(sorted(folders)), skipped, frozenset(guarded))


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


def _iter_local(uri: str, skipped: Skipped) -> Iterator[Node]:
    root = storage.local_path(uri)
    for found in scan(root, strict=True, is_skipped=skipped.takes):
        check_name(uri, found.name)
        if not found.is_folder and not found.is_file:
            raise UsageError(
                f"{root / found.name} is {kind_of(found.status)}, neither a file nor a folder: move it out of {uri}"
            )
        status, is_guarded = found.status, found.is_file and not found.is_for_all
        yield Node(found.name, found.is_folder, status.st_size, status.st_mtime, is_guarded)


def _iter_remote(uri: str, skipped: Skipped) -> Iterator[Node]:
    for name, entry in storage.iter_entries(uri):
        if name.startswith("/") or "//" in name:
            raise UsageError(f"{uri}/{name} has an empty folder name in its key, which no path can have: rename it")
        if name.endswith("/") and entry.bytes and uri.startswith("s3"):
            raise UsageError(f"{uri}/{name} holds {entry.bytes} bytes, but its key is that of a folder: rename it")
        plain = name.rstrip("/")
        if not skipped.takes(plain):
            yield Node(plain, plain != name, entry.bytes, entry.modified)


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
