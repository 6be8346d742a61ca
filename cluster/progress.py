"""Progress of a stage in the terminal, read from the run's own files: the driver needs no word from its workers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from cluster.terminal import console, duration
from data_pipeline import storage
from data_pipeline.errors import FoldtrainError
from data_pipeline.printable import printable
from trainer.job import TrainJob
from trainer.jsonl import read_last_records
from trainer.record_shapes import is_metrics, is_timed_event

_POLL_SECONDS = 2.0
_LINE_SECONDS = 15.0
_LAST_SECONDS = 5.0
_ENDS = frozenset({"finish", "stop", "failure"})


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

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(printable(f"{self._label}: {text}"))

    def close(self) -> None:
        """Leave the terminal as it stands."""
        self._bar.stop()


@contextmanager
def follow_training(job: TrainJob, news: Callable[[], Iterable[str]] = tuple) -> Iterator[None]:
    """Show a training stage while it runs, from its metrics.jsonl and its restarts.

    Args:
        job: the stage.
        news: what else there is to say of it since the last call.
    """
    line = ProgressLine(job.stage, "steps")
    stop, since = threading.Event(), time.time()
    said = _Said()

    def follow() -> None:
        while not stop.wait(_POLL_SECONDS):
            for text in news():
                line.say(text)
            said.read(job, line, since)
            _show_newest(job, line)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(_LAST_SECONDS)  # it may ask a head of Ray that no longer answers
        _show_newest(job, line)
        line.close()


def has_ended(job: TrainJob, since: float) -> bool:
    """Whether the workers of a stage have recorded that they ended, after a unix time in seconds."""
    try:
        events = read_last_records(storage.join(job.folder, "events.jsonl"))
    except (OSError, FoldtrainError):
        return False
    return any(event["event"] in _ENDS and event["time"] >= since for event in events)


class _Said:
    """What was said of a stage, so that it is said once."""

    def __init__(self) -> None:
        self._environment, self._restart = False, 0.0

    def read(self, job: TrainJob, line: ProgressLine, since: float) -> None:
        """Say what the stage runs on, as soon as this start of it is on record, and what each restart has cost."""
        try:
            events = read_last_records(storage.join(job.folder, "events.jsonl"), is_record=is_timed_event)
            events = [event for event in events if event["time"] >= since]
            if events and not self._environment:
                _say_environment(storage.read_json(storage.join(job.folder, "environment.json")), line)
                self._environment = True
        except (OSError, FoldtrainError):
            return
        for event in events:
            if _is_restart(event) and event["time"] > self._restart:
                self._restart = event["time"]
                line.say(_restart(event))


def _say_environment(found: Any, line: ProgressLine) -> None:
    names = ("workers", "device", "backend", "attention")
    if isinstance(found, dict) and found.keys() >= set(names):
        workers, device, backend, attention = (found[name] for name in names)
        line.say(f"{workers} workers on {device}, {backend}; attention: {attention}")
        if found.get("mfu"):
            line.say(str(found["mfu"]))


def _is_restart(event: dict[str, Any]) -> bool:
    needed = ("workers", "lost_steps", "seconds")
    return event["event"] == "restart" and all(event.get(name) is not None for name in needed)


def _restart(event: dict[str, Any]) -> str:
    before, now = event.get("workers_before"), event["workers"]
    size = f"{now} workers" if before in {now, None} else f"{now} workers, before {before}"
    cost = f"{event['lost_steps']} steps done again, {duration(event['seconds'])} without any"
    return f"goes on from step {event['step']} with {size}; {cost}"


def _show_newest(job: TrainJob, line: ProgressLine) -> None:
    try:
        records = read_last_records(storage.join(job.folder, "metrics.jsonl"), is_record=_is_shown)
    except (OSError, FoldtrainError):  # storage that is away for a moment stops nothing
        return
    if records:
        line.update(records[-1]["step"], records[-1]["steps"], _note(records[-1]))


def _is_shown(record: dict[str, Any]) -> bool:
    needed = ("steps", "skipped_steps", "samples_per_second", "eta_seconds")
    return is_metrics(record) and all(record.get(name) is not None for name in needed)


def _note(record: dict[str, Any]) -> str:
    loss = "not finite" if record.get("loss") is None else f"{record['loss']:.4f}"
    skipped = f"  skipped {record['skipped_steps']}"
    rate = f"{record['samples_per_second']:.0f} samples/s"
    return f"loss {loss}  {rate}  ETA {duration(record['eta_seconds'])}{skipped}"
