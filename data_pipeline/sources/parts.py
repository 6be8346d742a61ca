"""A source of several files: which they are, and what their images and labels have in common."""

from __future__ import annotations

import fnmatch
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from pydantic import BaseModel

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.sources.label_text import is_number
from data_pipeline.sources.skipped import OTHER_ENDING, Skipped
from data_pipeline.sources.tree import check_all_readable, list_tree
from data_pipeline.storage.local_disk import disk_errors

WHERE = "see data.source in the config"
MAX_CLASSES = 1_000_000
"""A greater label is an id of something else, or damage."""
LISTING_THREADS, LOCAL_THREADS = 16, 4
"""Parts of a source that are listed at a time, where they wait for storage and where for the processor. The listings of
so many are in memory: a tar of 10,000 images and their labels takes some 8 MB."""

_Part = TypeVar("_Part")
_Listing = TypeVar("_Listing")

_COMPRESSED = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".tzst", ".lz4", ".zip", ".7z")
"""Endings of compressed files, whose parts cannot be read by themselves."""


class Parts(NamedTuple):
    """The files of a source."""

    root: str
    """URI of the folder that they lie in."""
    names: list[str]
    """Relative to it."""
    skipped: Skipped
    """What lies in the folder beside them."""


def find_parts(path: str, suffix: str) -> Parts:
    """The files that a path stands for.

    Args:
        path: a file; a folder, whose files with the suffix are taken at any depth; a pattern with braces; or one with
            * in the file name.
        suffix: ".tar" or ".parquet".

    Raises:
        UsageError: if there are none, or a folder holds compressed ones or something that cannot be read.
    """
    if "{" in path:
        return _expand_braces(path)
    folder, _, name = path.rpartition("/")
    if "*" in name:
        return _match(path, folder, name)
    if name.lower().endswith(suffix) and not _is_folder(path):
        return _with_names(path, folder, [name] if storage.exists(path) else [], Skipped())
    return _below(path, suffix)


def _below(path: str, suffix: str) -> Parts:
    """The files with the suffix in a folder."""
    tree = list_tree(path)
    found = [name for name in tree.files if name.lower().endswith(suffix)]
    for name in tree.files.keys() - set(found):
        if suffix == ".tar" and name.lower().endswith(_COMPRESSED):
            raise UsageError(
                f"{path} holds {name}, which is compressed: unpack it to a plain tar first, or move it away"
            )
        tree.skipped.add(OTHER_ENDING, name)
    if not found and storage.exists(path):
        raise UsageError(f"{path} holds no {suffix} files: {WHERE}")
    check_all_readable(path, tree, found)
    return _with_names(path, path, found, tree.skipped)


def _match(path: str, folder: str, pattern: str) -> Parts:
    skipped = Skipped()
    matching = [name for name in storage.list_names(folder or ".") if fnmatch.fnmatchcase(name, pattern)]
    return _with_names(path, folder, [name for name in matching if not skipped.takes(name)], skipped)


def _with_names(path: str, folder: str, names: list[str], skipped: Skipped) -> Parts:
    if not names:
        raise UsageError(f"there is no file {path}: {WHERE}")
    return Parts(_absolute(folder, path), names, skipped)


def _absolute(folder: str, path: str) -> str:
    if folder.endswith(":/"):
        raise UsageError(f"{path} names no bucket and file: {WHERE}")
    return storage.absolute(folder or ("/" if path.startswith("/") else "."))


def _expand_braces(pattern: str) -> Parts:
    from braceexpand import braceexpand

    folder = pattern[: pattern.index("{")].rpartition("/")[0]
    try:
        paths = list(braceexpand(pattern))
    except ValueError as error:  # the braces do not match
        raise UsageError(f"{pattern} is no pattern of files ({error}): {WHERE}") from error
    names = sorted({path[len(folder) :].lstrip("/") for path in paths})
    return Parts(_absolute(folder, pattern), names, Skipped())


def _is_folder(path: str) -> bool:
    if storage.is_remote(path):
        return False
    local = storage.local_path(path)
    with disk_errors(local):
        return local.is_dir()


def stamp_files(config: BaseModel, root: str, names: Sequence[str]) -> str:
    """Hex digest of what is asked for of which files: their names, lengths, times and ETags. None of them is read.

    Args:
        config: of the source.
        root: URI of the folder that they lie in.
        names: relative to it; an empty one is the file itself that `root` is then.
    """
    found = in_parallel(root, lambda name: _stat(root, name), names)
    files = [[name, *stat] for name, stat in zip(names, found, strict=True)]
    return storage.fingerprint([config.model_dump(mode="json"), root, files])


def _stat(root: str, name: str) -> tuple[int, float | None, str]:
    try:
        found = storage.stat(storage.join(root, name) if name else root)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):  # its listing says so
        return -1, None, ""
    return found.bytes, found.modified, found.etag


def in_parallel(root: str, function: Callable[[_Part], _Listing], parts: Iterable[_Part]) -> Iterator[_Listing]:
    """The listing of each part, in their order; no more are held than are listed at a time.

    Args:
        root: where they lie, which decides how many are listed at a time.
        function: lists one.
        parts: all of them.
    """
    threads = LISTING_THREADS if storage.is_remote(root) else LOCAL_THREADS
    with ThreadPoolExecutor(threads, thread_name_prefix="listing") as pool:
        ahead: deque[Future[_Listing]] = deque()
        try:
            for part in parts:
                ahead.append(pool.submit(function, part))
                if len(ahead) >= threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def name_classes(where: str, classes: tuple[str, ...] | None, highest: int) -> tuple[str, ...]:
    """The names of the classes: those that are known, or else the labels themselves.

    Args:
        where: the source, for messages.
        classes: their names, if they are known.
        highest: of the labels; -1 if there are none.

    Raises:
        UsageError: if a label has no name, or is too large to be one.
    """
    if highest < 0:
        raise UsageError(f"{where} holds no images")
    count = highest + 1
    if count > MAX_CLASSES:
        raise UsageError(f"{where} has the label {count - 1}, which is too large to be a class: {WHERE}")
    if classes is None:
        return tuple(str(label) for label in range(count))
    if len(classes) < count:
        raise UsageError(f"{where} has labels up to {count - 1}, but {len(classes)} classes are named")
    return classes


def check_label(where: str, label: object) -> int:
    """A label, once it is known to be one.

    Raises:
        UsageError: if it is no whole number from 0 on; it says where.
    """
    if isinstance(label, bytes | str) and is_number(label):
        return int(label)
    if isinstance(label, bool) or not isinstance(label, int) or label < 0:
        raise UsageError(f"{where} has the label {label!r}, which is no whole number from 0 on")
    return label
