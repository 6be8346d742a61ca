"""The size of a running pool, as a file beside the shards that its driver reads every few seconds.

control.json: {"version": 1, "workers": {"min": 2, "max": 8}}. The first spelling, {"version": 1, "tokenize":
{"workers": N}}, is still read. Ingest has its files in the folder of the image shards, tokenize in that of the tokens.
"""

from __future__ import annotations

from typing import Any

from cluster.config.loading import load_config
from cluster.progress.stage_records import recorded_folder
from data_pipeline import storage
from data_pipeline.errors import UsageError
from trainer.registry import SHARDS

PROGRESS = "progress.json"
"""How far a pool has come; it writes this beside its shards."""

STAGES = {stage.command: stage.folder for stage in SHARDS}
"""The stages that have a pool, and the folders of their shards."""

_FILE = "control.json"
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


def shards_folder(run: str, stage: str) -> str:
    """The folder of the shards of a stage that is meant by a run's URI, a config file, or that folder itself.

    Raises:
        UsageError: if the config cannot be read.
    """
    folder = STAGES[stage]
    if run.endswith((".yaml", ".yml")):
        config = load_config(run)  # the command may have had overrides: then the run says where the shards are
        given = config.folder(folder)
        return given if storage.exists(storage.join(given, PROGRESS)) else recorded_folder(config.run, folder)
    if storage.exists(storage.join(run, PROGRESS)):
        return run
    return recorded_folder(run, folder)


def running_folder(run: str, stage: str | None) -> str:
    """The folder of the pool that is to be scaled: that of `stage`, or of the stage that is at work.

    Raises:
        UsageError: if none is, or several are.
    """
    stages = STAGES if stage is None else (stage,)
    folders = {name: shards_folder(run, name) for name in stages}
    states = {folder: _state(folder) for folder in folders.values()}
    running = [folder for folder, state in states.items() if state == "running"]
    if len(running) == 1:
        return running[0]
    if running:
        raise UsageError(f"{run}: both ingest and tokenize are at work; say which with --stage")
    if "finished" in states.values():
        raise UsageError(f"{run}: there is nothing to scale, {_named(folders)} is complete")
    if "ended" in states.values():
        raise UsageError(
            f"{run}: {_named(folders)} is not at work any more; start it again, with data.max_workers or "
            "tokens.max_workers"
        )
    raise UsageError(
        f"{run}: {_named(folders)} has not begun there; give the run's config, or the folder of the shards themselves"
    )


def _named(folders: dict[str, str]) -> str:
    return " or ".join(folders)


def _state(folder: str) -> str:
    """running, finished, ended, or none."""
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
    storage.write_json(storage.join(uri, _FILE), {"version": _VERSION, "workers": {"min": fewest, "max": most}})


def read_scale(uri: str) -> tuple[int, int] | None:
    """The fewest and the most workers that were last asked for in the folder `uri`; None if none were.

    Raises:
        UsageError: if the file does not say numbers of workers; it names the file.
    """
    path = storage.join(uri, _FILE)
    try:
        record = storage.read_json(path)
    except FileNotFoundError:
        return None
    numbers = _numbers(record) if isinstance(record, dict) else None
    if numbers is None:
        raise UsageError(f'{path} is not {{"version": {_VERSION}, "workers": {{"min": N, "max": N}}}}; delete it')
    if not 1 <= numbers[0] <= numbers[1] <= MOST_WORKERS:
        raise UsageError(f"{path} asks for {numbers[0]} to {numbers[1]} workers; delete it, or use `foldtrain scale`")
    return numbers


def _numbers(record: dict[str, Any]) -> tuple[int, int] | None:
    section, former = record.get("workers"), record.get("tokenize")
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
    storage.remove_file(storage.join(uri, _FILE))
