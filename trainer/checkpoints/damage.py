"""Complete checkpoints that are not what was written: how that is said, and how a folder is marked.

A start that finds such damage puts a file DAMAGED into the folder, with what is wrong. From then on the checkpoint
counts as incomplete for every start, and nothing but `foldtrain checkpoint gc --damaged` or a new checkpoint at that
step takes it away. Whoever mends the files removes the mark.
"""

from __future__ import annotations

from typing import Any

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, UsageError

DAMAGED = "DAMAGED"


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


def what_to_do(checkpoints: str) -> str:
    """The commands that show damaged checkpoints and remove them."""
    stage = checkpoints.rstrip("/").removesuffix("/checkpoints")
    return (
        f"`foldtrain checkpoint ls {stage}` and `foldtrain checkpoint verify {stage}` show what is damaged. Bring the "
        "files back and delete the DAMAGED beside them, or remove these checkpoints with "
        f"`foldtrain checkpoint gc {stage} --damaged` and start again"
    )
