"""Tokens held against their images: the same keys, in the same order, with the same labels.

Keys and labels of the images are read along with the tokens, some at a time, from their index. Only if they differ are
all keys of the images read once more, to find out which are missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards.manifest import ImageManifest
from data_pipeline.tools.index_rows import ROWS, IndexRows
from data_pipeline.tools.key_spool import Keys, KeySpool, missing_from

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Images:
    """The images that tokens are held against: who they are, without their bytes."""

    uri: str
    manifest: ImageManifest
    quarantined: tuple[str, ...]
    """Keys that were left out of the image data set."""

    @classmethod
    def read(cls, uri: str) -> Images:
        """Of the image data set at `uri`.

        Raises:
            UsageError: if it is not complete.
        """
        return cls(uri, ImageManifest.read(uri), quarantined_keys(uri))

    def columns(self) -> Iterator[tuple[Keys, Labels]]:
        """Keys and labels of its samples, some at a time.

        Raises:
            CorruptShardError: if its index is missing or damaged.
        """
        rows = IndexRows.open(self.uri, self.manifest, ("key", "label"))
        for first in range(0, rows.samples, ROWS):
            part = rows.take(min(ROWS, rows.samples - first))
            yield part["key"], part["label"].astype(np.int64)


def quarantined_keys(uri: str) -> tuple[str, ...]:
    """Keys of the images that ingest left out of the data set at `uri`."""
    try:
        record = storage.read_json(storage.join(uri, "quarantine.json"))
    except FileNotFoundError:
        return ()
    try:
        return tuple(str(entry["key"]) for entry in record)
    except (KeyError, TypeError) as error:
        where = storage.join(uri, "quarantine.json")
        raise UsageError(f"{where} is no list of images: restore it or run foldtrain ingest again") from error


class Comparison:
    """Takes the shards of tokens in their order, and compares each with the images that belong there."""

    def __init__(self, images: Images) -> None:
        self._images = images
        self._columns = images.columns()
        self._keys: Keys = np.array([], "S1")
        self._labels: Labels = np.array([], np.int64)
        self._differs = False
        self._moved = ""
        self._labelled = ""

    def add(self, first: int, samples: int, keys: Keys, labels: Labels) -> None:
        """The next shard of tokens.

        Args:
            first: the number of its first sample.
            samples: how many it should have.
            keys: of those that it has.
            labels: of the same.
        """
        image_keys, image_labels = self._take(samples)
        if len(keys) != len(image_keys):
            self._differs = True
            return
        moved = np.flatnonzero(keys != image_keys)
        if len(moved):
            self._differs = True
            here, there = (each[moved[0]].decode(errors="replace") for each in (keys, image_keys))
            self._moved = self._moved or (
                f"the order differs from sample {first + moved[0]} on: {here} here, {there} in the images"
            )
        wrong = np.flatnonzero(labels != image_labels)
        if len(wrong) and not self._labelled:
            row = wrong[0]
            name = keys[row].decode(errors="replace")
            self._labelled = f"sample {name} has label {labels[row]}, its image {image_labels[row]}"

    def problems(self, here: KeySpool, samples: int) -> list[str]:
        """What differs.

        Args:
            here: the keys of all tokens.
            samples: what the spool was made for.
        """
        if len(self._take(1)[0]):
            self._differs = True
        if not self._differs:
            return [self._labelled] if self._labelled else []
        found = []
        with KeySpool(samples) as there:
            for keys, _ in self._images.columns():
                there.add(keys)
            for one, other, what in ((here, there, "are missing"), (there, here, "are no images of it")):
                count, first = missing_from(one, other)
                if count:
                    name = other.key(first).decode(errors="replace")
                    found.append(f"{count} samples {what}; the first is {name}")
        return found or ([self._moved] if self._moved else [])

    def _take(self, samples: int) -> tuple[Keys, Labels]:
        """The next samples of the images; fewer where they end."""
        parts: list[tuple[Any, Any]] = [(self._keys, self._labels)]
        while sum(len(keys) for keys, _ in parts) < samples and (more := next(self._columns, None)) is not None:
            parts.append(more)
        keys = np.concatenate([keys for keys, _ in parts])
        labels = np.concatenate([labels for _, labels in parts])
        self._keys, self._labels = keys[samples:].copy(), labels[samples:].copy()
        return keys[:samples], labels[:samples]
