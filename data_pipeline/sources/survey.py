"""What a folder of class folders holds, seen without keeping the names of its images: classes, counts and a digest."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from data_pipeline import storage
from data_pipeline.config import FolderSource
from data_pipeline.errors import UsageError
from data_pipeline.sources.skipped import OTHER_ENDING, Skipped, add_counts
from data_pipeline.sources.source import check_class_names, name_some
from data_pipeline.sources.tree import Node, iter_tree
from data_pipeline.storage.local_listing import check_readable, shown


class Survey(NamedTuple):
    """A folder that is a source."""

    stamp: str
    """Hex digest of the names, sizes and times of all that it holds, and the config."""
    classes: tuple[str, ...]
    """Names of its folders, sorted."""
    skipped: dict[str, int]
    """What is left out, by kind."""


def survey_folder(config: FolderSource) -> Survey:
    """Go through the folder once, and see that it is one of class folders.

    Raises:
        UsageError: if it is empty, something in it cannot be read, it holds an image outside of any class folder or a
            class folder without images, or two classes can be mistaken for each other.
    """
    skipped, seen = Skipped(), _Seen(config)
    for node in iter_tree(config.path, skipped):
        seen.add(node)
    seen.check()
    others = {OTHER_ENDING: seen.others} if seen.others else {}
    stamp = storage.fingerprint([config.model_dump(mode="json"), seen.digest.hexdigest()])
    return Survey(stamp, tuple(sorted(seen.classes)), add_counts([skipped.counts(), others]))


class _Seen:
    """What was come across so far; it does not grow with the number of images."""

    def __init__(self, config: FolderSource) -> None:
        self._config = config
        self.classes: set[str] = set()
        self.filled: set[str] = set()
        """Classes with images."""
        self.images = self.others = 0
        self.loose: str | None = None
        """The first image, by name, that lies beside the class folders."""
        self.unreadable: str | None = None
        """The first image, by name, that this user may not read."""
        self.digest = hashlib.sha256()

    def add(self, node: Node) -> None:
        """Count a file or folder."""
        self.digest.update(repr((node.name, node.is_folder or (node.bytes, node.modified))).encode())
        name = node.name
        if node.is_folder or "/" in name:
            self.classes.add(class_of(name))
        if node.is_folder:
            return
        if not is_taken(name, self._config.extensions):
            self.others += 1
            return
        self.images += 1
        if "/" in name:
            self.filled.add(class_of(name))
        else:
            self.loose = min(name, self.loose or name)
        if node.is_guarded and not self._is_readable(name):
            self.unreadable = min(name, self.unreadable or name)

    def _is_readable(self, name: str) -> bool:
        try:
            check_readable(self._local(name))
        except UsageError:
            return False
        return True

    def _local(self, name: str) -> str:
        return f"{storage.local_path(self._config.path)}/{name}"

    def check(self) -> None:
        """See that it is a source.

        Raises:
            UsageError: if not.
        """
        path, wanted = self._config.path, _ending_with(self._config.extensions)
        if not self.images:
            raise UsageError(
                f"{path} holds no images{wanted}, but {self.others} other files: see data.source in the config"
            )
        if self.loose is not None:
            raise UsageError(
                f"{path} should hold one folder per class, but {self.loose} lies beside them: move it into one, or "
                "elsewhere"
            )
        self._check_classes(wanted)
        if self.unreadable is not None:
            check_readable(self._local(self.unreadable))
        check_class_names(path, sorted(self.classes))

    def _check_classes(self, wanted: str) -> None:
        """Labels follow from the sorted folders, so that a folder more or less shifts those of all after it."""
        empty = sorted(self.classes - self.filled)
        if empty and not self._config.allow_empty_classes:
            raise UsageError(
                f"{self._config.path}: class folders without images{wanted} ({len(empty)}): "
                f"{name_some(map(shown, empty))}. Put their images there, or remove the folders, which gives the "
                "classes after them other labels; or set data.source.allow_empty_classes=true: they keep their labels, "
                "without images"
            )


def class_of(name: str) -> str:
    """The class of an image by its relative name."""
    return name.split("/", 1)[0]


def is_taken(name: str, extensions: tuple[str, ...] | None) -> bool:
    """Whether a file is an image by its name."""
    return extensions is None or name.lower().endswith(tuple(f".{extension}" for extension in extensions))


def _ending_with(extensions: tuple[str, ...] | None) -> str:
    return "" if extensions is None else f" ending in {', '.join(extensions)}"
