"""A file from its beginning to its end, with a piece of it in memory at a time; its digest comes from the same pass."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from data_pipeline import storage
from data_pipeline.storage.watchdog import reading

PIECE_BYTES = 8 * 2**20
"""What one request asks for."""


class OnePass:
    """One file, read in order; each byte is asked for once.

    Args:
        uri: of the file.
        size: its bytes, as a listing says.
        piece_bytes: what one request asks for; PIECE_BYTES if left out.
    """

    def __init__(self, uri: str, size: int, piece_bytes: int | None = None) -> None:
        self._uri, self._size, self._piece_bytes = uri, size, piece_bytes or PIECE_BYTES
        self._digest = hashlib.sha256()
        self._fetched = 0
        self._piece = memoryview(b"")
        self.at = 0
        """Bytes that were passed so far."""

    def pieces(self, length: int) -> Iterator[memoryview]:
        """The next bytes, as they come; fewer than `length` only where the file ends.

        Raises:
            FileNotFoundError: if the file has gone.
        """
        while length > 0:
            if not self._piece and not self._fetch():
                return
            part, self._piece = self._piece[:length], self._piece[length:]
            self.at += len(part)
            length -= len(part)
            yield part

    def read(self, length: int) -> bytes:
        """The next bytes as one; raises as `pieces`."""
        parts = list(self.pieces(length))
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)

    def skip(self, length: int) -> None:
        """Pass over the next bytes; they count in the digest like all."""
        for _ in self.pieces(length):
            pass

    def finish(self) -> str:
        """Pass over the rest; the sha256 of the whole file."""
        self.skip(self._size - self.at)
        return self._digest.hexdigest()

    def _fetch(self) -> bool:
        length = min(self._piece_bytes, self._size - self._fetched)
        if length <= 0:
            return False
        with reading(self._uri):
            data = storage.read_range(self._uri, self._fetched, length)
        self._fetched = self._fetched + len(data) if len(data) == length else self._size  # it was cut meanwhile
        self._digest.update(data)
        self._piece = memoryview(data)
        return bool(data)
