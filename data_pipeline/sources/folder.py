"""A folder per class, with images below it at any depth. Names that start with a dot are no part of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from data_pipeline import storage
from data_pipeline.config import FolderSource
from data_pipeline.errors import UsageError
from data_pipeline.sources.source import ItemReader, RawItem, safe_key, unique_items


@dataclass(frozen=True)
class FileReader:
    """Reads images that are files of their own."""

    folder: str
    """URI of the folder that their names are relative to."""

    def read(self, item: RawItem) -> bytes:
        """The file."""
        return storage.read_range(storage.join(self.folder, item.name), 0, item.size)


class FolderImages:
    """Images by relative path. The classes are the folder's own folders, in sorted order."""

    def __init__(self, path: str, sizes: dict[str, int]) -> None:
        self.name = path
        self.reader: ItemReader = FileReader(storage.absolute(path))
        self.classes: tuple[str, ...] = tuple(sorted({name.split("/", 1)[0] for name in sizes}))
        labels = {name: label for label, name in enumerate(self.classes)}
        self.items: Sequence[RawItem] = unique_items(
            path,
            (
                RawItem(key=safe_key(str(PurePosixPath(name).with_suffix(""))), label=label, size=size, name=name)
                for name, size in sizes.items()
                for label in [labels[name.split("/", 1)[0]]]
            ),
        )

    def identity(self) -> Any:
        """Nothing beyond the names and sizes of the items."""
        return None


def open_folder(config: FolderSource) -> FolderImages:
    """List the folder.

    Raises:
        UsageError: if it is missing or empty, holds a file outside of any class folder, or two files share a key.
    """
    if not storage.exists(config.path):
        raise UsageError(f"there is no folder {config.path}: see data.source in the config")
    try:
        found = storage.walk(config.path)
    except FileNotFoundError as error:
        raise UsageError(f"{config.path} holds a link that leads nowhere: {error.filename}") from error
    sizes = {name: size for name, size in found.items() if _is_taken(name, config.extensions)}
    if not sizes:
        raise UsageError(
            f"{config.path} holds no images{_ending_with(config.extensions)}: see data.source in the config"
        )
    loose = [name for name in sizes if "/" not in name]
    if loose:
        raise UsageError(
            f"{config.path} should hold one folder per class, but {loose[0]} lies beside them: move it into one"
        )
    return FolderImages(config.path, sizes)


def _is_taken(name: str, extensions: tuple[str, ...] | None) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and (extensions is None or path.suffix.lower().lstrip(".") in {e.lower() for e in extensions})


def _ending_with(extensions: tuple[str, ...] | None) -> str:
    return "" if extensions is None else f" ending in {', '.join(extensions)}"
