"""A number of workers as it is written in a config: N, MIN:MAX or [MIN, MAX]."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from data_pipeline.config import MOST_WORKERS

LONGEST_NUMBER = 9
"""Most digits of a number of workers."""


def _read_workers(value: Any) -> int | tuple[int, int]:
    """A number of workers, or the fewest and the most, as MIN:MAX or [MIN, MAX]."""
    parts = value.split(":") if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else [value]
    if not 1 <= len(parts) <= 2 or not all(_is_number(part) for part in parts):
        raise ValueError(f"{value} workers: give a whole number from 1 on, or two of them as MIN:MAX")
    if any(len(str(part)) > LONGEST_NUMBER for part in parts) or int(parts[-1]) > MOST_WORKERS:
        raise ValueError(f"{value!r:.40} workers: at most {MOST_WORKERS:,} are possible")
    fewest, most = int(parts[0]), int(parts[-1])
    if fewest > most:
        raise ValueError(f"{value} workers: the fewest are more than the most; give MIN:MAX")
    return most if fewest == most else (fewest, most)


def _write_workers(value: int | tuple[int, int]) -> int | list[int]:
    return value if isinstance(value, int) else list(value)


def _is_number(part: Any) -> bool:
    if isinstance(part, str):
        return part.isascii() and part.isdigit() and part.strip("0") != ""
    return isinstance(part, int) and not isinstance(part, bool) and part > 0


_NUMBER: dict[str, Any] = {"type": "integer", "exclusiveMinimum": 0}
_RANGE = {"type": "array", "items": _NUMBER, "minItems": 2, "maxItems": 2}
_TEXT = {"type": "string", "pattern": "^[0-9]+(:[0-9]+)?$"}
Workers = Annotated[
    int | tuple[int, int],
    PlainValidator(_read_workers),
    PlainSerializer(_write_workers, when_used="json"),
    WithJsonSchema({"anyOf": [_NUMBER, _TEXT, _RANGE]}),
]
