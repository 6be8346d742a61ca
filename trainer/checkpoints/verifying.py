"""Every byte of a checkpoint against its index, and the index against itself."""

from __future__ import annotations

import math

from data_pipeline.errors import CorruptShardError
from trainer.checkpoints.folder import step_folder
from trainer.checkpoints.index import Index
from trainer.checkpoints.reader import CheckpointReader, whole_span


def verify(checkpoints: str, step: int) -> int:
    """Read all tensors of a checkpoint, and make sure that each element of each is there once.

    Returns:
        Bytes of its files.

    Raises:
        UsageError: if there is no complete checkpoint at the step.
        CorruptShardError: if bytes are damaged, or elements are missing or there twice; it names them.
    """
    reader = CheckpointReader(step_folder(checkpoints, step))
    _check_coverage(reader.index, reader.folder)
    reader.read(whole_span(entry, lambda _: None) for entry in reader.index.entries)
    return sum(reader.index.files.values())


def _check_coverage(index: Index, folder: str) -> None:
    for role in sorted({entry.role for entry in index.entries}):
        for name, entries in index.by_tensor(role).items():
            at = 0
            for entry in entries:
                if entry.start != at:
                    raise CorruptShardError(
                        f"{folder}/index.json: {role}/{name} has a gap or an overlap at element {at}"
                    )
                at = entry.stop
            if at != math.prod(entries[0].tensor.shape):
                raise CorruptShardError(f"{folder}/index.json: {role}/{name} ends at element {at}")
