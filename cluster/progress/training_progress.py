"""Progress of a stage in the terminal, read from the run's own files: the driver needs no word from its workers."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from cluster.session.ray_session import is_connected
from cluster.terminal.output import console, duration
from data_pipeline import storage
from data_pipeline.errors import FoldtrainError
from data_pipeline.text.counted import counted
from data_pipeline.text.printable import printable
from trainer.job import TrainJob
from trainer.records.goodput import STARTS, Record
from trainer.records.jsonl import RecordCursor, read_last_records
from trainer.records.record_shapes import is_metrics, is_timed_event

_POLL_SECONDS, _REMOTE_POLL_SECONDS = 2.0, 5.0
"""Between two looks at the records; object storage gets new ones every five seconds."""
_LINE_SECONDS = 15.0
_LAST_SECONDS = 2.0
_START_POLL_SECONDS, _REMOTE_START_POLL_SECONDS = 1.0, 2.0
"""The same until the first step."""
_MOST_EVENTS = 1000
"""That are looked through for what is to be said."""
_START = {
    "Ray": "starting Ray",
    "workers": "starting workers",
    "loading": "loading torch, the network and the newest checkpoint",
    "first step": "waiting for the first step",
}
"""What a stage waits for, one after the other."""
_ENDS = frozenset({"finish", "stop", "failure"})
Seen = Callable[[Sequence[Record], Sequence[Record]], None]
"""Is given events and metrics."""


class Told(Protocol):
    """A run that tells of itself."""

    def news(self) -> list[str]:
        """What there is to say of it since the last call."""

    def has_workers(self) -> bool:
        """Whether its workers are up."""


class ProgressLine:
    """A bar with rate and ETA in a terminal; elsewhere a line now and then."""

    def __init__(self, label: str, unit: str) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self._label, self._unit = label, unit
        self._console = console()
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}", markup=False),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._console,
        )
        self._task = self._bar.add_task(label, total=1, note="starting")
        self._printed_at, self._printed_done = 0.0, -1.0
        if self._console.is_terminal:
            self._bar.start()

    def update(self, done: float, total: float, note: str) -> None:
        """Show that `done` of `total` units are done."""
        self._bar.update(self._task, completed=done, total=total, note=note)
        now, news = time.monotonic(), done != self._printed_done
        if not self._console.is_terminal and news and (done >= total or now - self._printed_at > _LINE_SECONDS):
            self._printed_at, self._printed_done = now, done
            self._console.print(printable(f"{self._label}: {done:.0f}/{total:.0f} {self._unit}  {note}"))

    def wait(self, what: str, passed: str, *, is_new: bool) -> None:
        """Show what is waited for before the first unit, and for how long it has been."""
        self._bar.update(self._task, note=f"{what}, {passed}")
        if is_new and not self._console.is_terminal:
            self._console.print(f"{self._label}: {what} ({passed} since the start)")

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(printable(f"{self._label}: {text}"))

    def close(self) -> None:
        """Leave the terminal as it stands."""
        self._bar.stop()


class Follower:
    """What is shown of a training stage: what it waits for until its first step, then its metrics and restarts.

    Args:
        job: the stage.
        asked: unix time at which it was asked for, seconds.
        seen: is given the events and the metrics that are new, with each look; some may come again.
    """

    def __init__(self, job: TrainJob, asked: float, seen: Seen = lambda _events, _metrics: None) -> None:
        self._job, self._asked, self._since, self._seen = job, asked, time.time(), seen
        self._line = ProgressLine(job.stage, "steps")
        self._said = _Said(job)
        self._metrics = RecordCursor(storage.join(job.folder, "metrics.jsonl"), is_record=_is_shown)
        self._stop, self._telling = threading.Event(), threading.Lock()
        self._run: Told | None = None
        self._waits_for = ""
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)

    def start(self) -> None:
        """Begin to show it."""
        self.look()
        self._thread.start()

    def close(self) -> None:
        """Show the newest, and leave the terminal as it stands."""
        self._stop.set()
        self._thread.join(_LAST_SECONDS)  # it may ask a head of Ray that no longer answers
        if not self._thread.is_alive():
            self._seen(self._said.read(self._line, self._since), self._show_newest())
        self._line.close()

    @contextmanager
    def telling(self, run: Told) -> Iterator[None]:
        """Ask a run for its news, as long as it is entered: Ray has to be connected."""
        self._run = run
        try:
            yield
        finally:
            self._run = None
            if self._telling.acquire(timeout=_LAST_SECONDS):  # a question that is under way
                self._telling.release()

    def _follow(self) -> None:
        is_remote = storage.is_remote(self._job.folder)
        at_work = _REMOTE_POLL_SECONDS if is_remote else _POLL_SECONDS
        before = _REMOTE_START_POLL_SECONDS if is_remote else _START_POLL_SECONDS
        while not self._stop.wait(at_work if self._said.first_step else before):
            self.look()

    def look(self) -> None:
        """Show what there is to show now."""
        with self._telling:
            run = self._run
            for text in run.news() if run else ():
                self._line.say(text)
            has_workers = bool(run and not self._said.started and run.has_workers())
        events: Sequence[Record] = self._said.read(self._line, self._since)
        metrics: Sequence[Record] = []
        if self._said.first_step:
            metrics = self._show_newest()
        elif self._said.started:
            self._show_start("first step")
        elif has_workers:
            self._show_start("loading")
        else:
            self._show_start("workers" if run or is_connected() else "Ray")
        self._seen(events, metrics)

    def _show_newest(self) -> Sequence[Record]:
        """Returns what is new."""
        try:
            records, _ = self._metrics.look()
        except (OSError, FoldtrainError):  # storage that is away for a moment stops nothing
            return []
        if records:
            self._line.update(records[-1]["step"], records[-1]["steps"], _note(records[-1]))
        return records

    def _show_start(self, waits_for: str) -> None:
        """In a terminal one line that counts the seconds, elsewhere a line for each thing that it waits for."""
        passed = duration(time.time() - self._asked)
        self._line.wait(_START[waits_for], passed, is_new=waits_for != self._waits_for)
        self._waits_for = waits_for


@contextmanager
def follow_training(job: TrainJob, asked: float, seen: Seen = lambda _events, _metrics: None) -> Iterator[Follower]:
    """Show a training stage from its start on, as long as it is entered.

    Args:
        job: the stage.
        asked: unix time at which it was asked for, seconds.
        seen: as for `Follower`.
    """
    follower = Follower(job, asked, seen)
    follower.start()
    try:
        yield follower
    finally:
        follower.close()


def has_ended(job: TrainJob, since: float) -> bool:
    """Whether no worker of a stage is at work: none has begun after a unix time in seconds, or all recorded an end."""
    try:
        events = read_last_records(storage.join(job.folder, "events.jsonl"), is_record=is_timed_event)
    except (OSError, FoldtrainError):
        return False
    at_work = False
    for event in events:
        if event["time"] >= since and event["event"] in STARTS | _ENDS:
            at_work = event["event"] in STARTS
    return not at_work


class _Said:
    """What was said of a stage, so that it is said once."""

    def __init__(self, job: TrainJob) -> None:
        self._job = job
        self._cursor = RecordCursor(storage.join(job.folder, "events.jsonl"), is_record=is_timed_event)
        self._events: deque[dict[str, Any]] = deque(maxlen=_MOST_EVENTS)
        self._environment, self._restart = False, 0.0
        self.started = self.first_step = False

    def read(self, line: ProgressLine, since: float) -> Sequence[Record]:
        """Say what the stage runs on, as soon as this start of it is on record, and what each restart has cost.

        Returns:
            The events of this start that are new.
        """
        new: list[dict[str, Any]] = []
        try:
            found, is_other = self._cursor.look()
            if is_other:
                self._events.clear()
            new = [event for event in found if event["time"] >= since]
            self._events.extend(new)
            events = list(self._events)
            if events and not self._environment:
                _say_environment(storage.read_json(storage.join(self._job.folder, "environment.json")), line)
                self._environment = True
        except (OSError, FoldtrainError):
            return new
        self.started = self.started or any(event["event"] in STARTS for event in events)
        self._read_first_step(events, line)
        for event in events:
            if _is_restart(event) and event["time"] > self._restart:
                self._restart = event["time"]
                line.say(_restart(event))
        return new

    def _read_first_step(self, events: Sequence[Record], line: ProgressLine) -> None:
        """Say how long it took to come; a stage that has ended without one waits for none."""
        if self.first_step:
            return
        for event in events:
            if event["event"] == "first_step" and isinstance(event.get("seconds"), int | float):
                line.say(f"first step {duration(event['seconds'])} after the start")
                self.first_step = True
                return
        self.first_step = any(event["event"] in _ENDS for event in events)


def _say_environment(found: Any, line: ProgressLine) -> None:
    names = ("workers", "device", "backend", "attention")
    if isinstance(found, dict) and found.keys() >= set(names):
        workers, device, backend, attention = (found[name] for name in names)
        line.say(f"{counted(workers, 'worker')} on {device}, {backend}; attention: {attention}")
        for more in ("data", "mfu"):
            if found.get(more):
                line.say(str(found[more]))


def _is_restart(event: dict[str, Any]) -> bool:
    needed = ("workers", "lost_steps", "seconds")
    return event["event"] == "restart" and all(event.get(name) is not None for name in needed)


def _restart(event: dict[str, Any]) -> str:
    before, now = event.get("workers_before"), event["workers"]
    size = counted(now, "worker") + ("" if before in {now, None} else f", before {before}")
    cost = f"{counted(event['lost_steps'], 'step')} done again, {duration(event['seconds'])} without any"
    return f"goes on from step {event['step']} with {size}; {cost}"


def _is_shown(record: dict[str, Any]) -> bool:
    needed = ("steps", "skipped_steps", "samples_per_second", "eta_seconds")
    return is_metrics(record) and all(record.get(name) is not None for name in needed)


def _note(record: dict[str, Any]) -> str:
    loss = "not finite" if record.get("loss") is None else f"{record['loss']:.4f}"
    skipped = f"  skipped {record['skipped_steps']}"
    rate = f"{record['samples_per_second']:.0f} samples/s"
    return f"loss {loss}  {rate}  ETA {duration(record['eta_seconds'])}{skipped}"
