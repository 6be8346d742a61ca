"""The monitor in a terminal: a table of stages and what happened last."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cluster.monitor import StageView, read_run
from cluster.terminal import console, duration, sparkline

if TYPE_CHECKING:
    from rich.console import RenderableType

_COLORS = {"running": "cyan", "stalled": "yellow", "finished": "green", "failed": "red"}
_COLUMNS = ("STAGE", "STATUS", "PROGRESS", "LOSS", "", "IMAGES/S", "ETA", "SKIPPED", "RESTARTS")
_EVENTS = 6


def show(run: str, *, once: bool, interval: float) -> None:
    """Print how a run stands, once or every `interval` seconds until interrupted.

    A store that does not answer is said and asked again; it does not end the monitor.
    """
    from rich.live import Live

    terminal = console()
    if once:
        terminal.print(frame(run, read_run(run, time.time()), time.time()))
    elif not terminal.is_terminal:
        while True:  # a pipe gets one frame below the other
            terminal.print(_look(run))
            time.sleep(interval)
    else:
        with Live(console=terminal, auto_refresh=False) as live:
            while True:
                live.update(_look(run), refresh=True)
                time.sleep(interval)


def _look(run: str) -> RenderableType:
    from rich.text import Text

    try:
        return frame(run, read_run(run, time.time()), time.time())
    except OSError as error:
        return Text(f"{run} cannot be read: {error}; trying again")


def frame(run: str, views: Sequence[StageView], now: float) -> RenderableType:
    """What is shown of a run at the unix time `now`, seconds."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    title = Text.assemble((run, "bold"), f"   {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(now))}")
    if not views:
        return Group(title, Text("nothing has begun in this run: no stage has written metrics or tokens yet"))
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in _COLUMNS:
        grid.add_column(column, justify="right" if column in {"LOSS", "IMAGES/S", "ETA", "SKIPPED"} else "left")
    for view in views:
        grid.add_row(*(Text(cell, _style(column, view)) for column, cell in zip(_COLUMNS, _cells(view), strict=True)))
    happened = sorted((event for view in views for event in view.events), key=lambda event: event.time)[-_EVENTS:]
    lines = [
        Text(f"{time.strftime('%H:%M:%S', time.localtime(event.time))}  {event.stage}: {event.text}", "dim")
        for event in happened
    ]
    return Group(title, grid, *lines)


def _style(column: str, view: StageView) -> str:
    if column == "STATUS":
        return _COLORS[view.status]
    trouble = {"SKIPPED": view.skipped, "RESTARTS": view.restarts}.get(column)
    return "yellow" if trouble else ""


def _cells(view: StageView) -> tuple[str, ...]:
    quiet = f" {duration(view.age)}" if view.status == "stalled" else ""
    workers = "" if view.workers is None else f", {view.workers} workers"
    share = f" {view.done / view.total:.0%}" if view.total else ""
    counts_steps = view.unit == "step"
    return (
        view.name,
        f"{view.status}{quiet}",
        f"{view.unit} {view.done:,}{f' of {view.total:,}' if view.total is not None else ''}{share}{workers}",
        f"{view.losses[-1]:.4g}" if view.losses else "-",
        sparkline(list(view.losses)),
        f"{view.rate:,.1f}" if view.rate is not None else "-",
        duration(view.eta) if view.eta is not None else "-",
        str(view.skipped) if counts_steps else "-",
        str(view.restarts) if counts_steps else "-",
    )
