"""Images of a source as rows of parquet files: how a listing and a plan lie on storage.

A folder of part-00000.parquet, part-00001.parquet, ..., each a whole object of some megabytes; a row group is what was
added at once. So neither a writer nor a reader holds more than a part, however many images there are. Pages have
checksums, which are compared when they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError
from data_pipeline.sources import RawItem

if TYPE_CHECKING:
    import pyarrow as pa

PART_ROWS = 65_536
"""A part is full when it has so many rows, or more where a row group is larger."""


class Place(NamedTuple):
    """Where a row group lies."""

    part: int
    """Number of its file."""
    group: int
    """Number in it."""


def schema() -> pa.Schema:
    """The columns of a `RawItem`."""
    import pyarrow as pa

    return pa.schema(
        [
            ("key", pa.string()),
            ("label", pa.int32()),
            ("size", pa.int64()),
            ("name", pa.string()),
            ("offset", pa.int64()),
            ("part", pa.string()),
            ("block", pa.int32()),
        ]
    )


def to_table(items: Iterable[RawItem]) -> pa.Table:
    """Rows of items."""
    import pyarrow as pa

    columns = list(zip(*items, strict=True)) or [()] * len(RawItem._fields)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, schema(), strict=True)], schema())


def to_items(table: pa.Table) -> list[RawItem]:
    """Items of rows."""
    columns = [table.column(name).to_pylist() for name in RawItem._fields]
    return list(map(RawItem._make, zip(*columns, strict=True)))


def part_uri(folder: str, part: int) -> str:
    """A file of rows."""
    return storage.join(folder, f"part-{part:05d}.parquet")


class ItemWriter:
    """Writes rows to the parts of a folder, one after another.

    Args:
        folder: URI.
        require: called before each write; raises if this process may not write any more.
    """

    def __init__(self, folder: str, require: Callable[[], object]) -> None:
        self._folder, self._require = folder, require
        self._file: Any = None
        self._buffer: Any = None
        self._rows = self._groups = 0
        self.parts = 0
        """Files that are written."""
        self.rows = 0
        """Rows that were added."""
        self.bytes = 0
        """Of the files that are written."""

    def add(self, table: pa.Table) -> Place:
        """Add a row group. It is on storage once its part is full, or after `close`."""
        import pyarrow as pa
        import pyarrow.parquet

        if self._file is None:
            self._buffer = pa.BufferOutputStream()
            options = {"compression": "zstd", "write_page_checksum": True, "write_statistics": False}
            self._file = pa.parquet.ParquetWriter(
                self._buffer, schema(), use_dictionary=["label", "part", "block"], **options
            )
        place = Place(self.parts, self._groups)
        self._file.write_table(table, row_group_size=max(1, table.num_rows))
        self._groups += 1
        self._rows += table.num_rows
        self.rows += table.num_rows
        if self._rows >= PART_ROWS:
            self.close()
        return place

    def close(self) -> None:
        """Write what is left."""
        if self._file is None:
            return
        self._file.close()
        data = self._buffer.getvalue()
        self._file = self._buffer = None
        self._require()
        storage.write_bytes(part_uri(self._folder, self.parts), memoryview(data))
        self.parts, self._rows, self._groups, self.bytes = self.parts + 1, 0, 0, self.bytes + data.size


def read_rows(folder: str, parts: int, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """All rows, in order, a row group at a time; of some columns, or all.

    Raises:
        CorruptShardError: if a part is missing or damaged; it names it.
    """
    for part in range(parts):
        with _opened(part_uri(folder, part)) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns=columns, use_threads=False)


def read_place(folder: str, place: Place) -> list[RawItem]:
    """The items of one row group.

    Raises:
        CorruptShardError: if the part is missing or damaged, or has no such group; it names it.
    """
    uri = part_uri(folder, place.part)
    with _opened(uri) as file:
        if place.group >= file.num_row_groups:
            raise _damaged(uri, f"it has {file.num_row_groups} row groups")
        return to_items(file.read_row_group(place.group, use_threads=False))


@contextmanager
def _opened(uri: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        with (
            storage.open_reader(uri) as reader,
            pa.parquet.ParquetFile(reader, page_checksum_verification=True) as file,
        ):
            if not file.schema_arrow.equals(schema()):
                raise _damaged(uri, "it has other columns")
            yield file
    except (FileNotFoundError, NotADirectoryError):
        raise _damaged(uri, "it is missing") from None
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and (error.errno is not None or error.__cause__ is not None):
            raise  # the storage failed: pyarrow's own have neither
        raise _damaged(uri, str(error)) from error


def _damaged(uri: str, reason: str) -> CorruptShardError:
    folder = uri.rpartition("/")[0]
    return CorruptShardError(
        f"{uri} is no part of a listing or plan ({reason}): delete {folder} and run foldtrain ingest again, which "
        "makes it anew"
    )
