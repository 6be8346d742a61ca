"""JSON that comes from storage: bounded in size and depth, and with one meaning only.

Python's own parser takes NaN and Infinity, keeps the last of two equal keys, and goes as deep as its stack allows; what
it then returns breaks whoever walks it. Here each of these is a ValueError that says what is wrong.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pydantic import ValidationError

MOST_BYTES = 32 * 2**20
"""Largest record that is read or written. Parsed, its objects take some 25 times as much memory at worst."""
MOST_DEPTH = 64
"""Deepest nesting. No record of ours has more than 10."""
_MOST_INTEGER = 2**64
_LARGE_INTEGER = re.compile(r"\d{19}")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse(data: bytes) -> Any:
    """The value of a JSON text in UTF-8.

    Raises:
        ValueError: if it is too large or too deep, is not JSON, has a number that is not finite or beyond 64 bits,
            a key twice in one object, or half of a surrogate pair; it says which.
    """
    if len(data) > MOST_BYTES:
        raise ValueError(f"it has {len(data):,} bytes, and a record has at most {MOST_BYTES:,}")
    text = data.decode("utf-8-sig")
    try:
        integer = _bounded if _LARGE_INTEGER.search(text) else None  # only then a call for each of them
        hooks: dict[str, Any] = {"parse_constant": _refuse, "parse_float": _finite, "parse_int": integer}
        value = json.loads(text, object_pairs_hook=_unique, **hooks)
    except RecursionError:
        raise ValueError(_too_deep()) from None
    if data.count(b"[") + data.count(b"{") > MOST_DEPTH:
        _check_depth(value)
    if _SURROGATE.search(text):
        json.dumps(value, ensure_ascii=False).encode()  # a UnicodeEncodeError, which is a ValueError
    return value


def _too_deep() -> str:
    return f"it is nested deeper than {MOST_DEPTH} levels"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"an object has the key {twice[:64]!r} twice")
    return found


def _bounded(digits: str) -> int:
    if len(digits) > 20 or abs(int(digits)) >= _MOST_INTEGER:
        raise ValueError(f"the number {digits[:32]} has more than 64 bits")
    return int(digits)


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {digits[:32]} is too large")
    return number


def _check_depth(value: Any) -> None:
    """Without recursion: one level of containers after another."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MOST_DEPTH):
        inner = [child for each in level for child in (each.values() if isinstance(each, dict) else each)]
        level = [child for child in inner if isinstance(child, dict | list)]
        if not level:
            return
    raise ValueError(_too_deep())


def first_problem(error: ValidationError) -> str:
    """Where the first thing is in a record that is wrong, and what."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    what = first["msg"].removeprefix("Value error, ")
    return f"{where}: {what}" if where else what


def finite(value: Any) -> Any:
    """A record with null in place of numbers that are not finite, so that it is JSON."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


MOST_LINE_BYTES = 2**20
"""Longest line of a file of JSON lines that is read; ours have some hundred bytes."""


class Lines(NamedTuple):
    """What a file of JSON lines holds."""

    records: list[dict[str, Any]]
    """Its objects, in their order."""
    left_out: list[int]
    """Numbers of the lines, from 1, that are no such object; but for a last line that was cut while it was written."""


def parse_lines(data: bytes, is_record: Callable[[dict[str, Any]], bool] = lambda _record: True) -> Lines:
    """The records of a file of JSON lines. Whatever a line holds, it takes none of the others with it.

    Args:
        data: of the file.
        is_record: says whether an object is a record of this file.
    """
    found = Lines([], [])
    lines = data.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = parse(line) if len(line) <= MOST_LINE_BYTES else None
        except ValueError:
            if number == len(lines):
                continue
            record = None
        if isinstance(record, dict) and is_record(record):
            found.records.append(record)
        else:
            found.left_out.append(number)
    return found
