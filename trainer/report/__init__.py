"""The report of a run: one HTML file that needs nothing else.

collect.py   reads what a run has left in its folder
belonging.py what of that does not belong together
data.py      what a report is made of, as plain values
charts.py    values → inline SVG
named_numbers.py, sweeps.py   the numbers with their full names; those of many settings of sampling
page.py      all of it → HTML, through page.html and style.css

And the comparison of several runs: evaluated_runs.py reads them, run_table.py is their table, settings.py what differs
in what they were asked; table_files.py and comparison_page.py write it.
"""

from __future__ import annotations

from data_pipeline import storage
from trainer.report.collect import collect
from trainer.report.data import ReportData
from trainer.report.page import build_report

__all__ = ["ReportData", "build_report", "collect", "write_report"]


def write_report(run_uri: str) -> str:
    """Write <run>/report.html from what the run's stages have left. Returns its URI.

    Raises:
        UsageError: if the run was not evaluated, or one of its files was cut or edited.
    """
    uri = storage.join(run_uri, "report.html")
    storage.write_bytes(uri, build_report(collect(run_uri)).encode())
    return uri
