"""A comparison of runs as files: CSV, JSON, and Markdown for a paper."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from trainer.evaluation.naming.comparison import Pairs
from trainer.evaluation.naming.number_names import full_name, value_text
from trainer.evaluation.naming.numbers import VERSION, Number
from trainer.report.evaluated_runs import EvaluatedRun
from trainer.report.run_table import Column, Row, RunTable
from trainer.report.settings import differing_settings


def csv_text(table: RunTable) -> str:
    """All columns, each with its standard error, to the last digit; empty where a run has no such number."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    titles = [name for column in table.columns for name in (column.title, f"{column.title} ±")]
    writer.writerow(["run", "settings", "hours", *titles])
    for row in table.rows:
        numbers = [row.numbers.get(column.key) for column in table.columns]
        cells = [cell for each in numbers for cell in ((each.value, each.plus_minus) if each else (None, None))]
        writer.writerow([row.run.name, row.label, row.hours, *cells])
    return file.getvalue()


def json_record(runs: Sequence[EvaluatedRun], pairs: Pairs | None) -> dict[str, Any]:
    """All that is known, with the full name of each number; of two runs also the comparison of their numbers."""
    record: dict[str, Any] = {
        "version": VERSION,
        "runs": [
            {
                "run": run.name,
                "hours": run.hours,
                "numbers": [_with_name(number) for number in run.numbers],
                "problems": list(run.problems),
            }
            for run in runs
        ],
        "settings": [
            {"stage": each.stage, "name": each.name, "values": list(each.values)}
            for each in differing_settings([run.settings for run in runs])
        ],
    }
    if pairs is not None:
        record["comparison"] = {
            "pairs": [each.to_json() for each in pairs.compared],
            "only_first": [_with_name(number) for number in pairs.only_first],
            "only_second": [_with_name(number) for number in pairs.only_second],
        }
    return record


def _with_name(number: Number) -> dict[str, Any]:
    return number.to_json() | {"name": full_name(number), "method": number.method, "subject": number.subject}


def markdown_text(table: RunTable) -> str:
    """Columns of all positions, and below them how they were measured."""
    columns = table.main_columns
    hours = ["hours"] if table.has_hours else []
    lines = [
        _line(["run", *(column.heading for column in columns), *hours]),
        _line(["---", *("---:" for _ in (*columns, *hours))]),
        *(_line(cells(row, columns, has_hours=table.has_hours)) for row in table.rows),
    ]
    notes = [f"{_escaped(titles)}: {_escaped(method)}" for titles, method in table.methods(columns)]
    return "\n".join([*lines, "", *(f"{note}." for note in notes)]) + "\n"


def cells(row: Row, columns: Sequence[Column], *, has_hours: bool) -> list[str]:
    """A row as text: its name, its numbers, a dash where there is none, and its hours if the table has them."""
    numbers = [row.numbers.get(column.key) for column in columns]
    hours = ["" if row.hours is None else f"{row.hours:.2f}"] if has_hours else []
    return [row.name, *("–" if number is None else value_text(number) for number in numbers), *hours]


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(map(_escaped, texts))} |"


def _escaped(text: str) -> str:
    """Text that stays text in Markdown."""
    for sign in "\\`*_|<>[]":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
