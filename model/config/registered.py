"""Sections of the config that are told apart by `kind`, and what installed packages add to them by entry points."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import entry_points
from typing import Annotated, Any, TypeVar, Union

from pydantic import BaseModel, Discriminator, Tag

Sort = TypeVar("Sort")


def kind_of(family: Any) -> str:
    """The name of a family in the config: the default of its config's `kind`."""
    return str(family.config.model_fields["kind"].default)


def joined(own: Iterable[Sort], group: str, sorts: tuple[type[Sort], ...]) -> tuple[Sort, ...]:
    """Foldtrain's own families, then those of the entry points of a group.

    Raises:
        ValueError: if an entry point is no family, or two families have one name; it names the entry point.
    """
    found = list(own)
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        family = point.load()
        if not isinstance(family, sorts):
            raise ValueError(f"entry point {point.name} = {point.value} of {group} is no family")  # noqa: TRY004
        if any(type(other) is type(family) and kind_of(other) == kind_of(family) for other in found):
            raise ValueError(f"entry point {point.name} = {point.value} of {group}: {kind_of(family)} is there already")
        found.append(family)
    return tuple(found)


def choice_of(sections: Iterable[type[BaseModel]]) -> Any:
    """The type of a config field that takes any of these sections, told apart by `kind`; the first if none is given."""
    kinds = {str(section.model_fields["kind"].default): section for section in sections}
    first, *others = kinds
    if not others:
        return kinds[first]

    def kind(value: Any) -> Any:
        found = value.get("kind", first) if isinstance(value, dict) else getattr(value, "kind", None)
        return found if isinstance(found, str) else first

    tagged = tuple(Annotated[section, Tag(name)] for name, section in kinds.items())
    return Annotated[Union[tagged], Discriminator(kind)]  # noqa: UP007 - a union of as many as there are


def named(name: str) -> Any:
    """What "module:attribute" names, imported."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
