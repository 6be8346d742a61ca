"""A folder per class, with images below it at any depth. Names that start with a dot are no part of the data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from data_pipeline import storage
from data_pipeline.config import FolderSource
from data_pipeline.errors import UsageError
from data_pipeline.sources.skipped import Skipped
from data_pipeline.sources.source import Facts, ItemReader, RawItem, Take, check_length, safe_key
from data_pipeline.sources.survey import Survey, class_of, is_taken, survey_folder
from data_pipeline.sources.tree import iter_tree

_ITEMS_AT_ONCE = 16_384


@dataclass(frozen=True)
class FileReader:
    """Reads images that are files of their own."""

    folder: str
    """URI of the folder that their names are relative to."""

    def read(self, item: RawItem) -> bytes:
        """The file.

        Raises:
            UsageError: if it has another length than when it was listed, or lies outside of the folder.
        """
        uri = storage.join(self.folder, item.name)
        if not storage.is_remote(uri) and ".." in item.name.split("/"):  # no listing of a disk has such a name
            raise UsageError(f"{item.name} (key {item.key}) does not lie in {self.folder}: the plan was changed")
        return check_length(uri, item, storage.read_range(uri, 0, item.size + 1))


class FolderImages:
    """Images by relative path. The classes are the folder's own folders, in sorted order."""

    prefixes = False

    def __init__(self, config: FolderSource) -> None:
        if not storage.exists(config.path):
            raise UsageError(f"there is no folder {config.path}: see data.source in the config")
        self._config = config
        self._survey: Survey | None = None
        self.name = config.path
        self.reader: ItemReader = FileReader(storage.absolute(config.path))

    def stamp(self) -> str:
        """Of the names, sizes and times of all that it holds, and the config."""
        self._survey = survey_folder(self._config)
        return self._survey.stamp

    def scan(self, take: Take) -> Facts:
        """List the folder. It is gone through twice: an image's label follows from the names of all classes.

        Raises:
            UsageError: if it is missing or empty, something in it cannot be read, it holds a file outside of any class
                folder or a class folder without images, or two files share a key.
        """
        survey = self._survey or survey_folder(self._config)
        labels = {name: label for label, name in enumerate(survey.classes)}
        held: list[RawItem] = []
        for node in iter_tree(self.name, Skipped()):
            if node.is_folder or not is_taken(node.name, self._config.extensions):
                continue
            label = labels.get(class_of(node.name))
            if label is None:
                raise UsageError(f"{self.name}/{node.name} appeared while the folder was listed: start again")
            key = safe_key(str(PurePosixPath(node.name).with_suffix("")))
            held.append(RawItem(key, label, node.bytes, node.name))
            if len(held) >= _ITEMS_AT_ONCE:
                take(held)
                held = []
        take(held)
        return Facts(survey.classes, survey.skipped)
