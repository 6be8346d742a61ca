"""A source of several files: which they are, and what their images and labels have in common."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from data_pipeline import storage
from data_pipeline.errors import UsageError

WHERE = "see data.source in the config"
MAX_CLASSES = 1_000_000
"""A greater label is an id of something else, or damage."""


def find_parts(path: str, suffix: str) -> tuple[str, list[str]]:
    """The folder, and the files below it, that a path stands for.

    Args:
        path: a file; a folder, whose files with the suffix are taken at any depth; a pattern with braces; or one with
            * in the file name.
        suffix: ".tar" or ".parquet".

    Returns:
        The folder's absolute URI, and the names of the files relative to it.

    Raises:
        UsageError: if there are none.
    """
    if "{" in path:
        return _expand_braces(path)
    folder, _, name = path.rpartition("/")
    if "*" in name:
        return _with_names(path, folder, [part for part in _names(folder) if fnmatch.fnmatchcase(part, name)])
    if name.endswith(suffix) and not _is_folder(path):
        return _with_names(path, folder, [name] if storage.exists(path) else [])
    found = [part for part in storage.walk(path) if part.endswith(suffix) and not _is_hidden(part)]
    if not found and storage.exists(path):
        raise UsageError(f"{path} holds no {suffix} files: {WHERE}")
    return _with_names(path, path, found)


def _with_names(path: str, folder: str, names: list[str]) -> tuple[str, list[str]]:
    if not names:
        raise UsageError(f"there is no file {path}: {WHERE}")
    return _absolute(folder, path), names


def _absolute(folder: str, path: str) -> str:
    if folder.endswith(":/"):
        raise UsageError(f"{path} names no bucket and file: {WHERE}")
    return storage.absolute(folder or ("/" if path.startswith("/") else "."))


def _expand_braces(pattern: str) -> tuple[str, list[str]]:
    from braceexpand import braceexpand

    folder = pattern[: pattern.index("{")].rpartition("/")[0]
    try:
        paths = list(braceexpand(pattern))
    except ValueError as error:  # the braces do not match
        raise UsageError(f"{pattern} is no pattern of files ({error}): {WHERE}") from error
    return _absolute(folder, pattern), sorted({path[len(folder) :].lstrip("/") for path in paths})


def _names(folder: str) -> list[str]:
    return [name for name in storage.list_names(folder or ".") if not _is_hidden(name)]


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _is_folder(path: str) -> bool:
    return not storage.is_remote(path) and storage.local_path(path).is_dir()


def name_classes(where: str, classes: tuple[str, ...] | None, labels: Sequence[int]) -> tuple[str, ...]:
    """The names of the classes: those that are known, or else the labels themselves.

    Raises:
        UsageError: if a label has no name, or is too large to be one.
    """
    if not labels:
        raise UsageError(f"{where} holds no images")
    count = max(labels) + 1
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
    if isinstance(label, bytes | str) and label.strip().isdigit():
        return int(label)
    if isinstance(label, bool) or not isinstance(label, int) or label < 0:
        raise UsageError(f"{where} has the label {label!r}, which is no whole number from 0 on")
    return label
