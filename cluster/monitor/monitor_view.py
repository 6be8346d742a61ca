"""The monitor in a terminal: a table of stages and what happened last."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cluster.monitor.stage_view import Event, StageView
from cluster.monitor.watching import RunReader, read_given, require_run
from cluster.pool.shard_ledger import slowest
from cluster.terminal.output import console, duration, sparkline
from data_pipeline.errors import FoldtrainError, StorageAwayError
from data_pipeline.storage.outside_errors import is_transient
from data_pipeline.storage.retries import patience
from data_pipeline.text.counted import counted
from data_pipeline.text.printable import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

_COLORS = {"running": "cyan", "stalled": "yellow", "stopped": "yellow", "finished": "green", "failed": "red"}
_COLUMNS = ("STAGE", "STATUS", "PROGRESS", "LOSS", "", "IMAGES/S", "ETA")
_RIGHT = {"LOSS", "IMAGES/S", "ETA"}
_EVENTS = 6
_LONGEST = 1000
"""Characters of an event that are shown."""
_LEAST_SHARE = 0.005
"""Of the wall time, below which a cause is not listed."""
_PATIENCE_SECONDS = 5.0
"""How long one request of a look may be tried: the next look is soon."""
_LONGEST_PAUSE = 60.0
"""Seconds between looks at most, of a run in which nothing is at work."""
_HOSTS = 8
"""Hosts whose workers are listed."""
_WIDE = 100
"""Columns from which there is room for a longer curve."""


def show(run: str, *, once: bool, interval: float) -> None:
    """Print how a run stands, once or every `interval` seconds until interrupted; less often once nothing is at work.

    A store that does not answer is said and asked again; it does not end the monitor.

    Raises:
        UsageError: if there is no run.
        FoldtrainError: if it cannot be read: with `once` for whatever reason, else for one that does not pass.
    """
    from rich.live import Live

    terminal, watch = console(), Watch(run)
    if once:
        watch.read(time.time())
        terminal.print(watch.frame(time.time(), terminal.width))
    elif not terminal.is_terminal:
        while True:  # a pipe gets one frame below the other
            terminal.print(watch.look(time.time(), terminal.width))
            time.sleep(watch.pause(interval))
    else:
        with Live(console=terminal, auto_refresh=False) as live:
            while True:
                live.update(watch.look(time.time(), terminal.width), refresh=True)
                time.sleep(watch.pause(interval))


class Watch:
    """What was last seen of a run, which is shown until there is something newer.

    Args:
        run: its URI.
    """

    def __init__(self, run: str) -> None:
        self._run, self._reader = run, RunReader(run)
        self._views: list[StageView] = []
        self._idle_looks = 0  # one after the other, at which nothing was at work and nothing had changed
        self._given: dict[str, str] = {}
        self._seen_at: float | None = None
        self._away = ""

    def read(self, now: float) -> None:
        """Read how the run stands.

        Raises:
            UsageError: if there is no run, and never was.
            FoldtrainError: if storage does not answer, or refuses.
            OSError: if it cannot be read.
        """
        if self._seen_at is None:
            require_run(self._run)
        views = self._reader.look(now)
        begun = [view.name for view in views]
        if begun != [view.name for view in self._views]:  # a stage records what it is given once, as it begins
            self._given = read_given(self._run, begun)
        has_ended = bool(views) and all(view.has_ended for view in views)
        self._idle_looks = self._idle_looks + 1 if has_ended and begun == [view.name for view in self._views] else 0
        self._views = views
        self._seen_at, self._away = now, ""

    def pause(self, interval: float) -> float:
        """Seconds until the next look: `interval`, and from look to look twice as many once nothing is at work.

        Args:
            interval: seconds between looks while there is something to see.
        """
        return max(interval, min(_LONGEST_PAUSE, interval * 2.0 ** min(self._idle_looks, 30)))

    def look(self, now: float, width: int) -> RenderableType:
        """Read how the run stands, and show that; or what was seen last, while storage does not answer.

        Raises:
            FoldtrainError: if the first look fails for a reason that does not pass.
        """
        try:
            with patience(_PATIENCE_SECONDS):
                self.read(now)
        except (OSError, FoldtrainError) as error:
            passes = isinstance(error, StorageAwayError) or (isinstance(error, OSError) and is_transient(error))
            if self._seen_at is None and not passes:
                raise
            self._away = str(error)
        return self.frame(now, width)

    def frame(self, now: float, width: int) -> RenderableType:
        """What was seen last; above it, that it is not from now, if so."""
        from rich.console import Group
        from rich.text import Text

        if not self._away:
            shown = frame(self._run, self._views, now, width, self._given)
            idle = f"nothing is at work: looks come up to {_LONGEST_PAUSE:g} s apart until something is"
            return Group(shown, Text(idle, "dim")) if self._idle_looks > 1 else shown
        last = "nothing was seen yet" if self._seen_at is None else f"this is from {_clock('%H:%M:%S', self._seen_at)}"
        note = Text(f"storage cannot be read, {last}; trying again. {printable(self._away)}", "yellow")
        if self._seen_at is None:
            return Group(Text(self._run, "bold"), note)
        return Group(note, frame(self._run, self._views, self._seen_at, width, self._given))


def frame(
    run: str, views: Sequence[StageView], now: float, width: int, given: Mapping[str, str] | None = None
) -> RenderableType:
    """What is shown of a run at the unix time `now`, seconds, in `width` columns; `given` came from elsewhere."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    title = Text.assemble((run, "bold"), f"   {_clock('%Y-%m-%d %H:%M:%S', now)}")
    if not views:
        return Group(title, Text("nothing has begun in this run: no stage has written metrics or tokens yet"))
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in _COLUMNS:
        grid.add_column(column, justify="right" if column in _RIGHT else "left", no_wrap=True)
    for view in views:
        plain = [Text(cell) for cell in _cells(view, 24 if width >= _WIDE else 8)]
        grid.add_row(plain[0], Text(_status(view), _COLORS[view.status]), *plain[1:])
    notes = [Text(f"{view.name}: {note}", "yellow") for view in views if (note := _notes(view))]
    happened = sorted((event for view in views for event in view.events), key=lambda event: event.time)[-_EVENTS:]
    notes += [Text(printable(line), "dim") for view in views if (line := _time_line(view))]
    notes += [Text(printable(line)) for view in views if (line := _held_out_line(view))]
    notes += [Text(printable(line), "dim") for view in views for line in _worker_lines(view, width)]
    lines = [Text(_event_line(event), "dim") for event in happened]
    notes += [Text(printable(f"{name}: from {uri}"), "dim") for name, uri in (given or {}).items()]
    return Group(title, grid, *notes, *lines)


