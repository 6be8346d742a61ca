"""Progress of a stage in the terminal, read from the run's own files: the driver needs no word from its workers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster.terminal import console, duration
from data_pipeline import storage
from trainer.job import TrainJob
from trainer.jsonl import read_records

_POLL_SECONDS = 1.0
_LINE_SECONDS = 15.0


class ProgressLine:
    """A bar with rate and ETA in a terminal; elsewhere a line now and then."""

    def __init__(self, label: str, unit: str) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self._label, self._unit = label, unit
        self._console = console()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[note]}"),
            console=self._console,
        )
        self._task = self._bar.add_task(label, total=1, note="starting")
        self._printed = 0.0
        if self._console.is_terminal:
            self._bar.start()

    def update(self, done: float, total: float, note: str) -> None:
        """Show that `done` of `total` units are done."""
        self._bar.update(self._task, completed=done, total=total, note=note)
        now = time.monotonic()
        if not self._console.is_terminal and (done >= total or now - self._printed > _LINE_SECONDS):
            self._printed = now
            self._console.print(f"{self._label}: {done:.0f}/{total:.0f} {self._unit}  {note}")

    def close(self) -> None:
        """Leave the terminal as it stands."""
        self._bar.stop()


@contextmanager
def follow_training(job: TrainJob) -> Iterator[None]:
    """Show a training stage while it runs, from its metrics.jsonl."""
    line = ProgressLine(job.stage, "steps")
    stop = threading.Event()

    def follow() -> None:
        while not stop.wait(_POLL_SECONDS):
            _show_newest(job, line)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        _show_newest(job, line)
        line.close()


def _show_newest(job: TrainJob, line: ProgressLine) -> None:
    try:
        records = read_records(storage.join(job.folder, "metrics.jsonl"))
    except OSError:  # storage that is away for a moment stops nothing
        return
    if records:
        line.update(records[-1]["step"], records[-1]["steps"], _note(records[-1]))


def _note(record: dict[str, Any]) -> str:
    loss = "not finite" if record["loss"] is None else f"{record['loss']:.4f}"
    skipped = f"  skipped {record['skipped_steps']}" if record["skipped_steps"] else ""
    rate = f"{record['samples_per_second']:.0f} samples/s"
    return f"loss {loss}  {rate}  ETA {duration(record['eta_seconds'])}{skipped}"
