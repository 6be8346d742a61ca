"""Lines of metrics.jsonl as a stage writes them, in columns at a third of what it costs to look at each by itself.

1. what may make a line mean anything else than it seems to is looked for in all of them at once: escapes, nesting,
   numbers that are no float or beyond 64 bits
2. they are parsed in one call, and counted: an object for each line, and quotes for no key more than there is
3. records with the same keys become columns together

Where any of this fails nothing is said of the lines, and whoever asked reads them one by one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipeline.text.json_records import MOST_LINE_BYTES
from trainer.records.columns import ALWAYS, MOST_NAMES, Column, Columns, Wanted
from trainer.records.record_shapes import MOST_STEP, NUMBERS, WINDOW

_SHAPE = bytes.maketrans(b"123456789E", b"000000000e")
_EXPONENTS = (b"e000", b"e+000")
"""They may be beyond a float's."""
_LONG = b"0" * 20
"""Digits of an integer that may be beyond 64 bits; behind a point they are a float's."""
_ODD_TEXT = (b"\\", b"[", b"NaN", b"Infinity", b"\xef\xbb\xbf")
_NUMERIC = frozenset({int, float})


def plain_columns(text: bytes, wanted: Wanted) -> Columns | None:
    """The numbers of whole lines that are all records of metrics, row by row; None where that cannot be told so.

    Args:
        text: of the lines.
        wanted: which columns, as for `columns.from_records`.
    """
    lines = text.split(b"\n")
    if lines and not lines[-1]:
        lines.pop()
    records = _parsed(text, lines)
    return None if records is None else _columns(records, text.count(b'"'), wanted)


def _parsed(text: bytes, lines: Sequence[bytes]) -> list[dict[str, Any]] | None:
    """An object for each line."""
    count = len(lines)
    if not count or text.count(b"{") != count or text.count(b"}") != count:
        return None
    if not all(line[:1] == b"{" and line[-1:] == b"}" and len(line) <= MOST_LINE_BYTES for line in lines):
        return None
    shape = text.translate(_SHAPE)
    if any(odd in text for odd in _ODD_TEXT) or any(odd in shape for odd in _EXPONENTS):
        return None
    if shape.count(_LONG) != shape.count(b"." + _LONG):
        return None
    try:
        records = json.loads(b"[" + b",".join(lines) + b"]")
    except ValueError:
        return None
    return records if len(records) == count else None


def _columns(records: list[dict[str, Any]], quotes: int, wanted: Wanted) -> Columns | None:
    groups: dict[tuple[str, ...], list[int]] = {}
    for row, record in enumerate(records):
        groups.setdefault(tuple(record), []).append(row)
    names = dict.fromkeys(name for keys in groups for name in keys)
    if len(names) > MOST_NAMES:
        return None
    found: Columns = {"step": np.empty(len(records))}
    texts = 0
    for keys, rows in groups.items():
        values = dict(zip(keys, zip(*(records[row].values() for row in rows), strict=True), strict=True))
        if not _are_metrics(values):
            return None
        for name, each in values.items():
            kinds = set(map(type, each))
            texts += sum(type(value) is str for value in each) if str in kinds else 0
            if kinds & _NUMERIC and (name in ALWAYS or wanted(name)):
                column = found.setdefault(name, np.full(len(records), np.nan))
                column[rows] = _numbers(each) if kinds - _NUMERIC else each
    has_all_keys = quotes == 2 * (sum(len(keys) * len(rows) for keys, rows in groups.items()) + texts)
    return found if has_all_keys else None


def _numbers(values: Sequence[Any]) -> Column:
    return np.array([value if type(value) in _NUMERIC else np.nan for value in values])


def _are_metrics(values: dict[str, tuple[Any, ...]]) -> bool:
    """What `is_metrics` asks of each record, of columns."""
    steps = values.get("step", ("",))
    if set(map(type, steps)) != {int} or min(steps) < 0 or max(steps) >= MOST_STEP:
        return False
    allowed = _NUMERIC | {type(None)}
    if not all(set(map(type, values[name])) <= allowed for name in NUMBERS & values.keys()):
        return False
    return "window_seconds" not in values or all(
        name in values and set(map(type, values[name])) <= _NUMERIC for name in WINDOW
    )
