"""Reports on data sets for people: tables in the terminal, samples as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cluster.terminal.output import console
from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.text.counted import counted
from data_pipeline.text.printable import printable

if TYPE_CHECKING:
    from data_pipeline.tools.inspecting import Inspection
    from data_pipeline.tools.verifying import Report

SHOWN_PROBLEMS = 10
"""Problems of a check that are printed; --json has those that are listed (tools.checks)."""
SHOWN_CLASSES = 20
_COLUMNS = 8
_PIXELS_WIDE = 96
"""Width that small images are enlarged to in a picture."""


def show_report(report: Report) -> None:
    """A line per check, and below it what is wrong."""
    from rich.table import Table
    from rich.text import Text

    table = Table("check", "", "found")
    for check in report.checks:
        mark = Text("ok", "green") if check.passed else Text("wrong", "bold red")
        table.add_row(check.name, mark, Text(printable(check.summary)))
    console().print(table)
    for check in report.checks:
        more = len(check.problems) - SHOWN_PROBLEMS
        lines = [*check.problems[:SHOWN_PROBLEMS], *([f"... and {more} more (--json lists them)"] if more > 0 else [])]
        for line in lines:  # not in the table, which would break them in a narrow terminal
            console().print(Text(printable(f"{check.name}: {line}"), "red"), soft_wrap=True)
    samples = f"{counted(report.samples, 'sample')} of {report.kind} in {counted(report.shards, 'shard')}"
    if report.passed:
        match = "matches its" if report.samples == 1 else "match their"
        console().print(f"{report.uri}: {samples} {match} manifest", markup=False)


def show_inspection(found: Inspection) -> None:
    """Schema, samples, labels and use of the codebooks."""
    from rich.table import Table
    from rich.text import Text

    terminal = console()
    schema = Table("field", "value", title="schema")
    for name, value in found.schema.items():
        for field, text in _fields(name, value):
            schema.add_row(Text(printable(field)), Text(printable(text)))
    samples = Table("key", "label", "class", title="first samples")
    for sample in found.samples:
        samples.add_row(Text(printable(sample["key"])), str(sample["label"]), Text(printable(sample["class"])))
    counts = sorted(found.label_counts.items(), key=lambda item: -item[1])
    labels = Table("class", "samples", title=f"labels ({counted(len(counts), 'class', 'classes')})")
    for name, count in counts[:SHOWN_CLASSES]:
        labels.add_row(Text(printable(name)), f"{count:,}")
    if len(counts) > SHOWN_CLASSES:
        labels.add_row("...", f"down to {counts[-1][1]:,} ({printable(counts[-1][0])})")
    for table in (schema, samples, labels):
        terminal.print(table)
    if found.codebook:
        terminal.print(_codebook_table(found))


def _fields(name: str, value: Any) -> list[tuple[str, str]]:
    """A field in rows; a record inside a record keeps to one row each."""
    if not isinstance(value, dict):
        return [(name, ", ".join(map(str, value)) if isinstance(value, list) else str(value))]
    return [(f"{name}.{key}", str(inner)) for key, inner in value.items()]


def _codebook_table(found: Inspection) -> Any:
    from rich.table import Table

    table = Table("fold", "group", "positions", "codes used", "perplexity")
    table.title = f"codebook use over {counted(found.codebook_samples, 'sample')}"
    for use in found.codebook:
        row = (use.fold, use.group, use.positions, f"{use.share:.1%}", f"{use.perplexity:.1f}")
        table.add_row(*map(str, row))
    return table


def write_grid(uri: str, kind: str, tokenizer: str | None, samples: int, path: str) -> None:
    """Draw the first samples into a PNG: images decoded, tokens through the tokenizer that made them.

    Raises:
        UsageError: if the tokenizer is not given, is another one, or the file is not to be a PNG.
    """
    from data_pipeline.tools import inspecting
    from trainer.evaluation.images import image_grid, to_png, to_uint8

    if not path.lower().endswith(".png"):
        raise UsageError(f"--grid {path}: name a .png file")
    if kind == "images":
        pixels_NHWC = inspecting.decoded_samples(uri, samples)
    elif tokenizer is None:
        raise UsageError(f"{uri} holds tokens: give --tokenizer EXPORT to draw what they stand for")
    else:
        pixels_NHWC = to_uint8(inspecting.reconstructed_samples(uri, tokenizer, samples))
    columns, upscale = min(_COLUMNS, len(pixels_NHWC)), max(1, _PIXELS_WIDE // pixels_NHWC.shape[1])
    storage.write_bytes(path, to_png(image_grid(pixels_NHWC, columns, upscale=upscale)))
