"""What is printed in the same way by every command."""

from __future__ import annotations

import itertools
import os
import sys
from typing import TYPE_CHECKING, Any

from data_pipeline.text.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

_FILE_WIDTH = 160
"""Columns of a table that goes to a file or a pipe."""

SPARKS = "▁▂▃▄▅▆▇█"


def console(*, stderr: bool = False) -> Console:
    """The terminal. Text is never wrapped or coloured by guess, so that it can be searched and copied.

    Whatever is printed to it, in a table or a bar too, text is text: no markup, and what is no visible character is
    spelt out (data_pipeline/text/printable.py).
    """
    from cluster.terminal.safe_console import SafeConsole

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else _FILE_WIDTH
    return SafeConsole(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True, width=width)


def say(*lines: str, err: bool = False) -> None:
    """Print each text on one line, whatever it holds."""
    import typer

    for line in lines:
        typer.echo(printable(line), err=err)


def say_json(record: Any, *, indent: int | None = None) -> None:
    """Print a record as JSON that a terminal shows as it is."""
    import json

    import typer

    typer.echo(printable(json.dumps(record, indent=indent, ensure_ascii=False), lines=True))


def print_error(message: str) -> None:
    """Say on stderr what went wrong. Lines after the first are set in, so that none passes for another message."""
    from rich.text import Text

    first, *more = message.split("\n")
    lines = [first, *(line if line.startswith("  ") else f"  {line}" for line in more)]
    console(stderr=True).print(Text.assemble(("error: ", "bold red"), "\n".join(map(printable, lines))))


def duration(seconds: float) -> str:
    """A span of time in its two largest units: 42s, 3m 05s, 2h 10m, 4d 03h."""
    whole = max(0, round(seconds))
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}h"
    if hours:
        return f"{hours}h {minute:02}m"
    return f"{minutes}m {second:02}s" if minutes else f"{second}s"


def sparkline(values: list[float], width: int = 24) -> str:
    """The course of a number in `width` characters at most; each shows the mean of its share of the values."""
    finite = [value for value in values if abs(value) < float("inf")]
    if not finite:
        return ""
    cells = min(width, len(finite))
    edges = [len(finite) * cell // cells for cell in range(cells + 1)]
    means = [sum(finite[start:stop]) / (stop - start) for start, stop in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARKS[round((mean - low) * scale)] for mean in means)
