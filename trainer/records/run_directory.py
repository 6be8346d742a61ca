"""What a training stage leaves in its folder.

<run>/<stage>/
    config.yaml         the resolved config of the whole run
    environment.json    versions, devices, the DeepSpeed settings, the attention backend
    lineage.json        fingerprints of what it was trained from
    metrics.jsonl       a record every `log_every` steps: the source of truth; trackers only read it (trackers/)
    events.jsonl        start, resume, restart, first_step, rollback, checkpoint, checkpoint_failed,
                        checkpoint_damaged, settings_changed, skipped_step, spike, validation, finish, no_mfu,
                        goodput, dropped_records, lines_left_out
    pictures/           reconstructions-STEP.png: the same held-out images at each look of validation;
                        samples-STEP.png: what a generator draws of the same seeds and classes
    metrics.prom        the newest record for Prometheus, if the folder is on this machine
    checkpoints/        see checkpoints/
    export/             the finished network, see data_pipeline/shards/weights.py
"""

from __future__ import annotations

import logging
import platform
import socket
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

from data_pipeline import storage
from trainer.config import TrackingConfig
from trainer.records import columns
from trainer.records.goodput import Account
from trainer.records.jsonl import Continued, JsonlWriter, read_lines
from trainer.records.reading_columns import read_columns
from trainer.records.record_shapes import is_event, is_metrics
from trainer.records.trackers import close_followers, open_followers

_LOG = logging.getLogger(__name__)
_PACKAGES = ("foldtrain", "torch", "deepspeed", "ray", "timm", "numpy")


def environment(extra: dict[str, Any]) -> dict[str, Any]:
    """What the stage runs on."""
    versions = {name: version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "host": socket.gethostname(), "packages": versions} | extra


def append_event(uri: str, event: str, step: int, **details: Any) -> None:
    """Record something that happened before a stage's start is on record; returns when it is stored, or cannot be."""
    path = storage.join(uri, "events.jsonl")
    events = JsonlWriter(path, keep=Continued(is_event))
    events.write({"time": time.time(), "event": event, "step": step} | details)
    events.close()


