"""What `foldtrain describe` says of a job: what happened, at which step, why, what it did by itself, and what to do."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.jobs import records
from cluster.jobs.job_views import moment
from cluster.jobs.places import job_folder
from cluster.jobs.records import Attempt, JobRecord, JobStatus
from cluster.jobs.watching import asked
from cluster.targets.target import TargetState
from cluster.terminal.output import console, duration
from data_pipeline import storage
from data_pipeline.errors import FoldtrainError, UsageError
from data_pipeline.text.printable import printable
from trainer.records.jsonl import read_last_records
from trainer.records.record_shapes import is_metrics, is_timed_event
from trainer.registry import STAGES, TRAINING, stage_named

_ASKS: frozenset[JobStatus] = frozenset({"pending", "preempted", "lost"})
"""Of such a job its target knows more than its record."""
_LAST_LINES = 8
_WIDTH = 14

Record = dict[str, Any]


@dataclass
class Step:
    """How far the training of a stage came, and what befell it since the job was submitted."""

    step: int | None = None
    steps: int | None = None
    checkpoint: int | None = None
    """Step of the newest checkpoint that was recorded."""
    events: list[Record] = field(default_factory=list)


def show(record: JobRecord) -> None:
    """Print it."""
    state = asked(record) if record.status in _ASKS else None
    out = console()
    for title, lines in describe(record, read_step(record), state, time.time()):
        for number, line in enumerate(lines):
            out.print(printable(f"{'' if number else title:{_WIDTH}}{line}"))


def show_run(run: str) -> None:
    """Print what the trainings of a run say that was not submitted as a job.

    Raises:
        UsageError: if there are none.
    """
    found = {stage.command: read_training(storage.join(run, stage.folder)) for stage in TRAINING}
    trained = {command: step for command, step in found.items() if step.events}
    if not trained:
        raise UsageError(f"{run} has no jobs and no training: nothing was submitted there, and nothing was trained")
    command = max(trained, key=lambda name: float(trained[name].events[-1]["time"]))
    out = console()
    for title, lines in describe_training(run, command, trained[command], time.time()):
        for number, line in enumerate(lines):
            out.print(printable(f"{'' if number else title:{_WIDTH}}{line}"))


def describe_training(run: str, command: str, step: Step, now: float) -> Iterator[tuple[str, Sequence[str]]]:
    """As `describe`, of a training that was not submitted as a job, by its own records."""
    last = step.events[-1]
    ago = duration(now - last["time"])
    ended = {"finish": "finished", "stop": "stopped", "failure": "failed"}.get(last["event"])
    yield "run", [f"{run}, without jobs"]
    yield "what happened", [f"{command} {ended}, {ago} ago" if ended else f"{command} was at work {ago} ago"]
    of = f" of {step.steps}" if step.steps else ""
    saved = "" if step.checkpoint is None else f"; the newest checkpoint is that of step {step.checkpoint}"
    yield "step", [f"{last.get('step', step.step)}{of}{saved}"]
    if last["event"] == "failure":
        yield "cause", str(last.get("error", "it did not say")).split("\n")
    yield "by itself", list(_counted(step)) or ["nothing was needed"]
    if ended == "finished":
        yield "to do", ["nothing"]
    else:
        remedy = "mend the cause; " if ended == "failed" else "" if ended else "if it is not at work any more: "
        config = storage.join(run, stage_named(command).folder, "config.yaml")
        yield "to do", [f"{remedy}foldtrain {command} {shlex.quote(config)} goes on from the newest checkpoint"]


def describe(
    record: JobRecord, step: Step, asked: TargetState | None, now: float
) -> Iterator[tuple[str, Sequence[str]]]:
    """Its parts: a title, and lines.

    Args:
        record: of the job.
        step: of the stage that it is at.
        asked: what its target says; None if it was not asked, or does not answer.
        now: unix time in seconds.
    """
    yield "run", [record.run]
    yield "job", [_job(record)]
    yield "what happened", list(_happened(record, asked, now))
    where = _where(record, step)
    if where:
        yield "step", [where]
    cause = _cause(record, asked)
    if cause:
        yield "cause", cause.split("\n")
    done = list(_by_itself(record, step))
    yield "by itself", done or ["nothing was needed"]
    yield "to do", list(_to_do(record, asked, now))
    if record.state and record.state.last_lines:
        yield "last lines", list(record.state.last_lines)[-_LAST_LINES:]


def read_step(record: JobRecord) -> Step:
    """What the records of the stage that a job is at say of its training. Storage that is away leaves it out."""
    command = record.state.stage if record.state else ""
    known = next((stage for stage in STAGES if stage.command == command), None)
    if known is None or not known.trains:
        return Step()
    return read_training(storage.join(record.run, known.folder), record.submitted)


def read_training(folder: str, since: float = 0.0) -> Step:
    """The same of the stage in a folder, by its records after a unix time in seconds."""
    found = Step()
    try:
        metrics = read_last_records(storage.join(folder, "metrics.jsonl"), is_record=is_metrics)
        found.events = [
            event
            for event in read_last_records(storage.join(folder, "events.jsonl"), is_record=is_timed_event)
            if event["time"] >= since
        ]
    except (OSError, FoldtrainError):
        return found
    if metrics:
        found.step, found.steps = metrics[-1]["step"], metrics[-1].get("steps")
    saved = [event["step"] for event in found.events if event["event"] == "checkpoint" and "step" in event]
    found.checkpoint = saved[-1] if saved else None
    return found


def _job(record: JobRecord) -> str:
    kind = record.job.target_config.get("kind", "") if record.job else ""
    by = f", submitted {moment(record.submitted)} by {record.job.who}" if record.job else ""
    target = record.target if record.target == kind else f"{record.target} ({kind})"
    return f"{record.id}: {', '.join(record.stages)} on {target}{by}"


def _happened(record: JobRecord, asked: TargetState | None, now: float) -> Iterator[str]:
    state, status = record.state, record.status_at(now)
    if state is None:
        yield "it waits to be started" if status == "pending" else "it was stopped before it began"
    else:
        span = duration((state.ended or (state.heartbeat if status == "lost" else now)) - state.started)
        words = {
            "running": f"it runs, for {span} by now",
            "succeeded": f"it succeeded, after {span}",
            "failed": f"it failed, after {span}",
            "stopped": f"it was stopped, after {span}",
            "preempted": f"its scheduler ended it ({state.told or 'a node was to go'}), after {span}",
            "lost": f"it gave no sign of life for {duration(now - state.heartbeat)}, after {span} of work",
        }
        code = "" if state.exit_code is None else f"; exit code {state.exit_code}"
        yield f"{words[status]}; start {state.attempt}, on {state.node} (pid {state.pid}){code}"
        if state.done:
            done = {name: state.done[name] for name in (*record.stages, *state.done) if name in state.done}
            yield "stages: " + ", ".join(f"{name} {outcome}" for name, outcome in done.items())
    if asked is not None:
        more = "" if asked.message in {"", asked.status} else f"; {asked.message}"
        yield f"its target says: {asked.status}{more}"


def _where(record: JobRecord, step: Step) -> str:
    if record.state is None or not record.state.stage:
        return ""
    of = "" if step.step is None else f", step {step.step}" + (f" of {step.steps}" if step.steps else "")
    saved = "" if step.checkpoint is None else f"; the newest checkpoint is that of step {step.checkpoint}"
    return f"{record.state.stage}{of}{saved}"


def _cause(record: JobRecord, asked: TargetState | None) -> str:
    state = record.state
    if record.stop is not None:
        how = "at once" if record.stop.stop == "now" else "with a checkpoint"
        return f"{record.stop.by} asked it to stop {how}, {moment(record.stop.asked)}"
    if state is None:
        return asked.message if asked is not None else ""
    if record.status == "lost":
        gone = "its process and its node are gone, or the node no longer reaches the run's storage"
        return f"{gone} ({asked.message})" if asked is not None and asked.message else gone
    return state.message or state.told


def _by_itself(record: JobRecord, step: Step) -> Iterator[str]:
    for attempt in record.state.earlier if record.state else ():
        yield _attempt(attempt)
    yield from _counted(step)


def _counted(step: Step) -> Iterator[str]:
    counts = {
        "restart": "went on from a checkpoint after a worker was lost or their number changed",
        "rollback": "went back to an earlier checkpoint",
        "skipped_step": "left out a step whose gradients were not finite",
        "spike": "saw a spike of the loss",
        "checkpoint_failed": "could not write a checkpoint",
        "checkpoint_damaged": "passed over a damaged checkpoint",
        "dropped_records": "left out records while storage was away",
    }
    for event, words in counts.items():
        steps = [found.get("step") for found in step.events if found["event"] == event]
        if steps:
            times = "once" if len(steps) == 1 else f"{len(steps)} times"
            yield f"{words}: {times}, the last at step {steps[-1]}"


def _attempt(attempt: Attempt) -> str:
    reason = (attempt.message or attempt.told).partition("\n")[0]
    at = f" in {attempt.stage}" if attempt.stage else ""
    return f"start {attempt.attempt} on {attempt.node} {attempt.status}{at}{': ' + reason if reason else ''}; went on"


def _to_do(record: JobRecord, asked: TargetState | None, now: float) -> Iterator[str]:
    again = f"foldtrain submit {shlex.quote(_config(record))} --stage {','.join(record.stages)}"
    if record.target:
        again += f" --target {shlex.quote(record.target)}"
    status = record.status_at(now)
    if status == "succeeded":
        yield "nothing"
    elif status == "running":
        yield f"foldtrain logs -f {record.id}, or foldtrain monitor {shlex.quote(record.run)}"
    elif status == "pending":
        yield "wait for room on the target, or foldtrain stop " + record.id
    elif status == "stopped":
        yield f"to go on from what is committed: {again}"
    elif asked is not None and asked.status in {"pending", "running"}:
        yield "nothing: its scheduler starts it again, and it goes on from what is committed"
    elif status == "failed":
        yield f"mend the cause, then go on from what is committed: {again}"
    else:
        yield f"its scheduler does not start it again; to go on from what is committed: {again}"


def _config(record: JobRecord) -> str:
    return storage.join(job_folder(record.run, record.id), records.CONFIG)
