"""Rows sorted by a 128-bit digest in bounded memory, through one file of scratch on this machine's disk.

    add       rows are collected into runs; each run is sorted, cut at the edges of B equal ranges of digests, and
              appended to the file
    sorted    range after range, its pieces of all runs are read and sorted

Digests are uniform, so the ranges are about equally full. The file has no name: nothing is left of it whenever the
process ends. It lies where TMPDIR says, and is as large as the rows.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from data_pipeline.storage.local_disk import disk_errors

if TYPE_CHECKING:
    import pyarrow as pa

HIGH, LOW = "_high", "_low"
"""The columns of a digest: its first and its second eight bytes."""
ROWS_AT_ONCE = 131_072
"""Rows of a run, and of a range."""

Digests = npt.NDArray[np.uint64]
"""[rows, 2]: the first 16 bytes of a sha256 each, so that they sort as the sha256 does."""


def digests(texts: Iterable[str]) -> Digests:
    """sha256 of each text, cut to 16 bytes."""
    joined = b"".join([hashlib.sha256(text.encode()).digest()[:16] for text in texts])
    return np.frombuffer(joined, ">u8").astype(np.uint64).reshape(-1, 2)


class ExternalSort:
    """A sort of rows that need not fit in memory.

    Args:
        rows: how many there will be, about.
        at_once: rows in memory at a time.
    """

    def __init__(self, rows: int, at_once: int = ROWS_AT_ONCE) -> None:
        self._ranges = max(1, -(-rows // at_once))
        self._at_once = at_once
        self._edges = np.array([(number << 64) // self._ranges for number in range(1, self._ranges)], np.uint64)
        self._held: list[pa.Table] = []
        self._held_rows = 0
        self._pieces: list[npt.NDArray[np.int64]] = []
        """Of each run: where its piece of each range begins in the file, and the end of the last."""
        self._schema: pa.Schema | None = None
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, table: pa.Table, keys: Digests) -> None:
        """Add rows with their digests."""
        import pyarrow as pa

        table = table.append_column(HIGH, pa.array(keys[:, 0])).append_column(LOW, pa.array(keys[:, 1]))
        self._held.append(table)
        self._held_rows += table.num_rows
        if self._held_rows >= self._at_once:
            self._write_run()

    def sorted(self) -> Iterator[pa.Table]:
        """All rows by digest, in tables; rows with equal digests come in one table, in the order of their addition."""
        import pyarrow as pa

        if not self._pieces:
            if self._held:
                yield _sort(pa.concat_tables(self._held))
            return
        self._write_run()
        for number in range(self._ranges):
            pieces = [self._read(int(starts[number]), int(starts[number + 1])) for starts in self._pieces]
            table = pa.Table.from_batches([piece for piece in pieces if piece is not None], self._schema)
            if table.num_rows:
                yield _sort(table)

    def _write_run(self) -> None:
        import pyarrow as pa

        if not self._held:
            return
        table = _sort(pa.concat_tables(self._held)).combine_chunks()
        self._held, self._held_rows = [], 0
        self._schema = table.schema
        cuts = [0, *np.searchsorted(table.column(HIGH).to_numpy(), self._edges).tolist(), table.num_rows]
        starts = np.zeros(self._ranges + 1, np.int64)
        with disk_errors(Path(tempfile.gettempdir())):
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="foldtrain-")  # noqa: SIM115 - closed by __exit__
            starts[0] = self._file.seek(0, os.SEEK_END)
            for number in range(self._ranges):
                rows = table.slice(cuts[number], cuts[number + 1] - cuts[number])
                data = rows.to_batches()[0].serialize() if rows.num_rows else b""
                starts[number + 1] = starts[number] + self._file.write(data)
            self._file.flush()
        self._pieces.append(starts)

    def _read(self, start: int, stop: int) -> pa.RecordBatch | None:
        import pyarrow as pa

        if start == stop:
            return None
        assert self._file is not None
        with disk_errors(Path(tempfile.gettempdir())):
            data = os.pread(self._file.fileno(), stop - start, start)
        return pa.ipc.read_record_batch(pa.py_buffer(data), self._schema)


def _sort(table: pa.Table) -> pa.Table:
    order = np.lexsort((table.column(LOW).to_numpy(), table.column(HIGH).to_numpy()))
    return table.take(order)
