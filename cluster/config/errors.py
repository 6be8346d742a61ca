"""Says what is wrong with a config in the words of the config: dotted path, where it was set, what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cluster.config.fields import sections_in
from cluster.config.run import RunConfig
from data_pipeline.errors import UsageError

COMMAND_LINE = "the command line"
LONGEST_SHOWN = 200
"""Most characters of a value that a message repeats."""

Layer = tuple[str, Mapping[str, Any]]
"""Where values come from (a file, or the command line), and the values."""


@dataclass(frozen=True)
class _Place:
    """A place in the config."""

    path: tuple[str, ...]
    """Keys from the root."""
    siblings: tuple[str, ...]
    """Keys that may stand beside the last one."""

    @property
    def dotted(self) -> str:
        return ".".join(self.path)


def _kind(section: type[BaseModel]) -> Any:
    field = section.model_fields.get("kind")
    return field.default if field else None


def _locate(loc: Sequence[str | int], root: type[BaseModel]) -> _Place:
    """The place behind pydantic's location, which also names the member of a union that it tried."""
    sections: list[type[BaseModel]] = [root]
    path: list[str] = []
    siblings: tuple[str, ...] = ()
    for part in loc:
        if len(sections) > 1 and any(_kind(section) == part for section in sections):
            sections = [section for section in sections if _kind(section) == part]
            continue
        path.append(str(part))
        siblings = tuple(sorted({name for section in sections for name in section.model_fields}))
        fields = [section.model_fields[str(part)] for section in sections if part in section.model_fields]
        sections = [found for field in fields for found in sections_in(field.annotation)]
    return _Place(tuple(path), siblings)


def _paths_of(name: str, section: type[BaseModel], prefix: str = "") -> list[str]:
    """Every place of the config where a key of this name may stand."""
    found = [prefix + name] if name in section.model_fields else []
    for key, field in section.model_fields.items():
        for below in sections_in(field.annotation):
            found += _paths_of(name, below, f"{prefix}{key}.")
    return sorted(set(found))


def closest(word: str, names: Sequence[str]) -> str | None:
    """The name that was probably meant by a misspelt word, if one is near."""
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return near[0] if near else None


def _hint(word: str, names: Sequence[str]) -> str:
    near = closest(word, names)
    return f"did you mean {near}?" if near else f"choose from {', '.join(names)}"


def _unknown_key(place: _Place, root: type[BaseModel]) -> str:
    name = place.path[-1]
    if not closest(name, place.siblings) and (elsewhere := _paths_of(name, root)):
        return f"unknown key; did you mean {' or '.join(elsewhere)}?"
    return f"unknown key; {_hint(name, place.siblings)}"


def _choice(error: ErrorDetails) -> str:
    context = error.get("ctx", {})
    expected = str(context.get("expected") or context.get("expected_tags") or "")
    names = [name.strip(" '") for name in expected.replace(" or ", ",").split(",")]
    given = context.get("tag", error["input"])
    return f"{_shown(given)} is not possible; {_hint(str(given), names)}"


def _shown(value: Any) -> str:
    """A value as it is written in a config, or how it begins."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def _explain(error: ErrorDetails, place: _Place, root: type[BaseModel]) -> str:
    match error["type"]:
        case "extra_forbidden":
            return _unknown_key(place, root)
        case "missing":
            return "is missing; add it"
        case "literal_error" | "union_tag_invalid":
            return _choice(error)
        case "union_tag_not_found":
            kinds = error.get("ctx", {})
            return f"needs a key {kinds.get('discriminator', 'kind')}, which says what it is"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"is a section with keys of its own, not {_shown(error['input'])}"
        case "value_error":
            return error["msg"].removeprefix("Value error, ")
        case "less_than_equal" | "less_than":
            bound = error.get("ctx", {})
            most = f"at most {bound['le']:,}" if "le" in bound else f"less than {bound.get('lt'):,}"
            return f"{most} is possible, not {_shown(error['input'])}"
        case "int_parsing_size":
            return f"has more digits than any number here may have: {_shown(error['input'])}"
        case "tuple_type" | "list_type":
            return f"has to be a list, such as [{_shown(error['input'])}]"
        case "finite_number":
            return f"has to be a finite number, not {_shown(error['input'])}"
        case "string_type":
            return f"has to be text, not {_shown(error['input'])}; put it in quotes"
        case _:
            return f"{error['msg'][0].lower()}{error['msg'][1:]}, not {_shown(error['input'])}"


def _sets(values: Any, path: Sequence[str]) -> bool:
    for key in path:
        if isinstance(values, list) and key.isdigit() and int(key) < len(values):
            values = values[int(key)]
        elif isinstance(values, Mapping) and key in values:
            values = values[key]
        else:
            return False
    return True


def _origin(place: _Place, layers: Sequence[Layer]) -> str | None:
    """The last layer that set a place: its value is the one that counts."""
    return next((name for name, values in reversed(layers) if place.path and _sets(values, place.path)), None)


def usage_error(
    file: str, error: ValidationError, layers: Sequence[Layer], root: type[BaseModel] = RunConfig
) -> UsageError:
    """What to tell the user about a config that does not fit its schema: one line per mistake."""
    found = [(details, _locate(details["loc"], root)) for details in error.errors(include_url=False)]
    meant = {
        (*place.path[:-1], closest(place.path[-1], place.siblings))
        for details, place in found
        if details["type"] == "extra_forbidden"
    }
    lines = []
    for details, place in found:
        if details["type"] == "missing" and place.path in meant:
            continue  # the misspelt key says it already
        path = f"{place.dotted}.kind" if details["type"] == "union_tag_invalid" else place.dotted
        origin = _origin(place, layers)
        note = "" if origin in {None, file} else f" (set in {origin})" if origin != COMMAND_LINE else f" (on {origin})"
        lines.append(f"{path}{note}: {_explain(details, place, root)}" if path else _explain(details, place, root))
    if len(lines) == 1:
        return UsageError(f"{file}: {lines[0]}")
    return UsageError("\n  ".join([f"{file}: {len(lines)} mistakes", *lines]))
