"""The numbers of a stretch of metrics.jsonl in columns, beside the lines: 1,000,000 rows are read in a second.

    8,192 bytes    {"rows": 570, "names": ["step", "time", …]} and blanks
    then           a column after the other, each of `rows` float64 (little endian); NaN where a row has no number

The lines stay the record; columns are made of them, only where all of them are records, and say nothing else. They may
come from anybody: their size has to be what their head asks for, and what `is_metrics` asks of a line is asked of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.text import json_records
from trainer.records.record_shapes import MOST_STEP, WINDOW, is_metrics

HEAD_BYTES = 8192
MOST_NAMES = 100
"""Columns at most; a record of a training stage has some 30 numbers."""
_OF_TIME = ("data_wait_share", "checkpoint_seconds", "validation_seconds")
ALWAYS = ("step", "time", "window_steps", "window_seconds", *_OF_TIME)
"""Columns that stand first and are read always, as far as there are any."""
Column = npt.NDArray[np.float64]
Columns = dict[str, Column]
"""Numbers by name, all of the same length; NaN for none."""
Wanted = Callable[[str], bool]
"""Whether a column is read."""


def from_records(records: Sequence[Mapping[str, Any]], wanted: Wanted = lambda _name: True) -> Columns:
    """Columns of the finite numbers that records hold on their first level; `step` is always one.

    Of the wanted names the first `MOST_NAMES` count, so that the columns are bound by the size of the records.
    """
    values: dict[str, list[float]] = {"step": []}
    left_out = set[str]()
    for number, record in enumerate(records):
        for name, value in record.items():
            if not (type(value) is float or type(value) is int) or name in left_out:  # bool is none
                continue
            if name not in values:
                if not (name in ALWAYS or (wanted(name) and len(values) < MOST_NAMES)):
                    left_out.add(name)
                    continue
                values[name] = []
            column = values[name]
            if len(column) < number:
                column.extend([np.nan] * (number - len(column)))
            column.append(value)
    found: Columns = {}
    for name, column in values.items():
        column.extend([np.nan] * (len(records) - len(column)))
        found[name] = np.array(column, np.float64)
        found[name][~np.isfinite(found[name])] = np.nan
    return found


def joined(parts: Iterable[Columns]) -> Columns:
    """One after the other; of all names, again the first `MOST_NAMES`."""
    kept = [part for part in parts if part and len(next(iter(part.values())))]
    rows = [len(next(iter(part.values()))) for part in kept]
    names = [*ALWAYS, *dict.fromkeys(name for part in kept for name in part if name not in ALWAYS)][:MOST_NAMES]
    found: Columns = {"step": np.empty(0)}
    for name in names:
        if any(name in part for part in kept):
            pieces = zip(kept, rows, strict=True)
            found[name] = np.concatenate([part[name] if name in part else _none(count) for part, count in pieces])
    return found


def _none(count: int) -> Column:
    return np.full(count, np.nan)


def encode(lines: bytes) -> bytes | None:
    """The columns of lines that this process wrote; None if one is no record of metrics, or names are too long."""
    records = [json.loads(line) for line in lines.split(b"\n") if line]
    if not records or not all(isinstance(record, dict) and is_metrics(record) for record in records):
        return None
    columns = from_records(records)
    names = [name for name in ALWAYS if name in columns]
    names += sorted(columns.keys() - set(names))
    head = json.dumps({"rows": len(records), "names": names}).encode()
    if len(head) >= HEAD_BYTES:
        return None
    return b"".join([head.ljust(HEAD_BYTES - 1) + b"\n", *(columns[name].astype("<f8").tobytes() for name in names)])


def read(
    read_ranges: Callable[[list[tuple[int, int]]], Sequence[bytes | memoryview]], size: int, wanted: Wanted
) -> Columns:
    """The wanted columns of a file of columns, and those that say whether it is sound.

    Args:
        read_ranges: the bytes of several (start, length).
        size: of the file.
        wanted: which ones.

    Raises:
        ValueError: if it is no such file; it says why.
    """
    rows, names = _parse_head(bytes(read_ranges([(0, HEAD_BYTES)])[0]), size)
    kept = [number for number, name in enumerate(names) if name in ALWAYS or wanted(name)]
    stretches = list(_stretches(kept))
    data = read_ranges([(HEAD_BYTES + 8 * rows * number, 8 * rows * count) for number, count in stretches])
    found: Columns = {}
    for (number, count), each in zip(stretches, data, strict=True):
        if len(each) != 8 * rows * count:
            raise ValueError("it was cut")
        values = np.frombuffer(each, "<f8").reshape(count, rows)
        if np.isinf(values).any():
            raise ValueError("a number of it is not finite")
        found |= zip(names[number : number + count], values, strict=True)
    _check(found)
    return found


def _stretches(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Numbers that follow each other: the first of them, and how many there are."""
    at = 0
    while at < len(numbers):
        stop = at + 1
        while stop < len(numbers) and numbers[stop] == numbers[stop - 1] + 1:
            stop += 1
        yield numbers[at], stop - at
        at = stop


def _parse_head(head: bytes, size: int) -> tuple[int, list[str]]:
    record = json_records.parse(head.rstrip())
    rows, names = (record.get("rows"), record.get("names")) if isinstance(record, dict) else (None, None)
    if isinstance(names, list) and len(names) > MOST_NAMES:
        raise ValueError(f"it has more than {MOST_NAMES} columns")
    if type(rows) is not int or not 0 < rows <= size:
        raise ValueError("it does not say how many rows it has")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len({*names}) != len(names):
        raise ValueError("it does not name its columns")
    if size != HEAD_BYTES + 8 * rows * len(names):
        raise ValueError(f"it has {size:,} bytes, and {rows:,} rows of {len(names)} columns have others")
    return rows, names


def _check(columns: Columns) -> None:
    """What `is_metrics` asks of each line."""
    step = columns.get("step")
    if step is None or not (np.all(step >= 0) and np.all(step < MOST_STEP) and np.all(step == np.floor(step))):
        raise ValueError("a row of it has no step")
    if "window_seconds" in columns:
        is_window = ~np.isnan(columns["window_seconds"])
        if any(name not in columns or np.isnan(columns[name][is_window]).any() for name in WINDOW):
            raise ValueError("a window of it is not whole")
