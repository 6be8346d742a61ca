"""Runs as a table: a row for each, a column for each metric that was measured in the same way.

A run that has several numbers of one column, as a sweep has, gets a row for each of its settings. What is measured of
the first positions alone has columns of its own; in the others stands what is of all positions, whose number differs
between tokenizers. The main columns are those, and of what is measured at each scale the last.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainer.evaluation.naming.comparison import compare, paths
from trainer.evaluation.naming.metric_names import metric_of, part_of, shown_value, title
from trainer.evaluation.naming.number_names import method_text
from trainer.evaluation.naming.numbers import Number, leaves
from trainer.report.evaluated_runs import EvaluatedRun

Key = tuple[str, ...]


@dataclass(frozen=True)
class Column:
    """Numbers that may be compared."""

    key: Key
    title: str
    """That no other column has."""
    better: str
    """lower, higher, or nothing."""
    method: str
    """How it was measured, in words."""
    is_main: bool
    """Whether it is of all positions of the tokens, or of the last scale of some run."""

    @property
    def heading(self) -> str:
        """The title, and an arrow to what is better."""
        return self.title + {"lower": " ↓", "higher": " ↑"}.get(self.better, "")


@dataclass
class Row:
    """Of a run, what was measured with one choice of settings."""

    run: EvaluatedRun
    label: str
    """What tells it from the run's other rows; empty for what does not depend on it."""
    numbers: dict[Key, Number] = field(default_factory=dict)
    hours: float | None = None
    """Of the whole run, in its first row."""

    @property
    def name(self) -> str:
        """Of the run, with the label."""
        return ", ".join(filter(None, (self.run.name, self.label)))


@dataclass(frozen=True)
class RunTable:
    """All of it."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @property
    def main_columns(self) -> tuple[Column, ...]:
        """Those that are of all positions and of last scales."""
        return tuple(column for column in self.columns if column.is_main)

    @property
    def has_hours(self) -> bool:
        """Whether any run has some on record."""
        return any(row.hours is not None for row in self.rows)

    def methods(self, columns: Iterable[Column]) -> list[tuple[str, str]]:
        """How columns were measured: the titles of all that have it in common, and the words."""
        titles: dict[str, list[str]] = defaultdict(list)
        for column in columns:
            titles[column.method].append(column.title)
        return [(", ".join(found), method) for method, found in titles.items()]


def table_of(runs: Sequence[EvaluatedRun]) -> RunTable:
    """The table of some runs, in their order."""
    keyed = [list(_keyed(run.numbers)) for run in runs]
    rows = [row for run, numbers in zip(runs, keyed, strict=True) for row in _rows(run, numbers)]
    first: dict[Key, Number] = {}
    for key, number in (each for numbers in keyed for each in numbers):
        first.setdefault(key, number)
    main = {key for numbers in keyed for key in _main(numbers)}
    return RunTable(tuple(_columns(first, main)), tuple(rows))


def _keyed(numbers: Sequence[Number]) -> Iterator[tuple[Key, Number]]:
    """Each number with the key of its column; its last part is empty for what is of all positions."""
    groups = [(_question(number), number) for number in numbers]
    kept: dict[Key, list[Any]] = defaultdict(list)
    for question, number in groups:
        kept[question].append(number.measured_of.get("keep"))
    for question, number in groups:
        keep = number.measured_of.get("keep")
        yield (*question, "" if keep == _whole(kept[question]) else json.dumps(keep)), number


def _main(numbers: Iterable[tuple[Key, Number]]) -> Iterator[Key]:
    """Columns of all positions; of those by scale, the last one that a run has."""
    last: dict[Key, tuple[int, Key]] = {}
    for key, number in numbers:
        scale = part_of(number).get("scale")
        if key[-1]:
            continue
        if not isinstance(scale, int):
            yield key
            continue
        others = json.dumps({name: value for name, value in part_of(number).items() if name != "scale"})
        of = (number.metric, number.pictures, others)
        last[of] = max(last.get(of, (scale, key)), (scale, key))
    yield from (key for _, key in last.values())


def _question(number: Number) -> Key:
    perturbed = json.dumps(leaves(number.measured_of.get("perturbation")))
    return number.metric, number.pictures, str(number.images), number.method, perturbed


def _whole(kept: Sequence[Any]) -> Any:
    """Of the positions that were kept, those that are all of them: where it is not said, or else the most."""
    counts = [keep for keep in kept if isinstance(keep, int)]
    return None if None in kept or not counts else max(counts)


def _columns(first: dict[Key, Number], main: Collection[Key]) -> Iterator[Column]:
    same: dict[str, list[Number]] = defaultdict(list)
    for key, number in first.items():
        same[_title(key, number)].append(number)
    for key, number in first.items():
        name = _title(key, number)
        methods, images = ({getattr(each, what) for each in same[name]} for what in ("method", "images"))
        told = [*([number.method] if len(methods) > 1 else []), *([f"{number.images:,}"] if len(images) > 1 else [])]
        unique = f"{name} [{', '.join(told)}]" if told else name
        yield Column(key, unique, metric_of(number).better, method_text(number), key in main)


def _title(key: Key, number: Number) -> str:
    perturbation = ", ".join(
        f"{path} {shown_value(value)}" for path, value in leaves(number.measured_of.get("perturbation")).items()
    )
    part = f"first {number.measured_of['keep']}" if key[-1] else ""
    return ", ".join(filter(None, (title(number), perturbation, part)))


def _rows(run: EvaluatedRun, numbers: Sequence[tuple[Key, Number]]) -> list[Row]:
    columns: dict[Key, list[Number]] = defaultdict(list)
    for key, number in numbers:
        columns[key].append(number)
    varied = dict.fromkeys(
        path for found in columns.values() for other in found[1:] for path in paths(compare(found[0], other).subject)
    )
    rows: dict[str, Row] = {}
    for key, number in numbers:
        label = _free_label(rows, key, _label(number, varied))
        rows.setdefault(label, Row(run, label)).numbers[key] = number
    ordered = list(rows.values()) or [Row(run, "")]
    ordered.sort(key=lambda row: bool(row.label))
    ordered[0].hours = run.all_hours
    return ordered


def _label(number: Number, varied: Iterable[str]) -> str:
    found = leaves(number.measured_of)
    return ", ".join(f"{path.rpartition('.')[2]} {shown_value(found[path])}" for path in varied if path in found)


def _free_label(rows: dict[str, Row], key: Key, label: str) -> str:
    """The label, or one with a count where a row of this label has such a number already."""
    count, free = 1, label
    while free in rows and key in rows[free].numbers:
        count += 1
        free = f"{label} ({count})".strip()
    return free
