"""How far a pool of workers has come: on the terminal, and in progress.json for `foldtrain monitor`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Self

from cluster.pool.scale import PROGRESS
from cluster.pool.shard_ledger import Report, WorkerRate, slowest
from cluster.progress.training_progress import ProgressLine
from cluster.terminal.output import duration
from data_pipeline import storage
from data_pipeline.errors import FoldtrainError
from data_pipeline.storage.retries import patience
from data_pipeline.text.counted import counted

_RECORD_SECONDS, _SHARD_SECONDS = 5.0, 1.0
"""Between two records, and between two that have more shards: a pool may end several shards a second."""
_ASIDE_SECONDS = 5.0
"""How long storage is waited for: the run does not depend on it."""


class PoolProgress:
    """Shards and images done.

    Args:
        label: the stage.
        output: URI of the folder of the shards.
        shards: shards of the plan.
        images: images of the plan.
        shards_done: those that were there before.
        images_done: their images.
        unit: what a shard is called on the terminal, in the singular.
    """

    def __init__(
        self,
        label: str,
        output: str,
        shards: int,
        images: int,
        shards_done: int,
        images_done: int,
        unit: str = "shard",
    ) -> None:
        self._output, self._unit = output, unit
        self._shards, self._images = shards, images
        self.shards_done, self.images_done = shards_done, images_done
        self._began, self._done_before = time.monotonic(), images_done
        self._rate = 0.0
        self._written_at = self._written_done = -1.0
        self._line = ProgressLine(label, f"{unit}s")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        """Leave the terminal as it stands, and the record of the end."""
        self._line.close()
        told = kind is not None and issubclass(kind, KeyboardInterrupt | SystemExit)
        self._record("stopped" if told else "failed" if kind else "finished", None, ())
        if told:
            shards = counted(self._shards, self._unit)
            self._line.say(f"interrupted with {self.shards_done} of {shards}; the same command goes on")

    def add(self, images: int) -> None:
        """Count a shard that is settled."""
        self.shards_done += 1
        self.images_done += images

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._line.say(text)

    def show(self, report: Report) -> None:
        """Show and record how things stand."""
        begun = {shard.number: shard.images for shard in report.in_flight}
        self._show(report.images_per_second, sum(begun.values()), report.workers)

    def show_done(self) -> None:
        """Show and record how things stand where all is done in this process."""
        seconds = time.monotonic() - self._began
        self._show((self.images_done - self._done_before) / max(1e-3, seconds), 0, ())

    def _show(self, rate: float, begun: int, workers: Sequence[WorkerRate]) -> None:
        self._rate = rate
        eta = max(0, self._images - self.images_done - begun) / rate if rate > 0 else None
        self._line.update(self.shards_done, self._shards, _note(rate, eta, workers))
        now = time.monotonic()
        has_more = self.shards_done > self._written_done
        if now - self._written_at >= (_SHARD_SECONDS if has_more else _RECORD_SECONDS):
            self._record("running", eta, workers)
            self._written_at, self._written_done = now, self.shards_done

    def _record(self, state: str, eta: float | None, workers: Sequence[WorkerRate]) -> None:
        record: dict[str, Any] = {
            "time": time.time(),
            "state": state,
            "shards_done": self.shards_done,
            "shards": self._shards,
            "images_done": self.images_done,
            "images": self._images,
            "images_per_second": self._rate,
            "eta_seconds": eta,
            "workers": len(workers),
            "worker_rates": [
                {"worker": w.worker, "host": w.host, "images_per_second": round(w.images_per_second, 2)}
                for w in sorted(workers, key=lambda worker: (worker.host, worker.worker))
            ],
        }
        try:
            with patience(_ASIDE_SECONDS):
                storage.write_json(storage.join(self._output, PROGRESS), record)
        except (OSError, FoldtrainError) as error:  # what only informs stops nothing
            self._line.say(f"{PROGRESS} cannot be written: {error}")


def _note(rate: float, eta: float | None, workers: Sequence[WorkerRate]) -> str:
    parts = [f"{rate:.0f} images/s" if rate >= 10 else f"{rate:.1f} images/s"]
    if eta is not None:
        parts.append(f"ETA {duration(eta)} (at the rate of the last minute)")
    if workers:
        parts.append(f"{len(workers)} worker{'' if len(workers) == 1 else 's'}")
    slow = slowest(workers)
    if slow is not None:
        worker, median = slow
        parts.append(f"slowest {worker.images_per_second:.1f} on {worker.host} (median {median:.1f})")
    return "  ".join(parts)
