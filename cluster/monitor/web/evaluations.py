"""What `evaluate` has found of the runs, as one table: in a row stand only numbers that may be compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.monitor.web.run_reading import RunReading, shown
from data_pipeline import storage
from data_pipeline.errors import UsageError
from trainer.evaluation.naming.number_names import full_name, value_text
from trainer.evaluation.naming.numbers import Number
from trainer.report.evaluated_runs import EvaluatedRun, read_run
from trainer.report.run_table import Column, Row, table_of

MOST_METRICS, MOST_COLUMNS = 200, 60
"""That are sent."""
_EVALUATION = "evaluation.json"
Record = dict[str, Any]


def evaluations_of(readings: Mapping[int, RunReading]) -> Record:
    """A row for each metric that was measured in the same way, a column for each run; of a sweep one for each setting.

    Args:
        readings: of the runs, by the number that the page knows them by.
    """
    found: dict[int, EvaluatedRun] = {}
    problems: list[Record] = []
    for number, reading in readings.items():
        try:
            found[number] = read_run(storage.join(reading.uri, _EVALUATION), settings=False)
        except FileNotFoundError:
            continue
        except UsageError as error:
            problems.append({"run": number, "text": shown(str(error))})
    problems += [{"run": number, "text": shown(each)} for number, run in found.items() for each in run.problems]
    table = table_of(list(found.values()))
    rows = table.rows[:MOST_COLUMNS]
    numbers = {id(run): number for number, run in found.items()}
    return {
        "columns": [{"run": numbers[id(row.run)], "label": shown(row.label), "hours": row.hours} for row in rows],
        "metrics": [_metric(column, rows) for column in table.columns[:MOST_METRICS]],
        "left_out": max(0, len(table.columns) - MOST_METRICS) + max(0, len(table.rows) - MOST_COLUMNS),
        "problems": problems,
    }


def _metric(column: Column, rows: tuple[Row, ...]) -> Record:
    cells = [row.numbers.get(column.key) for row in rows]
    best = _best(column, [each.value for each in cells if each is not None])
    return {
        "title": shown(column.title),
        "better": column.better,
        "method": shown(column.method),
        "main": column.is_main,
        "cells": [None if each is None else _cell(each, best) for each in cells],
    }


def _cell(number: Number, best: float | None) -> Record:
    return {"text": shown(value_text(number)), "name": shown(full_name(number)), "best": number.value == best}


def _best(column: Column, values: list[float]) -> float | None:
    """The best of several that differ; None where none is better."""
    if len(set(values)) < 2 or not column.better:
        return None
    return min(values) if column.better == "lower" else max(values)