class RunDirectory:
    """The records of one stage, written by rank 0.

    Args:
        uri: folder of the stage.
        name: of the stage.
        config: the resolved config of the whole run, for trackers.
        resume_step: steps that were done before this start; records of later ones are taken back.
        tracking: who is shown the metrics.
        began: unix time at which this start began: when its command was given; now if None.
        workers: of this start.
        guard: as for `JsonlWriter`.
    """

    def __init__(
        self,
        uri: str,
        name: str,
        config: dict[str, Any],
        resume_step: int,
        tracking: TrackingConfig | None = None,
        began: float | None = None,
        workers: int = 1,
        guard: Callable[[], object] = lambda: None,
    ) -> None:
        self.uri, self._workers = uri, workers
        files = {name: storage.join(uri, f"{name}.jsonl") for name in ("events", "metrics")}
        self._history = read_lines(files["events"], is_event).records
        done = read_columns(files["metrics"], lambda _name: False)
        self._last_step = int(done["step"].max(initial=resume_step))
        self._account = Account()
        for record in self._history:
            self._account.event(record)
        self._account.windows(done)
        later = Continued(is_metrics, lambda record: record["step"] > resume_step)
        self._metrics = JsonlWriter(files["metrics"], keep=later, guard=guard, in_columns=True)
        self._events = JsonlWriter(files["events"], keep=Continued(is_event), guard=guard)
        self._followers = open_followers(tracking or TrackingConfig(), uri, name, config)
        self.restarts = sum(record["event"] in {"start", "resume"} for record in self._history)
        self._asked, self._is_stepping = began or time.time(), False
        self._began = self._begin(
            "resume" if self.restarts else "start", resume_step, began=self._asked, workers=workers
        )
        for file, writer in ((files["events"], self._events), (files["metrics"], self._metrics)):
            if writer.left_out:
                _LOG.warning("%s: %d lines at its end are taken out: no records", file, writer.left_out)
                self.event("lines_left_out", resume_step, file=file.rsplit("/", 1)[-1], count=writer.left_out)

    def _begin(self, event: str, step: int, **details: Any) -> dict[str, Any]:
        """Record that training goes on after `step`, and account for the time up to the last record before.

        Returns:
            The record.
        """
        lost, self._last_step = self._last_step - step, min(self._last_step, step)
        before = self._account.total(back_to=step)
        if before:
            seconds = {cause: round(each, 3) for cause, each in before.seconds.items()}
            details |= {"accounted": seconds, "last_record": before.last_record}
        return self.event(event, step, lost_steps=max(0, lost), **details)

    def under_way(self, step: int) -> None:
        """Record what a restart has cost, when it is about to do its first step: the steps, and the seconds without.

        Args:
            step: from which it goes on.
        """
        last = self._began.get("last_record")
        if last is None:
            return
        starts = [each for each in self._history if each["event"] in {"start", "resume"}]
        costs = {"lost_steps": self._began["lost_steps"], "seconds": round(time.time() - last, 3)}
        before = starts[-2].get("workers")  # earlier versions did not say
        self.event("restart", step, workers_before=before, workers=self._workers, **costs)

    def first_step(self, step: int) -> None:
        """Record how long the first step of a command took to come: `seconds` from when the command was given.

        Args:
            step: steps that are done; all calls but the first of a command do nothing.
        """
        if not self._is_stepping:
            self._is_stepping = True
            before = (each["time"] for each in self._history if each["event"] == "first_step")
            if max(before, default=0.0) < self._asked:  # else workers of the same command were started again
                self.event("first_step", step, seconds=round(time.time() - self._asked, 3))

    def rollback(self, step: int) -> None:
        """Record that training goes on from an earlier step; records of later ones are taken back."""
        self._metrics.drop(lambda record: not is_metrics(record) or record["step"] > step)
        self._begin("rollback", step)

    def event(self, event: str, step: int, **details: Any) -> dict[str, Any]:
        """Record that something happened. Returns the record."""
        record = {"time": time.time(), "event": event, "step": step} | details
        self._history.append(record)
        self._account.event(record)
        self._events.write(record)
        return record

    def last(self, event: str, step: int) -> dict[str, Any] | None:
        """The newest event of a kind at a step; None if there is none."""
        found = (each for each in reversed(self._history) if each["event"] == event and each["step"] == step)
        return next(found, None)

    def commit(self, seconds: float) -> bool:
        """Have all events outlive this process; waits for `seconds` at most. Returns whether they do."""
        return self._events.flush(seconds)

    def keep(self, seconds: float) -> bool:
        """Have all records and events outlive this process; waits for `seconds` at most for each of the two files.

        Returns:
            Whether they do. If not, the storage gets them later, as ever.
        """
        stored = self._metrics.flush(seconds)
        return self._events.flush(seconds) and stored

    def metrics(self, record: dict[str, Any]) -> None:
        """Record measurements of a step, and the share of the wall time so far that was training (`goodput`)."""
        self._last_step = max(self._last_step, record["step"])
        self._account.windows(columns.from_records([record], lambda _name: False))
        account = self._account.total()
        record = record | ({"goodput": round(account.shares["training"], 4)} if account else {})
        self._metrics.write(record)
        for follower in self._followers:
            follower.write(record)

    def pictures(self, step: int, found: Mapping[str, bytes]) -> None:
        """Store pictures (PNG) of a step by name, and show them to trackers; returns at once, as they do not matter."""
        for follower in self._followers:
            follower.write({"time": time.time(), "step": step} | dict(found))

    def close(self) -> None:
        """Finish all writers, in a bounded time, with an account of the time and of records that trackers missed."""
        dropped = close_followers(self._followers)
        step = self._history[-1]["step"]
        if dropped:
            self.event("dropped_records", step, **dropped)
        account = self._account.total()
        if account:
            shares = {cause: round(share, 6) for cause, share in account.shares.items()}
            self.event("goodput", step, wall_seconds=round(account.wall, 3), shares=shares)
        self._metrics.close()
        self._events.close()
