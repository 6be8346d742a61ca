"""`foldtrain compare`: whether the numbers of evaluations may be compared, and what differs; of many runs a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.terminal.output import say
from data_pipeline.errors import UsageError

if TYPE_CHECKING:
    from trainer.evaluation.naming.comparison import Pairs
    from trainer.report.evaluated_runs import EvaluatedRun
    from trainer.report.run_table import RunTable

Places = Annotated[
    list[str],
    typer.Argument(metavar="RUN|FILE...", help="Runs that were evaluated, or .json files with numbers, at any URI."),
]
_TO = "Write them to this file, at any URI, as "


def compare(
    places: Places,
    *,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table for a paper, in Markdown.")] = False,
    csv: Annotated[str | None, typer.Option("--csv", metavar="FILE", help=f"{_TO}CSV.")] = None,
    json: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help=f"{_TO}JSON, each with its full name.")
    ] = None,
    html: Annotated[
        str | None,
        typer.Option("--html", metavar="FILE", help=f"{_TO}a page, with samples of the same seed side by side."),
    ] = None,
) -> None:
    """Say whether the numbers of two evaluations may be compared, and what differs; of more runs make a table.

    Numbers may be compared if they are of the same metric, of as many images, and measured in the same way.
    """
    from trainer.evaluation.naming.comparison import pair
    from trainer.report.run_table import table_of

    runs = read_runs(places)
    table = table_of(runs)
    pairs = pair(runs[0].numbers, runs[1].numbers) if len(places) == 2 else None
    for problem in (problem for run in runs for problem in run.problems):
        say(problem, err=True)
    _write(runs, table, pairs, {"csv": csv, "json": json, "html": html})
    if markdown:
        from trainer.report.table_files import markdown_text

        say(*markdown_text(table).rstrip("\n").split("\n"))
    else:
        _show(runs, table, pairs)


def read_runs(places: Sequence[str]) -> list[EvaluatedRun]:
    """What is on record at each place. Of three and more, those without numbers are left out, and that is said.

    Raises:
        UsageError: if there are none, or one of two has none.
    """
    from trainer.report.evaluated_runs import read_run

    found = []
    for place in places:
        try:
            found.append(read_run(place))
        except (FileNotFoundError, NotADirectoryError):
            if len(places) < 3:
                raise UsageError(
                    f"{place} has no evaluation.json: evaluate it, or name a run or a .json file with numbers"
                ) from None
            say(f"{place} has no evaluation.json: left out", err=True)
    if not found:
        raise UsageError(f"none of the {len(places)} places has an evaluation.json: run `foldtrain evaluate`")
    return found


def _write(runs: Sequence[EvaluatedRun], table: RunTable, pairs: Pairs | None, files: Mapping[str, str | None]) -> None:
    from data_pipeline import storage
    from trainer.report.comparison_page import comparison_page
    from trainer.report.table_files import csv_text, json_record

    made: dict[str, Callable[[], bytes]] = {
        "csv": lambda: csv_text(table).encode(),
        "json": lambda: storage.canonical_json(json_record(runs, pairs)),
        "html": lambda: comparison_page(runs, table).encode(),
    }
    for kind, file in files.items():
        if file is not None:
            storage.write_bytes(file, made[kind]())
            say(f"{file} is written", err=True)


def _show(runs: Sequence[EvaluatedRun], table: RunTable, pairs: Pairs | None) -> None:
    from cluster.stages.comparison_view import settings_view, table_view, two_view
    from cluster.terminal.output import console
    from trainer.report.settings import differing_settings

    settings = differing_settings([run.settings for run in runs])
    parts = two_view(runs[0], runs[1], pairs) if pairs else table_view(table)
    for part in (*parts, *settings_view(settings, [run.name for run in runs])):
        console().print(part)


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("compare", rich_help_panel="Runs")(compare)
