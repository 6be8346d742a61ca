"""Pictures of a stage as files: `pictures/<name>-<step>.png` in its folder."""

from __future__ import annotations

import re
from typing import Any

from data_pipeline import storage

FOLDER = "pictures"
_FILE = re.compile(r"([a-z_]+)-(\d{9})\.png")


def picture_name(name: str, step: int) -> str:
    """The file of a picture of a step; they sort by step."""
    return f"{name}-{step:09d}.png"


def picture_step(file: str, name: str) -> int | None:
    """The step of a file, if it is a picture of this name."""
    found = _FILE.fullmatch(file)
    return int(found[2]) if found and found[1] == name else None


class PictureReader:
    """Stores the pictures of records: what in them is PNG.

    Args:
        folder: of the stage, at any URI.
    """

    def __init__(self, folder: str) -> None:
        self._folder = storage.join(folder, FOLDER)

    def write(self, record: dict[str, Any]) -> None:
        """Store what is a picture; a step that is done again replaces its own."""
        for name, value in record.items():
            if isinstance(value, bytes):
                storage.write_bytes(storage.join(self._folder, picture_name(name, record["step"])), value)

    def close(self) -> None:
        """Nothing is open."""
