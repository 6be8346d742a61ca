"""Sweeps of a run's sampling settings: their points, their optimum, and the curves that show them.

RUN/evaluation/sweep-NAME/sweep.json has the numbers of all points (cluster/stages/sweeping.py writes it).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards.versions import check_version
from data_pipeline.text.json_records import first_problem
from data_pipeline.text.printable import printable
from trainer.evaluation.naming.metric_names import metric_of, network_name, title
from trainer.evaluation.naming.number_names import method_text, value_text
from trainer.evaluation.naming.numbers import VERSION, Number
from trainer.report.charts import Line, line_chart

Settings = dict[str, Any]
SWEEP = "sweep.json"
_FOLDER, _PREFIX = "evaluation", "sweep-"
_PAIRS = (("inception_score", "fid"), ("recall", "precision"))
"""Metrics that guidance trades one for the other: x and y of a curve."""
MOST_SWEEPS = 20
"""Of a run that a report shows, the first by name."""


@dataclass(frozen=True)
class SweepPoint:
    """One setting, and what is measured of its samples."""

    settings: Settings
    numbers: tuple[Number, ...]

    def to_json(self) -> dict[str, Any]:
        """For sweep.json."""
        return {"settings": self.settings, "numbers": [number.to_json() for number in self.numbers]}


@dataclass(frozen=True)
class Curve:
    """Lines of one chart."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]


# ------------------------------------------------------------------------------------------------------------ numbers


def columns_of(points: Sequence[SweepPoint]) -> Mapping[str, list[tuple[SweepPoint, Number]]]:
    """By the title of a metric: each point with its number."""
    found: dict[str, list[tuple[SweepPoint, Number]]] = {}
    for point in points:
        for number in point.numbers:
            found.setdefault(title(number), []).append((point, number))
    return found


def best_of(points: Sequence[SweepPoint]) -> dict[str, Settings]:
    """The best setting by each metric that has a better and a worse; of equal ones the first."""
    found = {}
    for name, values in columns_of(points).items():
        better = metric_of(values[0][1]).better
        if better:
            choose = min if better == "lower" else max
            found[name] = choose(values, key=lambda each: each[1].value)[0].settings
    return found


def settings_text(settings: Settings) -> str:
    """As `guidance 1.5, top_k 50`."""
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def swept_number(points: Sequence[SweepPoint]) -> str | None:
    """The key that is swept, where it is one, and a number; else None."""
    keys = {key for point in points for key in point.settings}
    values = [value for point in points for value in point.settings.values()]
    is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return next(iter(keys)) if len(keys) == 1 and values and is_number else None


def curves_of(points: Sequence[SweepPoint]) -> Iterator[Curve]:
    """A curve of each metric with its best point, where one number is swept."""
    key, best = swept_number(points), best_of(points)
    if key is None:
        return
    for name, values in columns_of(points).items():
        line = Line(name, sorted((float(point.settings[key]), number.value) for point, number in values))
        lines = [line]
        if name in best:
            optimum = float(best[name][key])
            lines.append(Line(f"best, at {best[name][key]}", [(optimum, dict(line.points)[optimum])], colour=1))
        yield Curve(name, key, name, tuple(lines))


def tradeoffs_of(points: Sequence[SweepPoint]) -> Iterator[Curve]:
    """FID against Inception score, and precision against recall, of each network: a point for each setting."""
    key = swept_number(points)
    if key is None:
        return
    for x_metric, y_metric in _PAIRS:
        for network in dict.fromkeys(network_name(each) for point in points for each in point.numbers):
            pairs = [
                (_of(point, x_metric, network), _of(point, y_metric, network))
                for point in sorted(points, key=lambda each: float(each.settings[key]))
            ]
            both = [(x, y) for x, y in pairs if x is not None and y is not None]
            if both:
                x_title, y_title = title(both[0][0]), title(both[0][1])
                line = Line(f"{key} from least to largest", [(x.value, y.value) for x, y in both])
                yield Curve(f"{y_title} by {x_title}", x_title, y_title, (line,))


def _of(point: SweepPoint, metric: str, network: str) -> Number | None:
    return next((each for each in point.numbers if each.metric == metric and network_name(each) == network), None)


# ------------------------------------------------------------------------------------------------------------- report


def read_sweeps(run_uri: str) -> tuple[tuple[SweepPoint, ...], ...]:
    """The finished sweeps of a run.

    Raises:
        UsageError: if one was cut or edited; it names the file.
    """
    folder = storage.join(run_uri, _FOLDER)
    names = [name for name in storage.list_names(folder) if name.startswith(_PREFIX)]
    uris = [storage.join(folder, name, SWEEP) for name in names[:MOST_SWEEPS]]
    return tuple(_read(uri) for uri in uris if storage.exists(uri))


def _read(uri: str) -> tuple[SweepPoint, ...]:
    record = storage.read_json(uri)
    try:
        check_version(uri, "a sweep", record["version"], VERSION, "sweep again")
        points = [(dict(each["settings"]), each["numbers"]) for each in record["points"]]
        found = tuple(SweepPoint(each, tuple(map(Number.from_json, numbers))) for each, numbers in points)
    except ValidationError as error:
        raise UsageError(f"{uri} is not what a sweep writes ({first_problem(error)}): sweep again") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{uri} is not what a sweep writes ({error!r}): sweep again") from None
    if not found or any(not point.settings for point in found):
        raise UsageError(f"{uri} has no settings: sweep again")
    return found


def sweep_section(points: Sequence[SweepPoint]) -> dict[str, Any]:
    """What the template needs of a sweep: charts, and a table with the best of each column."""
    columns, best = columns_of(points), best_of(points)
    keys = dict.fromkeys(key for point in points for key in point.settings)
    numbers = [number for values in columns.values() for _, number in values[:1]]
    return {
        "heading": ", ".join(printable(key) for key in keys),
        "charts": [
            line_chart(each.lines, title=each.title, x_label=each.x_label, y_label=each.y_label)
            for each in (*curves_of(points), *tradeoffs_of(points))
        ],
        "best": [{"metric": name, "settings": settings_text(settings)} for name, settings in best.items()],
        "metrics": list(columns),
        "rows": [
            {
                "settings": settings_text(point.settings),
                "cells": [_cell(point, name, best) for name in columns],
            }
            for point in points
        ],
        "methods": [f"{title(number)}: {method_text(number)}" for number in numbers],
    }


def _cell(point: SweepPoint, name: str, best: Mapping[str, Settings]) -> dict[str, Any]:
    number = next((each for each in point.numbers if title(each) == name), None)
    text = "–" if number is None else value_text(number)
    return {"text": text, "is_best": number is not None and best.get(name) == point.settings}
