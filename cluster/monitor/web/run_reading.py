"""One run as the page shows it, however many look at it: what is new is read once, and kept for all of them.

A look asks as much as a look of the monitor in a terminal (`cluster/monitor/watching.py`). What only one part of the
page shows is read when that is opened: pictures, logs, configs, the evaluation.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from cluster.monitor.stage_readers import SetReader, event_of
from cluster.monitor.stage_view import StageView
from cluster.monitor.watching import RunReader, read_given, require_run
from cluster.monitor.web.history import TrainingHistory
from cluster.monitor.web.marks import counts
from cluster.monitor.web.pictures import Frames
from cluster.pool.shard_ledger import slowest
from data_pipeline.errors import FoldtrainError
from data_pipeline.storage.retries import patience
from data_pipeline.text.printable import printable
from trainer.records.goodput import CAUSES, goodput

_LOG = logging.getLogger(__name__)
_PATIENCE_SECONDS = 5.0
"""How long one request of a look may be tried: the next look is soon."""
_EVENTS = 200
"""Of a run that are listed, the last ones."""
_UNLISTED = frozenset({"spike_samples", "validation", "goodput"})
_LONGEST = 1000
"""Characters of a text that are shown."""


def shown(value: Any) -> Any:
    """Text of a run as it may be shown: without characters that cannot be seen; inside of lists and records, too."""
    if isinstance(value, str):
        return printable(value if len(value) <= _LONGEST else f"{value[:_LONGEST]}…")
    if isinstance(value, Mapping):
        return {shown(str(name)): shown(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [shown(each) for each in value]
    return value


class RunReading:
    """What was read of a run.

    Args:
        uri: of the run.
        name: what the page calls it.
    """

    def __init__(self, uri: str, name: str) -> None:
        self.uri, self.name = uri, name
        self.version = 0
        """Rises whenever there is something new to show."""
        self.state: dict[str, Any] = {}
        """What the page shows of it first; replaced as a whole."""
        self.idle_looks = 0
        """One after the other, at which nothing was at work and nothing had changed."""
        self.histories: dict[str, TrainingHistory] = {}
        """Of the stages that train, by folder."""
        self.lock = threading.Lock()
        """Held by a look."""
        self._frames: dict[str, Frames] = {}
        self._reader = RunReader(uri, {"network": self._open, "shards": SetReader})
        self._begun: list[str] = []
        self._given: dict[str, str] = {}
        self._is_there = False

    def _open(self, run: str, folder: str) -> TrainingHistory:
        self.histories[folder] = history = TrainingHistory(run, folder)
        self._frames[folder] = Frames(run, folder)
        return history

    def look(self, now: float) -> None:
        """Read what is new. Whatever storage says instead is a part of the state.

        Args:
            now: unix time, seconds.
        """
        with self.lock:
            try:
                with patience(_PATIENCE_SECONDS):
                    state = self._read(now)
            except (OSError, FoldtrainError) as error:
                state = self.state | {"away": shown(str(error))}
            except Exception as error:  # records from anywhere: nobody waits forever for one that breaks a reader
                _LOG.exception("%s cannot be read", self.uri)
                state = self.state | {"away": shown(f"{type(error).__name__}: {error}")}
            is_new = _without_clock(state) != _without_clock(self.state)
            has_ended = all(stage["status"] in {"stopped", "finished", "failed"} for stage in state.get("stages", ()))
            self.idle_looks = self.idle_looks + 1 if has_ended and not is_new else 0
            self.version += is_new
            self.state = state

    def _read(self, now: float) -> dict[str, Any]:
        if not self._is_there:
            require_run(self.uri)
            self._is_there = True
        views = self._reader.look(now)
        begun = [view.name for view in views]
        if begun != self._begun:
            self._given = read_given(self.uri, begun)
            self._begun = begun
        for folder, history in self.histories.items():
            self._frames[folder].look(history.events.records)
        return {
            "uri": shown(self.uri),
            "name": shown(self.name),
            "away": "",
            "seen_at": now,
            "stages": [self._stage(view) for view in views],
            "events": self._events(),
            "given": shown(self._given),
            "has": {name: name in self._reader.names for name in ("evaluation.json", "samples", "jobs")},
        }

    def _stage(self, view: StageView) -> dict[str, Any]:
        found: dict[str, Any] = shown(asdict(view))
        for name in ("losses", "events", "worker_rates"):
            del found[name]
        found["hosts"] = _hosts(view)
        history = self.histories.get(view.name)
        if history is not None:
            found |= {
                "trains": True,
                "began": history.began,
                "rows": len(history.metrics.numbers["step"]),
                "rows_read": history.metrics.rows_read,
                "names": [printable(name) for name in history.metrics.numbers if name != "step"],
                "marks": counts(history),
                "seconds": spent(history),
                "frames": self._frames[view.name].steps,
            }
        return found

    def _events(self) -> list[dict[str, Any]]:
        """The last things that happened, the newest first."""
        found = [
            event_of(history.name, event)
            for history in self.histories.values()
            for event in history.events.records[-_EVENTS:]
            if event["event"] not in _UNLISTED
        ]
        newest = sorted(found, key=lambda event: -event.time)[:_EVENTS]
        return [{"time": each.time, "stage": each.stage, "text": shown(each.text)} for each in newest]

    def picture(self, stage: str, step: int) -> bytes | None:
        """A frame of the film strip, a PNG; None if there is none."""
        frames = self._frames.get(stage)
        return None if frames is None else frames.picture(step)


def spent(history: TrainingHistory) -> dict[str, float]:
    """Of a stage, the seconds of each cause that took any; nothing before it has begun."""
    with np.errstate(all="ignore"):  # times from anywhere
        account = goodput(history.events.records, history.metrics.numbers)
    return {cause: account.seconds[cause] for cause in CAUSES if 0 < account.seconds[cause] < np.inf} if account else {}


def _hosts(view: StageView) -> list[dict[str, Any]]:
    """The rates of the workers of a pool, by host."""
    slow = slowest(view.worker_rates) if view.worker_rates else None
    hosts: dict[str, list[dict[str, Any]]] = {}
    for worker in view.worker_rates:
        is_slow = slow is not None and worker == slow[0]
        entry = {"worker": shown(worker.worker), "rate": worker.images_per_second, "slow": is_slow}
        hosts.setdefault(worker.host, []).append(entry)
    return [{"host": shown(host), "workers": workers} for host, workers in sorted(hosts.items())]


def _without_clock(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state without what every look changes."""
    stages = [{key: each for key, each in stage.items() if key != "age"} for stage in state.get("stages", ())]
    return {key: each for key, each in state.items() if key not in {"seen_at", "stages"}} | {"stages": stages}
