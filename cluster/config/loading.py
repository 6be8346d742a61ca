"""A config from its file: `extends:`, then the file, then `key=value` from the command line; checked as a whole.

    extends: base.yaml     # or a list, each over the one before; relative to this file, or package:NAME for one that
                           # comes with foldtrain. Sections are merged key by key, all else is replaced. A file that
                           # several of them extend applies once, first.
    generator:
      trainer: {global_batch: 256}

Strings are taken as they are written: there is no interpolation, so that a resolved config means the same wherever it
is loaded (the shell has `run=$SCRATCH/run`, and `<(envsubst < config.yaml)` for a file). Where a field is text, an
override is that text to the letter: `run='my #1 run'`, `data.source.path=2012`; elsewhere it is YAML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cluster.config.errors import COMMAND_LINE, usage_error
from cluster.config.fields import annotations_at, is_text
from cluster.config.files import file_layers, first_line, resolve_scalars
from cluster.config.run import RunConfig
from data_pipeline.errors import UsageError
from data_pipeline.storage.places import is_utf8
from data_pipeline.text import yaml_dialect


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The config in a file at any URI, with `a.b.c=value` overrides (values are YAML).

    Raises:
        UsageError: if a file is missing or is not YAML, if files extend each other in a circle, or if a key or value
            does not fit the schema. It names the file, the dotted path, and the likely meant key.
    """
    layers = file_layers(str(path))
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
        if isinstance(value, Mapping) and isinstance(below, Mapping) and value.get("kind") in (None, below.get("kind")):
            merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """The values that `a.b.c=value` arguments set, as nested sections.

    Raises:
        UsageError: if an argument has no `=` or no key, or its value is not YAML.
    """
    values: dict[str, Any] = {}
    for override in overrides:
        if not is_utf8(override):
            raise UsageError(f"{override[:200]!r} is not UTF-8: a config cannot hold it; rename what it names")
        key, separator, text = override.partition("=")
        path = tuple(key.split("."))
        if not separator or not all(path) or key != key.strip() or len(path) > yaml_dialect.DEEPEST:
            raise UsageError(
                f"{override[:200]!r} is no override: write key=value, for instance generator.trainer.steps=100"
            )
        nested = _override_value(override, path, text)
        for name in reversed(path):
            nested = {name: nested}
        values = merge(values, nested)
    return values


def _override_value(override: str, path: tuple[str, ...], text: str) -> Any:
    """What an override sets: the text as it is where its field is text, otherwise the YAML that it is.

    Quotes around a text go, as `null` does where a field may have it.
    """
    kinds = [is_text(annotation) for annotation in annotations_at(path)]
    is_list = text.startswith(("[", "{")) and not all(kinds)
    if any(kinds) and not is_list and not _is_quoted(text) and text not in {"null", "Null", "NULL"}:
        return text
    try:
        value = yaml_dialect.parse_written(text)
        at = yaml_dialect.comment_in(text)
    except yaml.YAMLError as error:
        if any(kinds) and not is_list:
            return text  # a quote at each end, and one within
        raise UsageError(f"{override[:200]!r} cannot be read: {first_line(error)}{_quote_hint(text)}") from None
    if at is not None:
        raise UsageError(
            f"{override[:200]!r} cannot be read: {text[at:]!r} is a comment in YAML; put the value in quotes"
        )
    return resolve_scalars(value, path)


def _is_quoted(text: str) -> bool:
    return len(text) > 1 and text[0] == text[-1] and text[0] in "'\""


def _quote_hint(text: str) -> str:
    if " #" in text:
        return "; what follows a blank and # is a comment in YAML: put that text in quotes"
    return "; quote it for the shell"
