"""From `--target NAME|FILE` to a target: its file is found, read, checked, and opened by its kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from cluster.config.errors import Layer, closest, usage_error
from cluster.config.files import PACKAGED, TARGETS, file_layers, packaged_targets
from cluster.config.loading import merge
from cluster.targets import KINDS
from cluster.targets.config import TargetKind, TargetSection
from cluster.targets.target import Target
from data_pipeline.errors import UsageError
from data_pipeline.text import yaml_dialect

ENTRY_POINTS = "foldtrain.targets"
"""Group of entry points by which a package adds kinds: each names a `TargetKind`, by its kind."""
DEFAULT = "local"


def load_target(name: str, *, address: str | None = None) -> tuple[str, TargetSection]:
    """The name of a target and its config.

    Args:
        name: of a target, or a YAML file (a path, or a URI).
        address: in place of the config's `address`.

    Raises:
        UsageError: if there is no such target, or its config is wrong; it names the file and the key.
    """
    is_file = "/" in name or name.endswith((".yaml", ".yml"))
    path = name if is_file else _find(name)
    roots: Sequence[type[BaseModel]] = [kind.section for kind in KINDS.values()]
    layers = file_layers(path, roots)
    if address is not None:
        layers.append(("--address", {"address": address}))
    label = Path(name).name.rpartition(".")[0] if is_file else name
    return label, _section(path, layers)


def section_from(values: Mapping[str, Any], where: str) -> TargetSection:
    """The config of a target as it was recorded.

    Raises:
        UsageError: if it is none; it says where it was found.
    """
    return _section(where, [(where, values)])


def open_target(name: str, section: TargetSection) -> Target:
    """The target of a config. Nothing is started, and nobody is asked.

    Raises:
        UsageError: if the config lacks what its kind needs.
    """
    return kind_named(section.kind, name).open(name, section)


def resolved_target(section: TargetSection) -> str:
    """The whole config, every default written out, as YAML."""
    return yaml_dialect.dump(section.model_dump(mode="json"))


def kind_named(kind: Any, where: str) -> TargetKind:
    """A kind of targets, of foldtrain or of another package.

    Raises:
        UsageError: if there is none.
    """
    if isinstance(kind, str) and kind in KINDS:
        return KINDS[kind]
    added = {point.name: point for point in metadata.entry_points(group=ENTRY_POINTS)}
    if isinstance(kind, str) and kind in added:
        found = added[kind].load()
        if not isinstance(found, TargetKind):
            raise UsageError(f"the entry point {kind} of {ENTRY_POINTS} is no TargetKind; see docs/extending.md")
        return found
    known = [*KINDS, *added]
    if kind is None:
        raise UsageError(f"{where}: kind is missing; choose from {', '.join(known)}")
    near = closest(str(kind), known)
    hint = f"did you mean {near}?" if near else f"choose from {', '.join(known)}"
    raise UsageError(f"{where}: kind: {str(kind)[:80]!r} is no kind of target; {hint}")


def own_folder() -> Path:
    """Where a user's own targets are."""
    return Path.home() / ".config" / "foldtrain" / "cluster"


def _find(name: str) -> str:
    there = packaged_targets()
    if name in there:
        return f"{PACKAGED}{TARGETS}{name}.yaml"
    own = own_folder() / f"{name}.yaml"
    if own.is_file():
        return str(own)
    known = sorted({*there, *(path.stem for path in own_folder().glob("*.yaml"))})
    near = closest(name, known)
    hint = f"did you mean {near}?" if near else f"choose from {', '.join(known)}, or name a file"
    raise UsageError(f"--target {name[:80]}: there is no such target (looked in {own_folder()}, too); {hint}")


def _section(where: str, layers: Sequence[Layer]) -> TargetSection:
    values: Mapping[str, Any] = {}
    for _, layer in layers:
        values = merge(values, layer)
    section = kind_named(values.get("kind"), where).section
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise usage_error(where, error, layers, section) from None
