"""Where checkpoints lie, which of them are complete, and what their state says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, UsageError

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
    """Whether all of a checkpoint was written."""
    return storage.exists(storage.join(step_folder(checkpoints, step), COMPLETE))


def complete_steps(checkpoints: str) -> list[int]:
    """Steps of all complete checkpoints, ascending."""
    return [step for step in all_steps(checkpoints) if is_complete(checkpoints, step)]


def latest_step(checkpoints: str) -> int | None:
    """The newest complete checkpoint, which a resume loads."""
    return next((step for step in reversed(all_steps(checkpoints)) if is_complete(checkpoints, step)), None)


@dataclass(frozen=True)
class Committed:
    """The two records of a complete checkpoint, as bytes that match its marker."""

    index: bytes
    state: dict[str, Any]


def commit(folder: str, index: bytes, state: dict[str, Any]) -> None:
    """Make a folder a checkpoint, once all files that the index names are there. The marker is last."""
    storage.remove_file(storage.join(folder, COMPLETE))  # of an earlier attempt at this step
    record = storage.canonical_json(state)
    storage.write_bytes(storage.join(folder, INDEX), index)
    storage.write_bytes(storage.join(folder, STATE), record)
    marker = {"format": FORMAT_VERSION, INDEX: storage.sha256(index), STATE: storage.sha256(record)}
    storage.write_json(storage.join(folder, COMPLETE), marker)


def read_committed(folder: str) -> Committed:
    """Index and state of a complete checkpoint.

    Raises:
        UsageError: if there is no complete checkpoint, or it is of another format.
        CorruptShardError: if the records are not those that were committed.
    """
    import json

    try:
        marker = storage.read_bytes(storage.join(folder, COMPLETE))
    except FileNotFoundError:
        raise UsageError(f"{folder} holds no complete checkpoint (COMPLETE is missing)") from None
    expected = json.loads(marker) if marker else {"format": 1}
    if expected.get("format") != FORMAT_VERSION:
        raise UsageError(
            f"{folder} has checkpoint format {expected.get('format')}, and this foldtrain reads {FORMAT_VERSION}: "
            "continue with the version that wrote it, or delete the stage's folder to start anew"
        )
    records = {}
    for name in (INDEX, STATE):
        path = storage.join(folder, name)
        records[name] = storage.read_bytes(path)
        if storage.sha256(records[name]) != expected[name]:
            raise CorruptShardError(f"{path} does not have the sha256 of its COMPLETE: delete that checkpoint")
    return Committed(records[INDEX], json.loads(records[STATE]))
