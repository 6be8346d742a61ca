"""A folder per class, with images below it at any depth. Names that start with a dot are no part of the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from data_pipeline import storage
from data_pipeline.config import FolderSource
from data_pipeline.errors import UsageError
from data_pipeline.sources.skipped import OTHER_ENDING
from data_pipeline.sources.source import (
    ItemReader,
    RawItem,
    check_class_names,
    check_length,
    name_some,
    safe_key,
    unique_items,
)
from data_pipeline.sources.tree import Tree, check_all_readable, list_tree
from data_pipeline.storage.local_listing import shown


@dataclass(frozen=True)
class FileReader:
    """Reads images that are files of their own."""

    folder: str
    """URI of the folder that their names are relative to."""

    def read(self, item: RawItem) -> bytes:
        """The file.

        Raises:
            UsageError: if it has another length than when it was listed.
        """
        uri = storage.join(self.folder, item.name)
        return check_length(uri, item, storage.read_range(uri, 0, item.size + 1))


class FolderImages:
    """Images by relative path. The classes are the folder's own folders, in sorted order."""

    def __init__(self, path: str, sizes: Mapping[str, int], classes: Iterable[str], skipped: Mapping[str, int]) -> None:
        self.name = path
        self.reader: ItemReader = FileReader(storage.absolute(path))
        self.skipped = skipped
        self.classes: tuple[str, ...] = tuple(sorted(classes))
        check_class_names(path, self.classes)
        labels = {name: label for label, name in enumerate(self.classes)}
        self.items: Sequence[RawItem] = unique_items(
            path,
            (
                RawItem(key=safe_key(str(PurePosixPath(name).with_suffix(""))), label=label, size=size, name=name)
                for name, size in sizes.items()
                for label in [labels[_class_of(name)]]
            ),
        )

    def identity(self) -> Any:
        """Nothing beyond the names and sizes of the items."""
        return None


def open_folder(config: FolderSource) -> FolderImages:
    """List the folder.

    Raises:
        UsageError: if it is missing or empty, something in it cannot be read, it holds a file outside of any class
            folder or a class folder without images, or two files share a key.
    """
    if not storage.exists(config.path):
        raise UsageError(f"there is no folder {config.path}: see data.source in the config")
    tree = list_tree(config.path)
    sizes = {name: size for name, size in tree.files.items() if _is_taken(name, config.extensions)}
    if not sizes:
        raise UsageError(
            f"{config.path} holds no images{_ending_with(config.extensions)}, but {len(tree.files)} other files: see "
            "data.source in the config"
        )
    _check_places(config.path, sizes)
    _check_classes(config, tree, sizes)
    check_all_readable(config.path, tree, sizes)
    for name in tree.files.keys() - sizes.keys():
        tree.skipped.add(OTHER_ENDING, name)
    return FolderImages(config.path, sizes, _classes(tree, sizes), tree.skipped.counts())


def _class_of(name: str) -> str:
    return name.split("/", 1)[0]


def _classes(tree: Tree, sizes: Mapping[str, int]) -> set[str]:
    return {_class_of(name) for name in (*sizes, *tree.folders)}


def _check_places(path: str, sizes: Mapping[str, int]) -> None:
    loose = next((name for name in sizes if "/" not in name), None)
    if loose is not None:
        raise UsageError(
            f"{path} should hold one folder per class, but {loose} lies beside them: move it into one, or elsewhere"
        )


def _check_classes(config: FolderSource, tree: Tree, sizes: Mapping[str, int]) -> None:
    """Labels follow from the sorted folders, so that a folder more or less shifts those of all after it."""
    empty = sorted(_classes(tree, sizes) - {_class_of(name) for name in sizes})
    if empty and not config.allow_empty_classes:
        raise UsageError(
            f"{config.path}: class folders without images{_ending_with(config.extensions)} ({len(empty)}): "
            f"{name_some(map(shown, empty))}. Put their images there, or remove the folders, which gives the classes "
            "after them other labels; or set data.source.allow_empty_classes=true: they keep their labels, without "
            "images"
        )


def _is_taken(name: str, extensions: tuple[str, ...] | None) -> bool:
    return extensions is None or name.lower().endswith(tuple(f".{extension}" for extension in extensions))


def _ending_with(extensions: tuple[str, ...] | None) -> str:
    return "" if extensions is None else f" ending in {', '.join(extensions)}"
