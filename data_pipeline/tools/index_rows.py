"""index.bin from its first sample to its last, some rows at a time: in memory are those rows, and not the file.

It is compared with the index of each shard, which is compared with the shard (examining_images.py). Training maps the
file (shards/sample_index.py); here all of it is looked at once, which would leave all of it in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError
from data_pipeline.shards.column_file import StoredColumn, find_columns
from data_pipeline.shards.image_shards import ShardIndex
from data_pipeline.shards.manifest import ImageManifest, ImageShardRecord
from data_pipeline.shards.sample_index import INDEX_NAME, index_place
from data_pipeline.storage.watchdog import reading
from data_pipeline.tools.one_pass import OnePass

ROWS = 2**16
"""Samples that are read at a time, by a request for each column."""
COLUMNS = ("key", "label", "extension", "offset", "length", "crc32")

Rows = dict[str, npt.NDArray[Any]]


@dataclass
class IndexRows:
    """The rows of an index in their order.

    Args:
        uri: of index.bin.
        samples: how many it has.
        columns: where those lie that are read.
        extensions: what the codes of the column `extension` mean.
    """

    uri: str
    samples: int
    columns: dict[str, StoredColumn]
    extensions: list[str]
    _at: int = 0
    _held: Rows | None = None

    @classmethod
    def open(cls, uri: str, manifest: ImageManifest, names: tuple[str, ...] = COLUMNS) -> Self:
        """Of the image data set at `uri`; its digest is compared first, and its columns' shapes.

        Raises:
            CorruptShardError: if it is missing, or not the one that the manifest names.
        """
        path = storage.join(uri, INDEX_NAME)
        if manifest.index is None:
            return cls(path, 0, {}, [])
        place = index_place(uri, manifest, manifest.index)
        try:
            if OnePass(path, place.stated.bytes).finish() != place.stated.sha256:
                raise ValueError("its sha256 is not that of the manifest")  # noqa: TRY301 - explained below
            columns, texts = find_columns(place)
            rows = {name: columns[name] for name in names}
            kinds = {"key": "S", "label": "i"}
            for name, column in rows.items():
                if column.shape != (manifest.samples,) or column.dtype.kind != kinds.get(name, "u"):
                    raise ValueError(f"its column {name} holds {column.dtype} {column.shape}")  # noqa: TRY301
        except FileNotFoundError:
            raise CorruptShardError(f"{path} is missing: {place.remedy}") from None
        except (ValueError, KeyError) as error:
            raise CorruptShardError(f"{path} is no {place.kind} ({error}): {place.remedy}") from None
        return cls(path, manifest.samples, rows, texts.get("extensions", []))

    def take(self, samples: int) -> Rows:
        """The next rows, fewer where it ends."""
        samples = min(samples, self.samples - self._at)
        parts: list[Rows] = []
        while samples > 0:
            if self._held is None or not len(next(iter(self._held.values()))):
                self._held = {name: self._read(column) for name, column in self.columns.items()}
            part = {name: held[:samples] for name, held in self._held.items()}
            self._held = {name: held[samples:] for name, held in self._held.items()}
            taken = len(next(iter(part.values())))
            self._at, samples = self._at + taken, samples - taken
            parts.append(part)
        if len(parts) == 1:
            return parts[0]
        return {
            name: np.concatenate([np.empty(0, column.dtype), *(part[name] for part in parts)])
            for name, column in self.columns.items()
        }

    def _read(self, column: StoredColumn) -> npt.NDArray[Any]:
        rows, width = min(ROWS, self.samples - self._at), column.dtype.itemsize
        with reading(self.uri):
            data = storage.read_range(self.uri, column.offset + self._at * width, rows * width)
        if len(data) != rows * width:
            raise CorruptShardError(f"{self.uri} was cut while it was read: look whether somebody writes to it")
        return np.frombuffer(data, column.dtype)


class IndexCheck:
    """Takes the shards of images in their order, and compares the rows of each with its own index."""

    def __init__(self, rows: IndexRows) -> None:
        self._rows = rows
        self._extensions = np.array([*rows.extensions, ""])

    def compare(self, shard: ImageShardRecord, index: ShardIndex | None) -> list[str]:
        """What differs in the next shard.

        Args:
            shard: which one it is.
            index: its own; None if that cannot be read, which is told elsewhere.
        """
        rows = self._rows.take(shard.samples)
        if index is None or len(index.key) != shard.samples or not rows:
            return []
        stated: Rows = {name: np.array(getattr(index, name)) for name in COLUMNS}
        stated["key"] = np.array([key.encode() for key in index.key], "S")
        rows["extension"] = self._extensions[np.minimum(rows["extension"], len(self._extensions) - 1)]
        found = []
        for name in COLUMNS:
            for row in np.flatnonzero(rows[name] != stated[name])[:1]:
                here, there = (
                    value.decode(errors="replace") if isinstance(value, bytes) else value
                    for value in (rows[name][row], stated[name][row])
                )
                found.append(
                    f"{shard.name}: sample {index.key[row]} has the {name} {here} in {INDEX_NAME}, {there} in its shard"
                )
        return found