def _event_line(event: Event) -> str:
    text = event.text if len(event.text) <= _LONGEST else f"{event.text[:_LONGEST]}…"
    return printable(f"{_clock('%H:%M:%S', event.time)}  {event.stage}: {text}")


def _clock(form: str, seconds: float) -> str:
    try:
        return time.strftime(form, time.localtime(seconds))
    except (OverflowError, ValueError, OSError):  # a record says so
        return f"at {seconds:g} s"


def _status(view: StageView) -> str:
    return f"stalled {duration(view.age)}" if view.status == "stalled" else view.status


def _notes(view: StageView) -> str:
    """What is out of the ordinary, or changes while a stage runs."""
    counts = ((view.skipped, "skipped step"), (view.spikes, "loss spike"), (view.restarts, "restart"))
    notes = [counted(count, name) for count, name in counts if count]
    if view.passed_over:
        notes.append(counted(view.passed_over, "step") + " passed over")
    if view.workers is not None and view.status == "running":
        notes.append(counted(view.workers, "worker"))
    return ", ".join(notes)


def _time_line(view: StageView) -> str:
    """Where the wall time of a training stage went."""
    if view.goodput is None:
        return ""
    causes = [f"{cause.replace('_', ' ')} {share:.0%}" for cause, share in view.spent if share >= _LEAST_SHARE]
    return f"{view.name}: time: {', '.join(causes) if causes else f'training {view.goodput:.0%}'}"


def _held_out_line(view: StageView) -> str:
    """The last look at held-out images."""
    found = ", ".join(f"{name} {value:.4g}" for name, value in view.held_out)
    return f"{view.name}: held-out images at step {view.looked_at:,}: {found}" if found else ""


def _worker_lines(view: StageView, width: int) -> list[str]:
    """The rate of each worker, by host; the slow one is marked."""
    if not view.worker_rates:
        return []
    last = slowest(view.worker_rates)
    hosts: dict[str, list[str]] = {}
    for worker in view.worker_rates:
        mark = " (slow)" if last is not None and worker == last[0] else ""
        hosts.setdefault(worker.host, []).append(f"{worker.images_per_second:,.1f}{mark}")
    lines = [f"{view.name}: {host}: {', '.join(rates)} images/s" for host, rates in sorted(hosts.items())]
    shown = [line if len(line) <= width else line[: width - 1] + "…" for line in lines[:_HOSTS]]
    return [*shown, f"{view.name}: and {counted(len(lines) - _HOSTS, 'more host')}"] if len(lines) > _HOSTS else shown


def _cells(view: StageView, spark_width: int) -> tuple[str, ...]:
    of = view.done if view.total is None else view.total
    total = "" if view.total is None else f"/{view.total:,}"
    share = f" {view.done / view.total:.0%}" if view.total else ""
    return (
        view.name,
        f"{view.done:,}{total} {view.unit if of == 1 else f'{view.unit}s'}{share}",
        f"{view.losses[-1]:.4g}" if view.losses else "-",
        sparkline(list(view.losses), spark_width),
        f"{view.rate:,.1f}" if view.rate is not None else "-",
        duration(view.eta) if view.eta is not None else "-",
    )
