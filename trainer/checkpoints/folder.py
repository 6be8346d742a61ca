"""Where checkpoints lie, which of them are complete, and what their state says."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from data_pipeline import storage
from data_pipeline.errors import FoldtrainError, UsageError
from trainer.checkpoints.damage import DamagedCheckpointError, is_marked, unmark

FORMAT_VERSION = 2
COMPLETE, KEEP, INDEX, STATE = "COMPLETE", "KEEP", "index.json", "state.json"
_NAME = re.compile(r"step_(\d{8,})")


def step_folder(checkpoints: str, step: int) -> str:
    """Folder of the checkpoint at a step."""
    return storage.join(checkpoints, f"step_{step:08d}")


def all_steps(checkpoints: str) -> list[int]:
    """Steps of all checkpoints, also of unfinished ones, ascending."""
    return sorted(int(match[1]) for name in storage.list_names(checkpoints) if (match := _NAME.fullmatch(name)))


def is_complete(checkpoints: str, step: int) -> bool:
    """Whether all of a checkpoint was written, and no start has found it damaged."""
    return storage.exists(_marker(checkpoints, step)) and not is_marked(step_folder(checkpoints, step))


def _marker(checkpoints: str, step: int) -> str:
    return storage.join(step_folder(checkpoints, step), COMPLETE)


def damaged_steps(checkpoints: str) -> list[int]:
    """Steps of all checkpoints that a start has found damaged, ascending."""
    return [step for step in all_steps(checkpoints) if is_marked(step_folder(checkpoints, step))]


def complete_steps(checkpoints: str) -> list[int]:
    """Steps of all complete checkpoints, ascending."""
    return [step for step in all_steps(checkpoints) if is_complete(checkpoints, step)]


def written_steps(checkpoints: str) -> list[int]:
    """Steps of all checkpoints that were complete once, also of those found damaged since, ascending."""
    return [step for step in all_steps(checkpoints) if storage.exists(_marker(checkpoints, step))]


def latest_step(checkpoints: str) -> int | None:
    """The newest complete checkpoint, which a resume loads."""
    return next((step for step in reversed(all_steps(checkpoints)) if is_complete(checkpoints, step)), None)


def read_state(checkpoints: str, step: int) -> dict[str, Any]:
    """state.json of a checkpoint, unchecked; {} if it is not there or cannot be read, which a start calls damage."""
    try:
        state = json.loads(storage.read_bytes(storage.join(step_folder(checkpoints, step), STATE)))
    except (FileNotFoundError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


@dataclass(frozen=True)
class Committed:
    """The two records of a complete checkpoint, as bytes that match its marker."""

    index: bytes
    state: dict[str, Any]


def commit(folder: str, index: bytes, state: dict[str, Any], attempt: str) -> None:
    """Make a folder a checkpoint, once all files that the index names are there. The marker is last.

    Args:
        folder: of the checkpoint.
        index: the bytes of its index.
        state: its state.
        attempt: by whose names the files go. Of two processes that commit at once, one puts the marker.

    Raises:
        FoldtrainError: if another attempt put its marker there meanwhile.
    """
    storage.remove_file(storage.join(folder, COMPLETE))  # of an earlier attempt at this step
    record = storage.canonical_json(state)
    storage.write_bytes(storage.join(folder, INDEX), index)
    storage.write_bytes(storage.join(folder, STATE), record)
    unmark(folder)
    marker = {"format": FORMAT_VERSION, "attempt": attempt}
    marker |= {INDEX: storage.sha256(index), STATE: storage.sha256(record)}
    if not storage.create_bytes(storage.join(folder, COMPLETE), storage.canonical_json(marker)):
        raise FoldtrainError(
            f"{storage.join(folder, COMPLETE)} was put there by another process meanwhile: does the run have a second "
            "one? End it"
        )


def read_committed(folder: str) -> Committed:
    """Index and state of a complete checkpoint.

    Raises:
        UsageError: if there is no complete checkpoint, or it is of another format.
        DamagedCheckpointError: if the records are not those that were committed.
    """
    marker = _read_marker(folder)
    records = {name: _read_record(folder, name, marker) for name in (INDEX, STATE)}
    return Committed(records[INDEX], json.loads(records[STATE]))


def _read_marker(folder: str) -> dict[str, Any]:
    path = storage.join(folder, COMPLETE)
    try:
        data = storage.read_bytes(path)
    except FileNotFoundError:
        raise UsageError(f"{folder} holds no complete checkpoint (COMPLETE is missing)") from None
    try:
        marker = json.loads(data) if data else {"format": 1}
    except ValueError as error:
        raise DamagedCheckpointError(path, f"it is not valid JSON ({error})") from error
    if not isinstance(marker, dict) or "format" not in marker:
        raise DamagedCheckpointError(path, "it names no format")
    if marker["format"] != FORMAT_VERSION:
        raise UsageError(
            f"{folder} has checkpoint format {marker['format']}, and this foldtrain reads {FORMAT_VERSION}: "
            "continue with the version that wrote it, or delete the stage's folder to start anew"
        )
    return marker


def _read_record(folder: str, name: str, marker: dict[str, Any]) -> bytes:
    path = storage.join(folder, name)
    try:
        data = storage.read_bytes(path)
    except FileNotFoundError:
        raise DamagedCheckpointError(path, "it is missing") from None
    if storage.sha256(data) != marker.get(name):
        other = _attempt(data)
        mixed = f"; it is of attempt {other}, and COMPLETE of attempt {marker.get('attempt')}"
        raise DamagedCheckpointError(
            path,
            "it does not have the sha256 of its COMPLETE"
            + (mixed if other not in {None, marker.get("attempt")} else ""),
        )
    return data


def _attempt(record: bytes) -> str | None:
    """The attempt that a record names; earlier versions named none."""
    try:
        found = json.loads(record)
    except ValueError:
        return None
    return found.get("attempt") if isinstance(found, dict) else None
