"""What lies among images and is none: left out, and counted by kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

HIDDEN = "hidden"
SYSTEM = "of an operating system"
OTHER_ENDING = "with another extension"
NO_EXTENSION = "without an extension"
EMPTY_TARS = "empty tars"
EMPTY_FILES = "files without rows"

_SYSTEM_NAMES = {
    ".appledouble",
    ".ds_store",
    ".fseventsd",
    ".spotlight-v100",
    ".trashes",
    "$recycle.bin",
    "@eadir",
    "__macosx",
    "desktop.ini",
    "ehthumbs.db",
    "icon\r",
    "lost+found",
    "system volume information",
    "thumbs.db",
}
"""What file managers and file systems put beside people's files, in lower case."""
_APPLE_DOUBLE = "._"


class Skipped:
    """Counts what is left out of a listing. A hidden folder is one thing, whatever is in it."""

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {}

    def takes(self, name: str, within: str = "") -> bool:
        """Whether a file or folder is hidden, or belongs to an operating system; it is counted then.

        Args:
            name: relative to the source.
            within: what tells this part of the source from others that may have the same names.
        """
        parts = name.split("/")
        for depth, part in enumerate(parts, start=1):
            kind = _kind(part)
            if kind is not None:
                self.add(kind, "/".join(parts[:depth]), within)
                return True
        return False

    def add(self, kind: str, name: str, within: str = "") -> None:
        """Count one thing of a kind; the same thing only once."""
        self._names.setdefault(kind, set()).add(f"{within}\n{name}")

    def counts(self) -> dict[str, int]:
        """By kind, in the order of their names."""
        return {kind: len(names) for kind, names in sorted(self._names.items())}


def add_counts(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Over parts of a source that have nothing in common, by kind, in the order of their names."""
    total: Counter[str] = Counter()
    for counts in parts:
        total.update(counts)
    return dict(sorted(total.items()))


def _kind(part: str) -> str | None:
    if (part.startswith(_APPLE_DOUBLE) and part != "..") or part.lower() in _SYSTEM_NAMES:
        return SYSTEM
    return HIDDEN if part.startswith(".") and part not in {".", ".."} else None
