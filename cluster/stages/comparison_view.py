"""Two evaluations beside each other, or several runs as a table, in a terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from data_pipeline.text.counted import counted
from trainer.evaluation.naming.comparison import Comparison, Difference, Pairs
from trainer.evaluation.naming.metric_names import shown_value, title
from trainer.evaluation.naming.number_names import rounded, value_text
from trainer.evaluation.naming.numbers import Number
from trainer.report.evaluated_runs import EvaluatedRun
from trainer.report.run_table import RunTable
from trainer.report.settings import DifferingSetting
from trainer.report.table_files import cells

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_MOST_COLUMNS = 8
"""Of a table, if there are fewer runs."""
_MOST_SETTINGS = 40
"""That are shown; a file has all."""


def two_view(first: EvaluatedRun, second: EvaluatedRun, pairs: Pairs) -> Iterator[RenderableType]:
    """The numbers of two evaluations, those together that differ in the same; first those that may be compared."""
    for name, run in (("A", first), ("B", second)):
        yield f"{name}  {run.name}" + ("" if run.all_hours is None else f", {run.all_hours:.2f} hours")
    groups: dict[str, list[Comparison]] = defaultdict(list)
    for each in sorted(pairs.compared, key=lambda pair: not pair.is_comparable):
        groups[_verdict(each)].append(each)
    for verdict, found in groups.items():
        yield f"\n{verdict}"
        yield _numbers_table(found)
    for name, alone in (("A", pairs.only_first), ("B", pairs.only_second)):
        if alone:
            yield f"\nIn {name} alone: {', '.join(dict.fromkeys(map(_part_title, alone)))}"


def _verdict(pair: Comparison) -> str:
    compared = _in_words(pair.subject) or "nothing that is on record"
    if pair.is_comparable:
        return f"May be compared. What differs: {compared}"
    said = f"May not be compared. They were measured otherwise: {_in_words(pair.method)}"
    return f"{said}\nWhat else differs: {compared}" if pair.subject else said


def _in_words(differences: Sequence[Difference]) -> str:
    causes = [
        f"{each.path} {shown_value(each.first)} → {shown_value(each.second)}"
        for each in differences
        if not each.follows_from
    ]
    follow = [each.path for each in differences if each.follows_from]
    return ", ".join(causes) + (f"; and with that {', '.join(follow)}" if follow else "")


def _numbers_table(found: Sequence[Comparison]) -> Table:
    table = _table("", "A", "B", "B − A")
    for pair in found:
        change = rounded(pair.difference, pair.plus_minus)
        shown = ("" if pair.difference < 0 else "+") + change if pair.is_comparable else ""
        table.add_row(_part_title(pair.first), value_text(pair.first), value_text(pair.second), shown)
    return table


def _part_title(number: Number) -> str:
    keep = number.measured_of.get("keep")
    return title(number) if keep is None else f"{title(number)}, first {shown_value(keep)}"


def table_view(table: RunTable) -> Iterator[RenderableType]:
    """Numbers of all positions, and how they were measured. Many columns are shown as rows."""
    columns = table.main_columns
    heads = ["run", *(column.heading for column in columns), *(["hours"] if table.has_hours else [])]
    lines = [heads, *(cells(row, columns, has_hours=table.has_hours) for row in table.rows)]
    if len(heads) > max(_MOST_COLUMNS, len(lines)):
        lines = [list(line) for line in zip(*lines, strict=True)]
    grid = _table(*lines[0])
    for line in lines[1:]:
        grid.add_row(*line)
    yield grid
    methods = [f"{titles}: {method}" for titles, method in table.methods(columns)]
    left_out = len(table.columns) - len(columns)
    if left_out:
        methods.append(f"{counted(left_out, 'column')} of the first positions or scales: see --csv, --json or --html")
    yield "\n" + "\n".join(methods)


def settings_view(settings: Sequence[DifferingSetting], names: Sequence[str]) -> Iterator[RenderableType]:
    """Which settings of their stages differ, if any do."""
    if not settings:
        return
    yield "\nWhat their stages were asked otherwise:"
    grid = _table("setting", *names, right=False)
    for each in settings[:_MOST_SETTINGS]:
        grid.add_row(f"{each.stage}: {each.name}", *("–" if value is None else value for value in each.values))
    yield grid
    if len(settings) > _MOST_SETTINGS:
        yield f"and {counted(len(settings) - _MOST_SETTINGS, 'more setting')}: see --json or --html"


def _table(first: str, *headings: str, right: bool = True) -> Table:
    from rich.table import Table

    grid = Table(box=None, pad_edge=False, header_style="bold")
    grid.add_column(first, overflow="fold")
    for heading in headings:
        grid.add_column(heading, justify="right" if right else "left", overflow="fold")
    return grid
