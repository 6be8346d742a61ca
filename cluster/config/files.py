"""A config's file, and those that it extends, each read once: bounded in size, in number and in depth.

`package:imagefolder/gpus-8.yaml` is one that comes with foldtrain, wherever that is installed.
"""

from __future__ import annotations

import functools
import stat
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from cluster.config.errors import Layer, closest
from cluster.config.fields import annotations_at, is_number, is_text
from cluster.config.run import RunConfig
from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.storage.places import place
from data_pipeline.text import yaml_dialect

MOST_FILES = 100
"""That one config may extend."""
PACKAGED = "package:"
"""How the names of configs begin that come with foldtrain."""
_PIPES = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")
"""Where a shell shows a command's output as a file: <(envsubst < config.yaml)."""


def file_layers(path: str, roots: Sequence[type[BaseModel]] = (RunConfig,)) -> list[Layer]:
    """A file and those that it extends, in the order in which they apply. Each applies once, at its first place.

    Args:
        path: of the file.
        roots: what it may be as a whole.

    Raises:
        UsageError: if a file is missing, is no YAML, or too large, or if files extend each other in a circle.
    """
    found: dict[str, Layer] = {}
    _gather(path if path.startswith(_PIPES) else _named(path), (), found, roots)
    return list(found.values())


def packaged(name: str) -> str:
    """Path of a config that comes with foldtrain, by its name in configs/: `imagefolder/gpus-8.yaml`.

    Raises:
        UsageError: if there is none of that name; it says what there is.
    """
    there = packaged_names()
    if name not in _packaged_files():
        near = closest(name, there)
        hint = f"did you mean {PACKAGED}{near}?" if near else f"there are {', '.join(there)}"
        raise UsageError(f"{PACKAGED}{name:.200} is no config that comes with foldtrain; {hint}")
    return str(resources.files("configs") / name)


TARGETS = "cluster/"
"""How the names of packaged files begin that say where jobs run, and are no configs of runs."""


@functools.cache
def packaged_names() -> list[str]:
    """The configs of runs that come with foldtrain."""
    return [name for name in _packaged_files() if not name.startswith(TARGETS)]


@functools.cache
def packaged_targets() -> list[str]:
    """The names of the targets that come with foldtrain."""
    return [name.removeprefix(TARGETS).removesuffix(".yaml") for name in _packaged_files() if name.startswith(TARGETS)]


@functools.cache
def _packaged_files() -> list[str]:
    root = Path(str(resources.files("configs")))
    return sorted(file.relative_to(root).as_posix() for file in root.rglob("*.yaml"))


def _named(name: str) -> str:
    return packaged(name.removeprefix(PACKAGED)) if name.startswith(PACKAGED) else place(name)


def resolve_scalars(value: Any, path: tuple[str, ...] = (), roots: Sequence[type[BaseModel]] = (RunConfig,)) -> Any:
    """A value of YAML as its field takes it: `2012` is text where the field is text, and a number elsewhere.

    Raises:
        UsageError: if a truth value stands where a number belongs, which Python would take for 1 or 0.
    """
    if isinstance(value, yaml_dialect.Written):
        kinds = annotations_at(path, roots)
        if any(is_text(kind) for kind in kinds):
            return value.text
        if isinstance(value.value, bool) and kinds and all(is_number(kind) for kind in kinds):
            raise UsageError(f"{'.'.join(path)}: has to be a number, not {value.text}")
        return value.value
    if isinstance(value, Mapping):
        return {key: resolve_scalars(item, (*path, str(key)), roots) for key, item in value.items()}
    if isinstance(value, list):
        return [resolve_scalars(item, (*path, str(at)), roots) for at, item in enumerate(value)]
    return value


def first_line(error: Exception) -> str:
    """What is wrong with a text that is no YAML, in one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        return error.problem
    return str(error).partition("\n")[0]


def _gather(path: str, parents: tuple[str, ...], found: dict[str, Layer], roots: Sequence[type[BaseModel]]) -> None:
    """Add a file to `found`, after those that it extends."""
    identity = storage.absolute(path)
    if identity in parents:
        chain = " → ".join([*parents[parents.index(identity) :], identity])
        raise UsageError(f"{path} extends itself: {chain}; take one of these `extends` out")
    if identity in found:
        return
    if len(found) + len(parents) >= MOST_FILES:
        raise UsageError(f"{parents[0]} extends more than {MOST_FILES} files; write them as one")
    values = _read(path, parents)
    extends = values.pop("extends", None) or []
    if isinstance(extends, str):
        extends = [extends]
    if not isinstance(extends, list) or not all(isinstance(name, str) for name in extends):
        raise UsageError(f"{path}: extends: give a file name or a list of them, not {extends!r:.200}")
    for name in extends:
        _gather(_beside(path, name), (*parents, identity), found, roots)
    try:
        found[identity] = (path, resolve_scalars(values, roots=roots))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _beside(path: str, name: str) -> str:
    """The file that `name` means in the file at `path`."""
    try:
        name = _named(name)
    except UsageError as error:
        raise UsageError(f"{path}: extends: {error}") from None
    if storage.is_remote(name) or name.startswith("/"):
        return name
    folder, slash, _ = path.rpartition("/")
    return f"{folder}{slash}{name}"


def _read(path: str, parents: tuple[str, ...]) -> dict[str, Any]:
    by = f", which {parents[-1]} extends," if parents else ""
    try:
        text = _read_bounded(path)
    except FileNotFoundError:
        raise UsageError(f"config file {path}{by} does not exist{_similar_file(path)}") from None
    except OSError as error:
        raise UsageError(f"config file {path}{by} cannot be read: {error.strerror or error}") from error
    if len(text) > yaml_dialect.MOST_BYTES:
        raise UsageError(f"config file {path}{by} has more than {yaml_dialect.MOST_BYTES:,} bytes: is it a config?")
    try:
        values = yaml_dialect.parse_written(text)
    except yaml.YAMLError as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        line = f" line {mark.line + 1}" if mark else ""
        raise UsageError(f"{path}{line}: not valid YAML: {first_line(error)}") from None
    if not isinstance(values, dict):
        shown = "empty" if values is None else f"{resolve_scalars(values)!r:.200}"
        raise UsageError(f"{path}: a config is a set of sections, not {shown}")
    return values


def _read_bounded(path: str) -> bytes:
    """A file's first bytes, one more than a config may have."""
    if storage.is_remote(path):
        return storage.read_range(path, 0, min(storage.size(path), yaml_dialect.MOST_BYTES + 1))
    mode = Path(path).stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(0, "it is a folder", path)
    if not stat.S_ISREG(mode) and not (stat.S_ISFIFO(mode) and path.startswith(_PIPES)):
        raise OSError(0, "it is a pipe or a device, no file", path)
    with Path(path).open("rb") as file:
        return file.read(yaml_dialect.MOST_BYTES + 1)


def _similar_file(path: str) -> str:
    if storage.is_remote(path):
        return ""
    folder = storage.local_path(path).parent
    names = {file.stem: file for file in folder.glob("*.y*ml")} if folder.is_dir() else {}
    near = closest(storage.local_path(path).stem, list(names))
    return f"; did you mean {names[near]}?" if near else f" (looked in {folder.resolve()})"
