"""What a running stage is asked for: how many workers, a checkpoint. A file in its folder, read every few seconds.

    {"version": 1, "workers": {"min": 2, "max": 8}, "checkpoint": 1764140000.0}

Each may be missing, and what else stands in the file is left alone. The first spelling of a number of workers,
{"version": 1, "tokenize": {"workers": N}}, is still read. Ingest has its files in the folder of the image shards,
tokenize in that of the tokens, sample in that of the samples, training in its own folder of the run; training alone
saves checkpoints.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from cluster.config.loading import load_config
from cluster.progress.stage_records import recorded_folder
from data_pipeline import storage
from data_pipeline.errors import FoldtrainError, UsageError
from data_pipeline.leases.lease import seems_live
from trainer.registry import SHARDS, TRAINING, stage_named

PROGRESS = "progress.json"
"""How far a pool has come; it writes this beside its shards."""

_SHARDS = {stage.command for stage in SHARDS}
STAGES = {stage.command: stage.folder for stage in (*SHARDS, *TRAINING, stage_named("sample"))}
"""The stages that have workers, and their folders."""

_FILE = "control.json"
_FIRST_SPELLING = "tokenize"
_SETTINGS = "settings.json"
"""In the folder of a training stage, once it has begun."""
_VERSION = 1
MOST_WORKERS = 100_000


def parse_workers(text: str) -> tuple[int, int]:
    """A number of workers that was typed, N, or the fewest and the most, MIN:MAX.

    Raises:
        UsageError: if these are not whole numbers from 1 on.
    """
    parts = text.split(":")
    if not 1 <= len(parts) <= 2 or not all(_is_number(part) for part in parts):
        raise UsageError(f"{text} workers: give a whole number from 1 to {MOST_WORKERS}, or two of them as MIN:MAX")
    fewest, most = int(parts[0]), int(parts[-1])
    if fewest > most:
        raise UsageError(f"{text} workers: the fewest are more than the most; give MIN:MAX")
    return fewest, most


def _is_number(text: str) -> bool:
    is_number = text.isascii() and text.isdigit() and len(text) <= len(str(MOST_WORKERS))
    return is_number and 1 <= int(text) <= MOST_WORKERS


def stage_folder(run: str, stage: str) -> str:
    """The folder of a stage that is meant by a run's URI, a config file, or that folder itself.

    Raises:
        UsageError: if the config cannot be read.
    """
    folder = STAGES[stage]
    if stage not in _SHARDS:
        if run.endswith((".yaml", ".yml")):
            return load_config(run).folder(folder)
        own = storage.exists(storage.join(run, _SETTINGS if stage_named(stage).trains else PROGRESS))
        return run if own and not storage.exists(storage.join(run, "stages.json")) else storage.join(run, folder)
    if run.endswith((".yaml", ".yml")):
        config = load_config(run)  # the command may have had overrides: then the run says where the shards are
        given = config.folder(folder)
        return given if storage.exists(storage.join(given, PROGRESS)) else recorded_folder(config.run, folder)
    if storage.exists(storage.join(run, PROGRESS)):
        return run
    return recorded_folder(run, folder)


def running_stage(run: str, stage: str | None) -> tuple[str, str]:
    """The stage that is to be scaled, and its folder: `stage`, or the one that is at work.

    Raises:
        UsageError: if none is, or several are.
    """
    stages = STAGES if stage is None else (stage,)
    folders = {name: stage_folder(run, name) for name in stages}
    states = {name: _state(folder, trains=stage_named(name).trains != "") for name, folder in folders.items()}
    running = [name for name, state in states.items() if state == "running"]
    if len({folders[name] for name in running}) == 1:
        return running[0], folders[running[0]]
    if running:
        raise UsageError(f"{run}: {' and '.join(running)} are at work at once; say which with --stage")
    ended = [name for name, state in states.items() if state == "ended"]
    if ended:
        raise UsageError(
            f"{run}: {' and '.join(ended)} is not at work any more; start it again, with {_setting(ended[-1])}"
        )
    finished = [name for name, state in states.items() if state == "finished"]
    if finished:
        raise UsageError(f"{run}: there is nothing to scale, {finished[-1]} is complete")
    raise UsageError(
        f"{run}: {' or '.join(folders)} has not begun there; give the run's config, or the folder of the stage itself"
    )


def _setting(stage: str) -> str:
    """Where the config says how many workers a stage has."""
    return f"{stage_named(stage).section}.max_workers" if stage in _SHARDS else "cluster.workers"


def _state(folder: str, *, trains: bool) -> str:
    """running, finished, ended, or none."""
    return _training_state(folder) if trains else _pool_state(folder)


def _training_state(folder: str) -> str:
    if seems_live(folder):
        return "running"
    if storage.exists(storage.join(folder, "export", "card.json")):
        return "finished"
    return "ended" if storage.exists(storage.join(folder, _SETTINGS)) else "none"


def _pool_state(folder: str) -> str:
    try:
        progress = storage.read_json(storage.join(folder, PROGRESS))
    except FileNotFoundError:
        return "none"
    state = progress.get("state") if isinstance(progress, dict) else None
    if state == "finished" or storage.exists(storage.join(folder, "manifest.json")):
        return "finished"
    return "ended" if state in {"stopped", "failed", "ended"} else "running"


def write_scale(uri: str, fewest: int, most: int) -> None:
    """Ask the stage that writes to the folder `uri` to use this many workers.

    Raises:
        UsageError: if the numbers make no sense.
    """
    parse_workers(f"{fewest}:{most}")
    path = storage.join(uri, _FILE)
    others = {name: value for name, value in _record(path).items() if name != _FIRST_SPELLING}
    storage.write_json(path, others | {"version": _VERSION, "workers": {"min": fewest, "max": most}})


def _record(path: str) -> dict[str, Any]:
    """What stands in the file, if it can be read: whatever is wrong with it is replaced."""
    try:
        record = storage.read_json(path)
    except (FileNotFoundError, FoldtrainError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def write_checkpoint(uri: str) -> None:
    """Ask the training stage of the folder `uri` to save a checkpoint, and to go on."""
    path = storage.join(uri, _FILE)
    storage.write_json(path, _record(path) | {"version": _VERSION, "checkpoint": time.time()})


def training_at_work(run: str, stage: str | None = None) -> list[str]:
    """The folders of a run's training stages that are at work; of `stage` alone, if it is given.

    Raises:
        UsageError: if none is.
    """
    names = [each.command for each in TRAINING] if stage is None else [stage]
    folders = dict.fromkeys(stage_folder(run, name) for name in names)  # a stage's own folder is that of all of them
    found = [folder for folder in folders if seems_live(folder)]
    if not found:
        raise UsageError(f"{run}: {f'{stage} is not at work' if stage else 'nothing trains there now'}")
    return found


def request_checkpoints(folders: Sequence[str]) -> str:
    """Ask the training stages of some folders for a checkpoint, and to go on. Returns what was asked, for people."""
    for folder in folders:
        write_checkpoint(folder)
    names = ", ".join(folder.rstrip("/").rsplit("/", 1)[-1] for folder in folders)
    return f"asked {names} for a checkpoint: it is saved after the step under way"


class Asked(NamedTuple):
    """What a stage is asked for."""

    workers: tuple[int, int] | None = None
    """The fewest and the most; None if nobody asked."""
    checkpoint: float | None = None
    """When a checkpoint was last asked for: unix time in seconds, by the clock of who asked."""


def read_scale(uri: str) -> tuple[int, int] | None:
    """The fewest and the most workers that were last asked for in the folder `uri`; None if none were.

    Raises:
        UsageError: if the file does not say numbers of workers; it names the file.
    """
    return read_asked(uri).workers


def read_asked(uri: str) -> Asked:
    """All that was last asked for in the folder `uri`. Errors as for `read_scale`."""
    path = storage.join(uri, _FILE)
    try:
        record = storage.read_json(path)
    except FileNotFoundError:
        return Asked()
    found = record.get("checkpoint") if isinstance(record, dict) else None
    checkpoint = float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None
    if isinstance(record, dict) and record.keys() - {"version"} and not record.keys() & {"workers", _FIRST_SPELLING}:
        return Asked(checkpoint=checkpoint)  # it asks for other things
    numbers = _numbers(record) if isinstance(record, dict) else None
    if numbers is None:
        raise UsageError(f'{path} is not {{"version": {_VERSION}, "workers": {{"min": N, "max": N}}}}; delete it')
    if not 1 <= numbers[0] <= numbers[1] <= MOST_WORKERS:
        raise UsageError(f"{path} asks for {numbers[0]} to {numbers[1]} workers; delete it, or use `foldtrain scale`")
    return Asked(numbers, checkpoint)


def _numbers(record: dict[str, Any]) -> tuple[int, int] | None:
    section, former = record.get("workers"), record.get(_FIRST_SPELLING)
    if isinstance(section, dict):
        fewest, most = section.get("min"), section.get("max")
    elif isinstance(former, dict):
        fewest = most = former.get("workers")
    else:
        return None
    if not isinstance(fewest, int) or not isinstance(most, int) or isinstance(fewest, bool) or isinstance(most, bool):
        return None
    return (fewest, most) if record.get("version") == _VERSION else None


def clear_scale(uri: str) -> None:
    """Forget what was asked for, once there is nothing left to scale."""
    path = storage.join(uri, _FILE)
    others = {name: value for name, value in _record(path).items() if name not in {"workers", _FIRST_SPELLING}}
    if others.keys() - {"version"}:
        storage.write_json(path, others)
    else:
        storage.remove_file(path)
