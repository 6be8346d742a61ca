"""How the stages of a run stand, read from the files that they leave at any URI. Reading never disturbs a run.

A training stage appends to metrics.jsonl and events.jsonl in its folder (trainer/records/run_directory.py); ingest and
tokenize keep progress.json beside their shards. Only the end of a file is read, so that a long run costs no more than a
short one.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from cluster.config.errors import closest
from cluster.pool.scale import PROGRESS
from cluster.pool.shard_ledger import WorkerRate
from cluster.progress.stage_records import recorded_folder
from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.text import yaml_dialect
from trainer.records.jsonl import read_last_records
from trainer.registry import FOLDERS, STAGES, value_at

Record = dict[str, Any]
Status = Literal["running", "stalled", "stopped", "finished", "failed"]

_PARTS = {*FOLDERS, "evaluation.json", "stages.json", "report.html"}
"""What stages leave in a run."""
_MOST_CHILDREN = 50
"""Folders that are looked into for a run that may have been meant."""
_TAIL_BYTES = 256 * 1024
_UNSHOWN = {"goodput", "spike_samples"}
"""Events that are shown elsewhere, or are for `foldtrain` and people with a question."""
_NOT_SHOWN = {"time", "event", "step", "began", "last_record"}
_QUIET_SECONDS = 60.0
_QUIET_GAPS = 5
"""A stage is stalled when it has been quiet for this many times its usual gap between records, and a minute."""


@dataclass(frozen=True)
class Event:
    """Something that happened in a stage."""

    time: float
    """Unix time, seconds."""
    stage: str
    """Where."""
    text: str
    """What."""


@dataclass(frozen=True)
class StageView:
    """How a stage stands."""

    name: str
    """Its folder in the run."""
    status: Status
    """What it does."""
    age: float
    """Seconds since its last record."""
    done: int
    """Steps, or shards, so far."""
    total: int | None
    """Steps, or shards, in all, if it is known yet."""
    unit: str
    """What `done` counts."""
    losses: tuple[float, ...] = ()
    """The course of its loss, oldest first."""
    rate: float | None = None
    """Images per second."""
    eta: float | None = None
    """Seconds that are left."""
    skipped: int = 0
    """Optimizer steps that were skipped."""
    spikes: int = 0
    """Spikes of the loss."""
    passed_over: int = 0
    """Steps whose data it skipped for them."""
    restarts: int = 0
    """Times that it went on after an interruption."""
    goodput: float | None = None
    """Share of the wall time so far that was training."""
    spent: tuple[tuple[str, float], ...] = ()
    """Once it has ended: each cause with its share of the wall time, the largest first."""
    workers: int | None = None
    """Processes at work, where that can change."""
    worker_rates: tuple[WorkerRate, ...] = ()
    """How fast each of them is."""
    events: tuple[Event, ...] = ()
    """What happened last."""


def read_run(run: str, now: float) -> list[StageView]:
    """The stages of a run that have begun, in their order. `now` is a unix time in seconds."""
    readers = {"network": _read_network, "shards": _read_data_set}
    views = (readers[stage.product](run, stage.folder, now) for stage in STAGES if stage.product in readers)
    return [view for view in views if view is not None]


def _read_network(run: str, folder: str, now: float) -> StageView | None:
    return read_training(storage.join(run, folder), folder, now)


def _read_data_set(run: str, folder: str, now: float) -> StageView | None:
    return read_shards(recorded_folder(run, folder), folder, now)


def read_given(run: str, stages: Sequence[str]) -> dict[str, str]:
    """What a run takes from elsewhere, and from where, as its stages have recorded it; nothing where none has.

    Args:
        run: URI of the run.
        stages: folders of those that have begun, in their order; a later one's record goes before.
    """
    given: dict[str, str] = {}
    for stage in stages:
        try:
            text = storage.read_bytes(storage.join(run, stage, "config.yaml"), yaml_dialect.MOST_BYTES)
            found = value_at(yaml_dialect.parse(text), "inputs") or {}
            given |= {str(name): str(uri) for name, uri in found.items() if uri}
        except (FileNotFoundError, UsageError, yaml.YAMLError, TypeError, AttributeError):
            continue  # not written yet, or edited: whoever needs it says so
    return given


def require_run(run: str) -> None:
    """Make sure that a run is there, whether or not any of its stages have begun.

    Raises:
        UsageError: if there is nothing, or something else; it says what is like it.
    """
    names = storage.list_names(run)
    if _PARTS & set(names) or (not names and not storage.is_remote(run) and storage.local_path(run).is_dir()):
        return
    if names:
        runs = [name for name in names[:_MOST_CHILDREN] if _PARTS & set(storage.list_names(storage.join(run, name)))]
        hint = f"did you mean {storage.join(run, runs[0])}?" if runs else f"a run has {', '.join(sorted(_PARTS))}"
        raise UsageError(f"{run} is no run: it holds {', '.join(names[:3])}; {hint}")
    raise UsageError(f"there is no run at {run}, or nothing has begun there yet: {_similar_run(run)}")


def _similar_run(run: str) -> str:
    """A hint at what may have been meant."""
    if not storage.is_remote(run):
        path = storage.local_path(run)
        near = closest(path.name, storage.list_names(str(path.parent)))
        if near:
            return f"did you mean {path.parent / near}?"
    return "give the folder that `run` names"


def read_training(uri: str, name: str, now: float) -> StageView | None:
    """A training stage from its folder; None if it has not begun."""
    metrics = read_last_records(storage.join(uri, "metrics.jsonl"), _TAIL_BYTES)
    events = read_last_records(storage.join(uri, "events.jsonl"), _TAIL_BYTES, _is_named)
    if not metrics and not events:
        return None
    last = metrics[-1] if metrics else {}
    times = [_number(record, "time") or 0.0 for record in metrics]
    age = max(0.0, now - max([*times[-1:], *(_number(event, "time") or 0.0 for event in events[-1:])]))
    status = _training_status(events, age, usual_gap(times))
    total = _number(last, "steps")
    return StageView(
        name=name,
        status=status,
        age=age,
        done=int(_number(last, "step") or 0),
        total=None if total is None else int(total),
        unit="step",
        losses=tuple(loss for record in metrics if (loss := _number(record, "loss")) is not None),
        rate=_number(last, "samples_per_second"),
        eta=_number(last, "eta_seconds") if status == "running" else None,
        skipped=int(_number(last, "skipped_steps") or 0),
        spikes=sum(event.get("event") == "spike" for event in events),
        passed_over=int(_number(last, "passed_over_steps") or 0),
        restarts=sum(event.get("event") == "resume" for event in events),
        goodput=_number(last, "goodput"),
        spent=_spent(events) if status in {"stopped", "finished", "failed"} else (),
        events=tuple(_event(name, event) for event in [e for e in events if e.get("event") not in _UNSHOWN][-4:]),
    )


def _is_named(event: Record) -> bool:
    return isinstance(event.get("event"), str)


def _spent(events: Sequence[Record]) -> tuple[tuple[str, float], ...]:
    """The shares of the last account that a stage left of its wall time."""
    accounts = [event["shares"] for event in events if event.get("event") == "goodput" and "shares" in event]
    shares = accounts[-1] if accounts and isinstance(accounts[-1], dict) else {}
    found = [(str(cause), share) for cause in shares if (share := _number(shares, cause))]
    return tuple(sorted(found, key=lambda entry: -entry[1]))


def read_shards(uri: str, name: str, now: float) -> StageView | None:
    """A stage that makes shards (ingest, tokenize) from its folder; None if it has not begun."""
    try:
        progress = storage.read_json(storage.join(uri, PROGRESS))
    except (FileNotFoundError, UsageError):
        return None
    if not isinstance(progress, dict):
        return None
    done, total = int(_number(progress, "shards_done") or 0), int(_number(progress, "shards") or 0)
    age = max(0.0, now - (_number(progress, "time") or 0.0))
    eta = _number(progress, "eta_seconds")
    gap = eta / (total - done) if eta and total > done else 0.0
    status = _shards_status(uri, progress, age, gap)
    return StageView(
        name=name,
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


def _shards_status(uri: str, progress: Record, age: float, gap: float) -> Status:
    if progress.get("state") == "finished" or storage.exists(storage.join(uri, "manifest.json")):
        return "finished"
    match progress.get("state"):
        case "stopped":
            return "stopped"
        case "failed" | "ended":  # as earlier versions called it
            return "failed"
        case _:
            return _quiet_or_running(age, gap)


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


def _training_status(events: Sequence[Record], age: float, gap: float) -> Status:
    turns = [event for event in events if event.get("event") in {"start", "resume", "stop", "finish", "failure"}]
    match turns[-1].get("event") if turns else None:
        case "finish":
            return "finished"
        case "stop" if turns[-1].get("ending") != "paused":  # a pause is followed by a start with other workers
            return "stopped"
        case "failure":
            return "failed"
        case _:
            return _quiet_or_running(age, gap)


def _quiet_or_running(age: float, gap: float) -> Status:
    return "stalled" if age > max(_QUIET_SECONDS, _QUIET_GAPS * gap) else "running"


def _event(stage: str, record: Record) -> Event:
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
