"""What crashed processes left behind: list it, remove it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cluster.terminal.output import say

if TYPE_CHECKING:
    from rich.table import Table

    from data_pipeline.tools.leftovers import Leftover


def collect_leftovers(
    uri: Annotated[
        str,
        typer.Argument(metavar="FOLDER", help="A run, a data set or a folder of them, at any URI; no whole bucket."),
    ],
    delete: Annotated[bool, typer.Option("--delete", help="Remove what is listed.")] = False,
    older_than: Annotated[
        float,
        typer.Option("--older-than", min=0, max=10**10, metavar="SECONDS", help="Leave alone what was written since."),
    ] = 3600.0,
) -> None:
    """List what crashed processes left behind: unfinished files and uploads, stray shards, old checkpoints.

    Only in runs and data sets of foldtrain, known by their records; nothing else is touched, and nothing where a
    command is at work.
    """
    from cluster.terminal.output import console
    from data_pipeline.tools import leftovers

    found = leftovers.find_leftovers(uri, older_than, say=say)
    if not found:
        say(f"{uri}: nothing is left over")
        return
    console().print(_table(found))
    if delete:
        removed = list(leftovers.remove(found, say))
        say(f"removed {_total(removed)}")
    else:
        say(f"{_total(found)}; remove them with: foldtrain gc {uri} --delete --older-than {older_than:g}")


def _table(found: list[Leftover]) -> Table:
    from rich.filesize import decimal
    from rich.table import Table

    from cluster.terminal.output import duration

    table = Table("kind", "bytes", "age", "place", box=None, pad_edge=False)
    for leftover in found:
        size = "" if leftover.bytes is None else decimal(leftover.bytes)
        table.add_row(leftover.kind, size, duration(leftover.age), leftover.uri)
    return table


def _total(found: list[Leftover]) -> str:
    from rich.filesize import decimal

    return f"{len(found)} leftovers, {decimal(sum(leftover.bytes or 0 for leftover in found))}"


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command("gc", rich_help_panel="Runs")(collect_leftovers)
