"""What was read of a stage, and what is new of it: each question is one request where nothing has changed.

A training stage appends to metrics.jsonl and events.jsonl in its folder (trainer/records/run_directory.py); ingest and
tokenize keep progress.json beside their shards. The first look reads the end of a file, so that a long run costs no
more than a short one; later ones read on from there.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from cluster.monitor.stage_view import Event, StageView, Status
from cluster.pool.scale import PROGRESS
from cluster.pool.shard_ledger import WorkerRate
from cluster.progress.stage_records import CONFIG, recorded_folder
from data_pipeline import storage
from data_pipeline.errors import UsageError
from trainer.records.jsonl import RecordCursor

Record = dict[str, Any]
_TAIL_BYTES = 256 * 1024
_MOST_RECORDS = 2000
"""Of metrics.jsonl that are kept for the curve of the loss."""
_UNSHOWN = {"goodput", "spike_samples", "validation"}
"""Events that are shown elsewhere, or are for `foldtrain` and people with a question."""
_LOOKS = {
    "validation_loss": "loss",
    "validation_training_loss": "of training images",
    "validation_mse": "squared error",
    "validation_training_mse": "of training images",
    "validation_psnr": "PSNR",
    "validation_ssim": "SSIM",
    "validation_perceptual": "perceptual distance",
}
"""Numbers of a look at held-out images that are shown."""
_KINDS = {"validation_use_": "use of", "validation_frechet_distance_": "Fréchet distance of"}
"""How the names of others begin, of each branch and of a number of images, and what people call them."""
_NOT_SHOWN = {"time", "event", "step", "began", "last_record"}
_TURNS = {"start", "resume", "stop", "finish", "failure"}
_QUIET_SECONDS = 60.0
_QUIET_GAPS = 5
"""A stage is stalled when it has been quiet for this many times its usual gap between records, and a minute."""


Check = Callable[[], bool]
"""Reads what is new in one place: one request where nothing is, two where nothing was ever. Says whether it was."""


class Feed(Protocol):
    """Where the records of a file come from."""

    def look(self) -> tuple[list[Record], bool]:
        """Those that are new, and whether the ones before them do not count any more."""
        ...


class TrainingReader:
    """A stage that trains a network.

    Args:
        run: URI of the run.
        folder: of the stage in it; empty if `run` is the folder of the stage.
        name: of the stage, if it is not that of the folder.
        metrics: the records of metrics.jsonl; if not given, its end is read.
        events: the same of events.jsonl.
    """

    def __init__(
        self, run: str, folder: str, name: str = "", *, metrics: Feed | None = None, events: Feed | None = None
    ) -> None:
        uri = storage.join(run, folder) if folder else run
        self.name = name or folder
        """Of the stage."""
        self._metrics = metrics or RecordCursor(storage.join(uri, "metrics.jsonl"), _TAIL_BYTES)
        self._events = events or RecordCursor(storage.join(uri, "events.jsonl"), _TAIL_BYTES, _is_named)
        self.checks: tuple[Check, ...] = (self._look_at_events, self._look_at_metrics)
        self.seldom: tuple[Check, ...] = ()
        self._looks_without = 0
        self._records: deque[Record] = deque(maxlen=_MOST_RECORDS)
        self._looked: Record = {}  # the last record with a look at held-out images
        self._forget_events()

    def _forget_events(self) -> None:
        self._spikes = self._resumes = 0
        self._shown: deque[Record] = deque(maxlen=4)
        self._turn: Record | None = None  # the last start or end
        self._spent: tuple[tuple[str, float], ...] = ()
        self._last_event: Record | None = None

    def _look_at_metrics(self) -> bool:
        if not self._records:  # nor is there a file, before the first step: every second look is enough
            self._looks_without += 1
            if self._looks_without % 2 == 0:
                return False
        records, is_other = self._metrics.look()
        if is_other:
            self._records.clear()
            self._looked = {}
        self._records.extend(records)
        self._looked = next((each for each in reversed(records) if _has_look(each)), self._looked)
        return is_other or bool(records)

    def _look_at_events(self) -> bool:
        events, is_other = self._events.look()
        if is_other:
            self._forget_events()
        for event in events:
            self._take(event)
        return is_other or bool(events)

    def _take(self, event: Record) -> None:
        name = event["event"]
        self._spikes += name == "spike"
        self._resumes += name == "resume"
        if name in _TURNS:
            self._turn = event
        if name == "goodput" and "shares" in event:
            self._spent = _shares(event["shares"])
        if name not in _UNSHOWN:
            self._shown.append(event)
        self._last_event = event

    def view(self, now: float) -> StageView | None:
        """How it stands."""
        if not self._records and self._last_event is None:
            return None
        last = self._records[-1] if self._records else {}
        times = [_number(record, "time") or 0.0 for record in self._records]
        age = max(0.0, now - max([*times[-1:], _number(self._last_event or {}, "time") or 0.0]))
        status = _training_status(self._turn, age, usual_gap(times))
        total = _number(last, "steps")
        return StageView(
            name=self.name,
            status=status,
            age=age,
            done=int(_number(last, "step") or 0),
            total=None if total is None else int(total),
            unit="step",
            losses=tuple(loss for record in self._records if (loss := _number(record, "loss")) is not None),
            rate=_number(last, "samples_per_second"),
            eta=_number(last, "eta_seconds") if status == "running" else None,
            skipped=int(_number(last, "skipped_steps") or 0),
            spikes=self._spikes,
            passed_over=int(_number(last, "passed_over_steps") or 0),
            restarts=self._resumes,
            goodput=_number(last, "goodput"),
            spent=self._spent if status in {"stopped", "finished", "failed"} else (),
            events=tuple(event_of(self.name, event) for event in self._shown),
            looked_at=int(_number(self._looked, "step") or 0),
            held_out=tuple(_held_out(self._looked)),
        )


def _has_look(record: Record) -> bool:
    return "validation_mse" in record or "validation_loss" in record


def _held_out(record: Record) -> Iterator[tuple[str, float]]:
    """The numbers of a look at held-out images, by what people call them."""
    for key in record:
        value = _number(record, key) if key in _LOOKS or key.startswith(tuple(_KINDS)) else None
        if value is not None:
            yield _LOOKS.get(key) or _called(key), value


def _called(key: str) -> str:
    prefix = next(each for each in _KINDS if key.startswith(each))
    return f"{_KINDS[prefix]} {key.removeprefix(prefix).replace('_', ' ')}"


def read_training(uri: str, name: str, now: float) -> StageView | None:
    """A training stage from its folder; None if it has not begun."""
    return look_once(TrainingReader(uri, "", name), now)


class SetReader:
    """A stage that makes shards (ingest, tokenize), by the folder of the run that says where they are.

    Args:
        run: URI of the run.
        folder: of the stage in it; empty if `run` is the folder of the shards.
        name: of the stage, if it is not that of the folder.
    """

    def __init__(self, run: str, folder: str, name: str = "") -> None:
        self._run, self._folder, self._name = run, folder, name or folder
        self._progress: Record | None = None
        self._version: storage.Entry | None = None
        self._uri = storage.join(run, folder) if folder else run
        self._place_version: storage.Entry | None = None
        self._is_complete = False
        self.checks: tuple[Check, ...] = (self._look_at_progress,)
        self.seldom: tuple[Check, ...] = (self._look_for_place, self._look_for_manifest)

    def _look_for_place(self) -> bool:
        """The record of where the shards are, until they are found."""
        if self._progress is not None or not self._folder:
            return False
        try:
            version = storage.stat(storage.join(self._run, self._folder, CONFIG))
        except FileNotFoundError:
            return False
        if version == self._place_version:
            return False
        self._uri, self._place_version = recorded_folder(self._run, self._folder), version
        return True

    def _look_at_progress(self) -> bool:
        path = storage.join(self._uri, PROGRESS)
        try:
            version = storage.stat(path)
            if version == self._version:
                return False
            progress = storage.read_json(path)
        except (FileNotFoundError, UsageError):
            self._progress = self._version = None
            return False
        self._progress, self._version = progress if isinstance(progress, dict) else None, version
        return True

    def _look_for_manifest(self) -> bool:
        """A driver that was killed behind its manifest did not say that it had finished."""
        progress = self._progress
        if progress is None or progress.get("state") == "finished":
            return False
        before = self._is_complete
        try:
            storage.stat(storage.join(self._uri, "manifest.json"))
            self._is_complete = True
        except FileNotFoundError:
            self._is_complete = False
        return self._is_complete != before

    def view(self, now: float) -> StageView | None:
        """How it stands."""
        progress = self._progress
        if progress is None:
            return None
        done, total = int(_number(progress, "shards_done") or 0), int(_number(progress, "shards") or 0)
        age = max(0.0, now - (_number(progress, "time") or 0.0))
        eta = _number(progress, "eta_seconds")
        gap = eta / (total - done) if eta and total > done else 0.0
        status = self._status(progress.get("state"), age, gap)
        return StageView(
            name=self._name,
            status=status,
            age=age,
            done=done,
            total=total,
            unit="shard",
            rate=_number(progress, "images_per_second"),
            eta=eta if status == "running" else None,
            workers=int(_number(progress, "workers") or 0) or None,
            worker_rates=tuple(_worker_rates(progress)) if status == "running" else (),
        )

    def _status(self, state: object, age: float, gap: float) -> Status:
        if state == "finished" or self._is_complete:
            return "finished"
        match state:
            case "stopped":
                return "stopped"
            case "failed" | "ended":  # as earlier versions called it
                return "failed"
            case _:
                return _quiet_or_running(age, gap)


def read_shards(uri: str, name: str, now: float) -> StageView | None:
    """A stage that makes shards (ingest, tokenize) from their folder; None if it has not begun."""
    return look_once(SetReader(uri, "", name), now)


StageReader = TrainingReader | SetReader


def look_once(reader: StageReader, now: float) -> StageView | None:
    """How a stage stands, after all questions."""
    look_at_all(reader)
    return reader.view(now)


def look_at_all(reader: StageReader) -> None:
    """Ask all questions, where the shards are before how many there are."""
    for check in (*reader.seldom[:1], *reader.checks, *reader.seldom[1:]):
        check()


def _is_named(event: Record) -> bool:
    return isinstance(event.get("event"), str)


def _shares(shares: Any) -> tuple[tuple[str, float], ...]:
    """Of an account that a stage left of its wall time, the largest first."""
    named = shares if isinstance(shares, dict) else {}
    found = [(str(cause), share) for cause in named if (share := _number(named, cause))]
    return tuple(sorted(found, key=lambda entry: -entry[1]))


def _worker_rates(progress: Record) -> Iterator[WorkerRate]:
    entries = progress.get("worker_rates")
    for entry in entries if isinstance(entries, list) else []:
        rate = _number(entry, "images_per_second") if isinstance(entry, dict) else None
        if rate is not None:
            yield WorkerRate(str(entry.get("worker", "?")), str(entry.get("host", "?")), rate)


def usual_gap(times: Sequence[float]) -> float:
    """Median seconds between the last records; 0 if there are too few to say."""
    recent = times[-20:]
    gaps = [after - before for before, after in itertools.pairwise(recent)]
    return max(0.0, statistics.median(gaps)) if gaps else 0.0


def _training_status(turn: Record | None, age: float, gap: float) -> Status:
    """By the last start or end of a stage."""
    match turn["event"] if turn else None:
        case "finish":
            return "finished"
        case "stop" if turn and turn.get("ending") != "paused":  # a pause is followed by a start with other workers
            return "stopped"
        case "failure":
            return "failed"
        case _:
            return _quiet_or_running(age, gap)


def _quiet_or_running(age: float, gap: float) -> Status:
    return "stalled" if age > max(_QUIET_SECONDS, _QUIET_GAPS * gap) else "running"


def event_of(stage: str, record: Record) -> Event:
    """A record of events.jsonl in words."""
    details = [
        f"{key.replace('_', ' ')} {record[key]}"
        for key in record
        if key not in _NOT_SHOWN and record[key] and not isinstance(record[key], dict)
    ]
    text = f"{str(record.get('event', '?')).replace('_', ' ')} at step {record.get('step', '?')}"
    return Event(_number(record, "time") or 0.0, stage, ", ".join([text, *details]))


def _number(record: Record, key: str) -> float | None:
    """A finite number of a record, if it holds one."""
    value = record.get(key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None  # type: ignore[arg-type]
