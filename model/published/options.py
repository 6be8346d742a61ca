"""The published options: a nested mapping as a JSON or YAML file gives it, of which little is read.

Sizes follow from shapes. What no shape tells (a number of heads, the sides of scales) is asked for by its published
name, so that the message says which option of which file is needed.
"""

from __future__ import annotations

from collections.abc import Mapping

Options = Mapping[str, object]


def option(options: Options, path: str, default: object = None) -> object:
    """What a dotted path names, as it stands there; `default` if it is absent.

    Args:
        options: the published options.
        path: for instance "vit.num_heads", or "model.vq_model.token_size".
        default: for an absent one.
    """
    found: object = options
    for part in path.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return default
        found = found[part]
    return found


def whole_number(options: Options, path: str, default: int | None = None) -> int:
    """A whole number.

    Raises:
        ValueError: if it is none, or absent without a default.
    """
    value = option(options, path, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong(options, path, "a whole number")
    return value


def whole_numbers(options: Options, path: str) -> tuple[int, ...]:
    """A list of whole numbers, at least one.

    Raises:
        ValueError: if it is none, or absent.
    """
    value = option(options, path)
    if not isinstance(value, list | tuple) or not value or not all(type(item) is int for item in value):
        raise wrong(options, path, "a list of whole numbers")
    return tuple(value)


def flag(options: Options, path: str, default: bool | None = None) -> bool:
    """A truth value.

    Raises:
        ValueError: if it is none, or absent without a default.
    """
    value = option(options, path, default)
    if not isinstance(value, bool):
        raise wrong(options, path, "true or false")
    return value


def wrong(options: Options, path: str, form: str) -> ValueError:
    """The error for an option that is absent, or not of a form: to be raised."""
    value = option(options, path)
    if value is None:
        return ValueError(
            f"the published options need {path}, {form}, which no shape tells: give a --config that has it"
        )
    return ValueError(f"the published options have {path}={value!r}, which should be {form}")
