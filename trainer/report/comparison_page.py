"""A comparison of runs → one HTML file: no script, no request to anywhere.

The table of their numbers with how each was measured, samples of the same seed side by side, and what differs in what
their stages were asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from trainer.evaluation.naming.number_names import full_name
from trainer.report.data import Samples
from trainer.report.evaluated_runs import EvaluatedRun, read_same_samples
from trainer.report.page import data_uri, render
from trainer.report.run_table import RunTable
from trainer.report.settings import differing_settings
from trainer.report.table_files import cells

MOST_PICTURE_BYTES = 64 * 2**20
"""Of all samples of a page."""


def comparison_page(runs: Sequence[EvaluatedRun], table: RunTable, most_picture_bytes: int = MOST_PICTURE_BYTES) -> str:
    """The whole page. Whatever comes from a run is escaped."""
    samples, why_not = read_same_samples(runs)
    if sum(len(each.png) for each in samples) > most_picture_bytes:
        samples, why_not = [], f"they have more than {most_picture_bytes:,} bytes: compare fewer runs"
    settings = differing_settings([run.settings for run in runs])
    return render(
        "comparison.html",
        created=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        runs=[run.name for run in runs],
        headings=[column.heading for column in table.columns],
        rows=[cells(row, table.columns, has_hours=table.has_hours) for row in table.rows],
        has_hours=table.has_hours,
        methods=table.methods(table.columns),
        names=[(run.name, [full_name(number) for number in run.numbers]) for run in runs],
        samples=list(_pictures(runs, samples)),
        why_not=why_not,
        settings=[(stage, list(found)) for stage, found in groupby(settings, key=lambda each: each.stage)],
        problems=[problem for run in runs for problem in run.problems],
    )


def _pictures(runs: Sequence[EvaluatedRun], samples: Sequence[Samples]) -> Iterator[dict[str, Any]]:
    for run, each in zip(runs, samples, strict=False):
        yield {"run": run.name, "png": data_uri(each.png)}
