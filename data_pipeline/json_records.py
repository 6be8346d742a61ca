"""JSON that comes from storage: bounded in size and depth, and with one meaning only.

Python's own parser takes NaN and Infinity, keeps the last of two equal keys, and goes as deep as its stack allows; what
it then returns breaks whoever walks it. Here each of these is a ValueError that says what is wrong.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

MOST_BYTES = 32 * 2**20
"""Largest record that is read or written. Parsed, its objects take some 25 times as much memory at worst."""
MOST_DEPTH = 64
"""Deepest nesting. No record of ours has more than 10."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse(data: bytes) -> Any:
    """The value of a JSON text in UTF-8.

    Raises:
        ValueError: if it is too large or too deep, is not JSON, has a number that is not finite, a key twice in one
            object, or half of a surrogate pair; it says which.
    """
    if len(data) > MOST_BYTES:
        raise ValueError(f"it has {len(data):,} bytes, and a record has at most {MOST_BYTES:,}")
    text = data.decode("utf-8-sig")
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
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
