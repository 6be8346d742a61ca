"""The records of one checkpoint: what they hold, how they are committed, and how a folder is marked as damaged.

A start that finds a complete checkpoint damaged puts a file DAMAGED into the folder, with what is wrong. From then on
it counts as incomplete for every start, and nothing but `foldtrain checkpoint gc --damaged` or a new checkpoint at that
step takes it away. Whoever mends the files removes the mark. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, FoldtrainError, UsageError
from data_pipeline.shards.manifest import first_problem
from data_pipeline.text import json_records
from data_pipeline.text.names import Count

FORMAT_VERSION = 3
COMPLETE, KEEP, DAMAGED, INDEX, STATE = "COMPLETE", "KEEP", "DAMAGED", "index.json", "state.json"


class DamagedCheckpointError(CorruptShardError):
    """A file of a complete checkpoint is missing, cut, or has other bytes than those that were written.

    Args:
        file: its URI.
        wrong: what is wrong with it.
    """

    def __init__(self, file: str, wrong: str) -> None:
        super().__init__(file, wrong)  # both, so that it can be pickled
        self.file, self.wrong = file, wrong

    def __str__(self) -> str:
        return f"{self.file}: {self.wrong}. A training stage that is started again goes on from an older checkpoint"


class TakenError(FoldtrainError):
    """Another process has committed the same checkpoint."""


def mark(folder: str, file: str, wrong: str) -> None:
    """Say in a checkpoint's folder that it is damaged."""
    storage.write_json(storage.join(folder, DAMAGED), {"file": file, "wrong": wrong})


def is_marked(folder: str) -> bool:
    """Whether a checkpoint's folder says that it is damaged."""
    return storage.exists(storage.join(folder, DAMAGED))


def marked_with(folder: str) -> str | None:
    """What a folder's mark says; None if there is none."""
    try:
        mark: dict[str, Any] = storage.read_json(storage.join(folder, DAMAGED))
        return f"{mark['file']}: {mark['wrong']}"
    except FileNotFoundError:
        return None
    except (UsageError, KeyError, TypeError):  # it was put there by hand
        return "marked as damaged"


def unmark(folder: str) -> None:
    """Take the mark away, as the files that it spoke of are no longer named by anything."""
    storage.remove_file(storage.join(folder, DAMAGED))


_COUNTS = ("step", "skipped_steps", "world_size", "zero_stage")


class LossScaleState(BaseModel):
    """The loss scale of fp16 (trainer.engine.loss_scale)."""

    model_config = ConfigDict(extra="forbid", strict=True)
    value: float = Field(ge=0, allow_inf_nan=False)
    applied_in_a_row: Count


class TrainableState(BaseModel):
    """What a state says of one trainable."""

    model_config = ConfigDict(extra="forbid", strict=True)
    optimizer_step: Count
    """Updates that were applied: AdamW's bias correction depends on it."""
    skipped: Count = 0
    """Updates that were not."""
    skipped_in_a_row: Count = 0
    """Of these, the last ones."""
    loss_scale: LossScaleState | None = None


def checked_state(state: Any) -> dict[str, Any]:
    """A state, if what is known of its fields holds; those that it lacks are its reader's business.

    Raises:
        ValueError: if not.
    """
    if not isinstance(state, dict):
        raise ValueError("it is no object")  # noqa: TRY004 - damage like any other
    for name in _COUNTS:
        if name in state and not (type(state[name]) is int and 0 <= state[name] < 2**53):
            raise ValueError(f"{name} is no count")
    ranges = state.get("skipped_ranges", [])
    pairs = isinstance(ranges, list) and all(isinstance(each, list) and len(each) == 2 for each in ranges)
    if not pairs or not all(type(end) is int for each in ranges for end in each):
        raise ValueError("skipped_ranges are no ranges of steps")
    spikes = state.get("spikes", {"losses": [], "strange": []})
    lists = [spikes.get(name) for name in ("losses", "strange")] if isinstance(spikes, dict) else [None]
    if not all(isinstance(each, list) and all(isinstance(v, int | float) for v in each) for each in lists):
        raise ValueError("spikes are no lists of numbers")
    metrics, trainables = state.get("metrics", {}), state.get("trainables", {})
    if not isinstance(metrics, dict) or not all(map(_is_number, metrics.values())):
        raise ValueError("metrics holds what is no number")
    if not isinstance(trainables, dict):
        raise ValueError("trainables is no object")  # noqa: TRY004 - damage like any other
    for name, each in trainables.items():
        try:
            TrainableState.model_validate(each)
        except ValidationError as error:
            raise ValueError(f"trainables.{name}: {first_problem(error)}") from None
    return state


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, int | float)


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
        TakenError: if another attempt put its marker there meanwhile.
    """
    storage.remove_file(storage.join(folder, COMPLETE))  # of an earlier attempt at this step
    record = storage.canonical_json(state)
    storage.write_bytes(storage.join(folder, INDEX), index)
    storage.write_bytes(storage.join(folder, STATE), record)
    unmark(folder)
    marker = {"format": FORMAT_VERSION, "attempt": attempt}
    marker |= {INDEX: storage.sha256(index), STATE: storage.sha256(record)}
    if not storage.create_bytes(storage.join(folder, COMPLETE), storage.canonical_json(marker)):
        raise TakenError(
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
    try:
        return Committed(records[INDEX], checked_state(json_records.parse(records[STATE])))
    except ValueError as error:
        raise DamagedCheckpointError(storage.join(folder, STATE), f"it is no state of a training ({error})") from None


def _read_marker(folder: str) -> dict[str, Any]:
    path = storage.join(folder, COMPLETE)
    try:
        data = storage.read_bytes(path, json_records.MOST_BYTES)
    except FileNotFoundError:
        raise UsageError(f"{folder} holds no complete checkpoint (COMPLETE is missing)") from None
    try:
        marker = json_records.parse(data) if data else {"format": 1}
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
        data = storage.read_bytes(path, json_records.MOST_BYTES)
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
        found = json_records.parse(record)
    except ValueError:
        return None
    return found.get("attempt") if isinstance(found, dict) else None
