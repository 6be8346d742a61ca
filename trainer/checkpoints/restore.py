"""From a checkpoint back into training, or into whole tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, UsageError
from data_pipeline.shards.manifest import differences
from trainer.checkpoints.damage import DamagedCheckpointError
from trainer.checkpoints.folder import step_folder
from trainer.checkpoints.index import Entry
from trainer.checkpoints.reader import CheckpointReader, Wanted
from trainer.checkpoints.snapshot import BUFFER, DTYPES, STAGE, Trained, tensor_name
from trainer.engine.fragments import FROZEN


def load_checkpoint(reader: CheckpointReader, trained: Mapping[str, Trained]) -> None:
    """Restore what this rank needs, and with it all weights (a collective).

    Raises:
        DamagedCheckpointError: if bytes differ from what was committed.
        CorruptShardError: if a parameter is missing.
    """
    adopt(reader, trained, read_own(reader, trained))


def read_own(reader: CheckpointReader, trained: Mapping[str, Trained]) -> dict[str, Tensor]:
    """Read what this rank needs, into masters, moments and averages; asks no other rank. `adopt` is next.

    Returns:
        The buffers, flat, by the names that they have in the checkpoint.

    Raises:
        DamagedCheckpointError: if bytes differ from what was committed; some tensors may have been filled by then.
        CorruptShardError: if a parameter is missing.
    """
    wanted = [
        Wanted(role, tensor_name(trainable, fragment.name), fragment.start, flat)
        for trainable, each in trained.items()
        for fragment in (*each.owned.held(), *each.owned.frozen())
        for role, flat in fragment.roles.items()
    ]
    buffers = {
        tensor_name(trainable, name): torch.empty(buffer.numel(), dtype=buffer.dtype)
        for trainable, each in trained.items()
        for name, buffer in each.module.named_buffers()
    }
    wanted += [Wanted(BUFFER, name, 0, flat) for name, flat in buffers.items()]
    reader.fill(wanted)
    return buffers


def adopt(reader: CheckpointReader, trained: Mapping[str, Trained], buffers: dict[str, Tensor]) -> None:
    """Go on from what all ranks have read (a collective)."""
    for trainable, each in trained.items():
        for name, buffer in each.module.named_buffers():
            buffer.copy_(buffers[tensor_name(trainable, name)].view(buffer.shape))
        each.owned.optimizer_step = reader.trainable(trainable).optimizer_step
        each.owned.publish()


def check_origin(reader: CheckpointReader, origin: dict[str, Any]) -> None:
    """Make sure that a checkpoint comes from the same data and the same seed.

    Raises:
        UsageError: if not; it shows the difference.
    """
    found = differences(reader.state.get("origin"), origin)
    if found:
        raise UsageError(
            f"{reader.folder} was trained from something else (there -> now):\n  "
            + "\n  ".join(found)
            + "\nRestore those inputs, or set `run` to another folder, or delete the checkpoints to start anew."
        )


def load_stage_state(reader: CheckpointReader) -> dict[str, Tensor]:
    """The tensors that the stage itself had saved."""
    return _assemble(reader, STAGE)


def assemble(checkpoints: str, step: int, role: str, trainable: str | None = None) -> dict[str, Tensor]:
    """Whole tensors of a role (master, exp_avg, exp_avg_sq, ema), with weights that are not trained and buffers.

    Args:
        checkpoints: their folder.
        step: of the checkpoint.
        role: of the tensors.
        trainable: of which trainable they are, by the names that its network has for them; None for all of them, by
            the names that checkpoints have.

    Raises:
        UsageError: if there is no complete checkpoint at the step, or it has no such role.
        CorruptShardError: if bytes are damaged.
    """
    reader = CheckpointReader(step_folder(checkpoints, step))
    tensors = _assemble(reader, role, trainable)
    if not tensors:
        raise UsageError(f"{reader.folder} has no {role}: set trainer.ema_decay above 0 to train with one")
    return tensors | _assemble(reader, FROZEN, trainable) | _assemble(reader, BUFFER, trainable)


def _check_room(reader: CheckpointReader, role: str, found: dict[str, list[Entry]]) -> None:
    """Whole tensors take the memory that their shapes ask for, so ask first whether the files hold so many elements."""
    for name, entries in found.items():
        held, wanted = sum(entry.stop - entry.start for entry in entries), math.prod(entries[0].tensor.shape)
        if held != wanted:
            raise CorruptShardError(
                f"{reader.folder}/index.json covers {held} of the {wanted} elements of {role}/{name}"
            )
    sizes = storage.walk(reader.folder)
    for file in sorted({entry.file for entries in found.values() for entry in entries}):
        if sizes.get(file) != reader.index.files[file]:
            state = f"it ends at byte {sizes[file]} of {reader.index.files[file]}" if file in sizes else "it is missing"
            raise DamagedCheckpointError(storage.join(reader.folder, file), state)


def _assemble(reader: CheckpointReader, role: str, trainable: str | None = None) -> dict[str, Tensor]:
    prefix = "" if trainable is None else tensor_name(trainable, "")
    found = {name: each for name, each in reader.index.by_tensor(role).items() if name.startswith(prefix)}
    infos = {name: entries[0].tensor for name, entries in found.items()}
    _check_room(reader, role, found)
    flat = {name: torch.empty(math.prod(info.shape), dtype=DTYPES[info.dtype]) for name, info in infos.items()}
    reader.fill([Wanted(role, name, 0, tensor) for name, tensor in flat.items()])
    return {name.removeprefix(prefix): tensor.view(infos[name].shape) for name, tensor in flat.items()}
