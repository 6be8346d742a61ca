"""Parquet files with an image column, as on the Hugging Face hub. Listing reads the label column and the layout alone.

A row group is the least that can be read of the images, so it is a block: its images are asked for together.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from data_pipeline import storage
from data_pipeline.config import ParquetSource
from data_pipeline.errors import UsageError
from data_pipeline.sources.parts import WHERE, check_label, find_parts, in_parallel, name_classes, stamp_files
from data_pipeline.sources.skipped import EMPTY_FILES, add_counts
from data_pipeline.sources.source import Facts, ItemReader, RawItem, Take, safe_key
from data_pipeline.sources.tar_listing import Window

MAX_BLOCK_BYTES = 2**31
"""Largest row group that is taken: it is held in memory as a whole."""
_ITEMS_AT_ONCE = 16_384


class RowGroupReader:
    """Reads images of parquet files. It keeps the row group that it read last."""

    def __init__(self, root: str, column: str) -> None:
        self._root, self._column = root, column
        self._held: tuple[tuple[str, int], Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_root": self._root, "_column": self._column, "_held": None}

    def read(self, item: RawItem) -> bytes:
        """The image's file; empty if the row has none."""
        block = (item.part, item.block)
        if self._held is None or self._held[0] != block:
            self._held = None  # two row groups need not fit in memory
            self._held = (block, self._read_block(*block))
        rows = self._held[1]
        if item.offset >= len(rows):
            raise UsageError(f"{item.name} was there when the source was listed, but is gone now: ingest again")
        row = rows[item.offset].as_py()
        data = row.get("bytes") if isinstance(row, dict) else row
        return data or b""

    def _read_block(self, part: str, block: int) -> Any:
        uri = storage.join(self._root, part)
        with _opened(uri) as file:
            leaf = _image_leaf(uri, file, self._column)
            return file.read_row_group(block, columns=[leaf], use_threads=False).column(0)


class _Group(NamedTuple):
    """A row group, before its images are read."""

    number: int
    labels: list[int]
    size: int
    """Bytes of its images."""


class _Part(NamedTuple):
    """A file's listing."""

    name: str
    groups: list[_Group]
    classes: tuple[str, ...] | None


class ParquetImages:
    """Images by row. Keys are the file's name and the row's number in it."""

    prefixes = False

    def __init__(self, config: ParquetSource) -> None:
        self._config = config
        self._root, self._names, self._skipped = find_parts(config.path, ".parquet")
        self.name = config.path
        self.reader: ItemReader = RowGroupReader(self._root, config.image)

    def stamp(self) -> str:
        """Of the files and the config."""
        return stamp_files(self._config, self._root, self._names)

    def scan(self, take: Take) -> Facts:
        """List the files.

        Raises:
            UsageError: if one is missing or damaged, or lacks a column, or a label is none.
        """
        layout: list[list[Any]] = []
        empty, highest = 0, -1
        first: _Part | None = None
        for part in in_parallel(self._root, lambda name: _list_part(self._config, self._root, name), self._names):
            first = first or part
            if not self._config.classes:
                _check_same_classes(self.name, first, part)
            labels = [label for group in part.groups for label in group.labels]
            highest = max([highest, *labels])
            empty += not labels
            layout.append([part.name, [group.size for group in part.groups]])
            _take_groups(part, take)
            part.groups.clear()
        skipped = add_counts([self._skipped.counts(), {EMPTY_FILES: empty} if empty else {}])
        classes = name_classes(self.name, self._config.classes or (first.classes if first else None), highest)
        return Facts(classes, skipped, storage.fingerprint(layout))


def _take_groups(part: _Part, take: Take) -> None:
    """The images of a file, whole row groups at a time."""
    held: list[RawItem] = []
    for item in _items(part):
        if len(held) >= _ITEMS_AT_ONCE and item.offset == 0:
            take(held)
            held = []
        held.append(item)
    take(held)


def _items(part: _Part) -> Iterator[RawItem]:
    row = 0
    stem = part.name.removesuffix(".parquet")
    for group in part.groups:
        share = max(1, group.size // max(1, len(group.labels)))
        for offset, label in enumerate(group.labels):
            yield RawItem(
                key=safe_key(f"{stem}/{row:07d}"),
                label=label,
                size=share,
                name=f"{part.name} row {row}",
                offset=offset,
                part=part.name,
                block=group.number,
            )
            row += 1


def _check_same_classes(where: str, first: _Part, part: _Part) -> None:
    if part.classes != first.classes:
        raise UsageError(
            f"{where}: {first.name} and {part.name} name their classes differently: name them in data.source.classes"
        )


def _list_part(config: ParquetSource, root: str, part: str) -> _Part:
    uri = storage.join(root, part)
    with _opened(uri) as file:
        leaf = _image_leaf(uri, file, config.image)
        labels = _read_labels(uri, file, config.label)
        groups = list(_list_groups(uri, file, leaf, labels))
        return _Part(part, groups, _hugging_face_classes(file.schema_arrow.metadata, config.label))


@contextmanager
def _opened(uri: str) -> Iterator[Any]:
    """A pyarrow ParquetFile that reads from the storage no more than it is asked for.

    Raises:
        UsageError: if it is missing, or pyarrow finds it damaged, now or later.
    """
    import pyarrow as pa
    import pyarrow.parquet

    try:
        with pa.parquet.ParquetFile(Window(uri), pre_buffer=True) as file:
            yield file
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UsageError(f"there is no file {uri}: {WHERE}") from None
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and (error.errno is not None or error.__cause__ is not None):
            raise  # the storage failed: pyarrow's own have neither
        raise UsageError(f"{uri} is not a parquet file, or is damaged ({error}): fetch it again") from error


def _image_leaf(uri: str, file: Any, column: str) -> str:
    """The path of the column of bytes: `image`, or `image.bytes`."""
    import pyarrow as pa

    kind = _column_type(uri, file, column)
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return f"{column}.bytes"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return column
    raise UsageError(f"{uri}: column {column} is {kind}, not image files: see data.source.image in the config")


def _column_type(uri: str, file: Any, column: str) -> Any:
    schema = file.schema_arrow
    if column not in schema.names:
        raise UsageError(f"{uri} has no column {column}, but {', '.join(schema.names)}: {WHERE}")
    return schema.field(column).type


def _read_labels(uri: str, file: Any, column: str) -> list[int]:
    import pyarrow as pa

    kind = _column_type(uri, file, column)
    if not pa.types.is_integer(kind):
        raise UsageError(f"{uri}: column {column} is {kind}, not whole numbers: see data.source.label in the config")
    values = file.read(columns=[column], use_threads=False).column(0).to_pylist()
    return [check_label(f"{uri}: row {row}", value) for row, value in enumerate(values)]


def _list_groups(uri: str, file: Any, leaf: str, labels: list[int]) -> Iterator[_Group]:
    start = 0
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        chunks = [group.column(index) for index in range(group.num_columns)]
        size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == leaf)
        if size > MAX_BLOCK_BYTES:
            raise UsageError(
                f"{uri}: row group {number} holds {size} bytes of images, more than {MAX_BLOCK_BYTES}: write the file "
                "again with smaller row groups"
            )
        yield _Group(number, labels[start : start + group.num_rows], size)
        start += group.num_rows


def _hugging_face_classes(metadata: dict[bytes, bytes] | None, column: str) -> tuple[str, ...] | None:
    """The names of a ClassLabel column, or None."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return tuple(str(name) for name in names) if isinstance(names, list) else None
