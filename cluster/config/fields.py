"""What the types of the config say of its fields: which may stand where, which are text, which are places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel

from cluster.config.run import RunConfig
from data_pipeline.storage.places import PlaceRules, rules_of

AnySection = TypeVar("AnySection", bound=BaseModel)


def sections_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for argument in get_args(annotation) for section in sections_in(argument)]


def annotations_at(path: Sequence[str], roots: Sequence[type[BaseModel]] = (RunConfig,)) -> list[Any]:
    """The types that the value at a path may have: one for each kind of section with such a key; none if unknown.

    Args:
        path: its keys, from the root of the file.
        roots: what the file as a whole may be.
    """
    found: list[Any] = list(roots)
    for key in path:
        fields = [section.model_fields[key] for section in _sections(found) if key in section.model_fields]
        items = [item for annotation in found if key.isdigit() for item in _items(annotation)]
        values = [get_args(annotation)[1] for annotation in found if get_origin(annotation) is dict]
        found = [field.annotation for field in fields] + items + values
    return found


def is_text(annotation: Any) -> bool:
    """Whether a field holds text of any kind, or null."""
    if get_origin(annotation) in {Union, UnionType}:
        return all(is_text(part) for part in get_args(annotation) if part is not type(None))
    base = get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation
    return base is str


def is_number(annotation: Any) -> bool:
    """Whether a field holds a number, or null."""
    if get_origin(annotation) in {Union, UnionType}:
        return all(is_number(part) for part in get_args(annotation) if part is not type(None))
    base = get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation
    return base in {int, float}


def map_places(section: AnySection, change: Callable[[str, str], str], prefix: str = "") -> AnySection:
    """A section with `change(dotted name, place)` in place of every place in it and below it."""
    update = {
        name: _map_value(getattr(section, name), rules_of(field.annotation, field.metadata), change, prefix + name)
        for name, field in type(section).model_fields.items()
    }
    return section.model_copy(update=update)


def _map_value(value: Any, rules: PlaceRules | None, change: Callable[[str, str], str], name: str) -> Any:
    if isinstance(value, BaseModel):
        return map_places(value, change, f"{name}.")
    if isinstance(value, tuple | list):
        return type(value)(_map_value(item, rules, change, f"{name}.{at}") for at, item in enumerate(value))
    if isinstance(value, dict):
        return {key: _map_value(item, rules, change, f"{name}.{key}") for key, item in value.items()}
    return change(name, value) if rules and isinstance(value, str) else value


def _sections(annotations: Sequence[Any]) -> list[type[BaseModel]]:
    return [section for annotation in annotations for section in sections_in(annotation)]


def _items(annotation: Any) -> list[Any]:
    """The types of the items of lists."""
    if get_origin(annotation) in {tuple, list}:
        return [item for item in get_args(annotation) if item is not Ellipsis]
    return [item for part in get_args(annotation) for item in _items(part)]
