"""A config from its file: `extends:`, then the file, then `key=value` from the command line; checked as a whole.

    extends: base.yaml     # or a list, each over the one before; relative to this file. Sections are merged key by
                           # key, all else is replaced. A file that several of them extend applies once, first.
    generator:
      trainer: {global_batch: 256}

Strings are taken as they are written: there is no interpolation, so that a resolved config means the same wherever it
is loaded (the shell has `run=$SCRATCH/run`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cluster import yaml_dialect
from cluster.config import RunConfig
from cluster.config_errors import COMMAND_LINE, Layer, closest, usage_error
from data_pipeline import storage
from data_pipeline.errors import UsageError


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The config in a file at any URI, with `a.b.c=value` overrides (values are YAML).

    Raises:
        UsageError: if a file is missing or is not YAML, if files extend each other in a circle, or if a key or value
            does not fit the schema. It names the file, the dotted path, and the likely meant key.
    """
    # A file that several others extend applies once, at its first place: so one config may extend two of a kind.
    layers = list({storage.absolute(name): (name, values) for name, values in _file_layers(str(path), ())}.values())
    if overrides:
        layers.append((COMMAND_LINE, parse_overrides(overrides)))
    values: Mapping[str, Any] = {}
    for _, layer in layers:
        values = merge(values, layer)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise usage_error(str(path), error, layers) from None


def resolved_yaml(config: RunConfig) -> str:
    """The whole config, every default written out, as YAML that loads to an equal config."""
    return yaml_dialect.dump(config.model_dump(mode="json"))


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `over` in place of its own. Sections are merged; lists and values are replaced.

    A section of another `kind` replaces the one below it: the keys of the old kind would be unknown to the new one.
    """
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping) and value.get("kind") in {None, below.get("kind")}:
            merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """The values that `a.b.c=value` arguments set, as nested sections.

    Raises:
        UsageError: if an argument has no `=` or no key, or its value is not YAML.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    values = OmegaConf.create()
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not all(key.split(".")) or key != key.strip():
            raise UsageError(f"{override!r} is no override: write key=value, for instance generator.trainer.steps=100")
        try:
            OmegaConf.update(values, key, yaml_dialect.parse(text), merge=True, force_add=True)
        except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError) as error:
            raise UsageError(f"{override!r} cannot be read: {_first_line(error)}; quote it for the shell") from None
    nested = OmegaConf.to_container(values, resolve=False)
    assert isinstance(nested, dict)
    return {str(key): value for key, value in nested.items()}


def _first_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        return error.problem
    return str(error).partition("\n")[0]


def _file_layers(path: str, parents: tuple[str, ...]) -> list[Layer]:
    """A file and those that it extends, in the order in which they apply."""
    identity = storage.absolute(path)
    if identity in parents:
        chain = " → ".join([*parents[parents.index(identity) :], identity])
        raise UsageError(f"{path} extends itself: {chain}; take one of these `extends` out")
    values = _read(path, parents)
    extends = values.pop("extends", None) or []
    if isinstance(extends, str):
        extends = [extends]
    if not isinstance(extends, list) or not all(isinstance(name, str) for name in extends):
        raise UsageError(f"{path}: extends: give a file name or a list of them, not {extends!r}")
    layers = [layer for name in extends for layer in _file_layers(_beside(path, name), (*parents, identity))]
    return [*layers, (path, values)]


def _beside(path: str, name: str) -> str:
    """The file that `name` means in the file at `path`."""
    if storage.is_remote(name) or name.startswith("/"):
        return name
    folder, slash, _ = path.rpartition("/")
    return f"{folder}{slash}{name}"


def _read(path: str, parents: tuple[str, ...]) -> dict[str, Any]:
    by = f", which {parents[-1]} extends," if parents else ""
    try:
        text = storage.read_bytes(path)
    except FileNotFoundError:
        raise UsageError(f"config file {path}{by} does not exist{_similar_file(path)}") from None
    except OSError as error:
        raise UsageError(f"config file {path}{by} cannot be read: {error.strerror or error}") from error
    try:
        values = yaml_dialect.parse(text)
    except yaml.YAMLError as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        line = f" line {mark.line + 1}" if mark else ""
        raise UsageError(f"{path}{line}: not valid YAML: {_first_line(error)}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path}: a config is a set of sections, not {'empty' if values is None else repr(values)}")
    return values


def _similar_file(path: str) -> str:
    if storage.is_remote(path):
        return ""
    folder = storage.local_path(path).parent
    names = {file.stem: file for file in folder.glob("*.y*ml")} if folder.is_dir() else {}
    near = closest(storage.local_path(path).stem, list(names))
    return f"; did you mean {names[near]}?" if near else f" (looked in {folder.resolve()})"
