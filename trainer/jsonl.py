"""Append-only records at any URI. A slow or absent bucket never stops the writer."""

from __future__ import annotations

import json
import logging
import threading
from typing import Any

from data_pipeline import storage

_LOG = logging.getLogger(__name__)


def read_records(uri: str) -> list[dict[str, Any]]:
    """All whole records of a file; none if there is no file. A last line that is cut off is left out."""
    try:
        text = storage.read_bytes(uri).decode(errors="replace")
    except FileNotFoundError:
        return []
    records = []
    for line in text.splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:  # the line was being written when its writer died
            continue
    return records


class JsonlWriter:
    """Writes one JSON object per line, continuing a file that is there.

    Locally each record is flushed at once. Object storage cannot append, so there a thread puts the whole file again,
    at most once in `interval` seconds and at the end; an upload that fails is logged and tried again.
    """

    def __init__(self, uri: str, keep: list[dict[str, Any]], interval: float = 5.0) -> None:
        self._uri = uri
        self._interval = interval
        self._lines = [self._encode(record) for record in keep]
        self._changed = threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        storage.write_bytes(uri, "".join(self._lines).encode())
        if storage.is_remote(uri):
            self._thread = threading.Thread(target=self._upload_loop, name=f"upload {uri}", daemon=True)
            self._thread.start()
        else:
            self._file = storage.local_path(uri).open("a", encoding="utf-8")

    @staticmethod
    def _encode(record: dict[str, Any]) -> str:
        return json.dumps(record) + "\n"

    def write(self, record: dict[str, Any]) -> None:
        """Append a record; returns at once."""
        line = self._encode(record)
        if self._thread is None:
            self._file.write(line)
            self._file.flush()
        else:
            self._lines.append(line)
            self._changed.set()

    def _upload(self) -> None:
        self._changed.clear()
        try:
            storage.write_bytes(self._uri, "".join(list(self._lines)).encode())
        except Exception:
            _LOG.exception("cannot write %s; the next record tries again", self._uri)
            self._changed.set()

    def _upload_loop(self) -> None:
        while not self._closed.wait(self._interval):
            if self._changed.is_set():
                self._upload()

    def close(self) -> None:
        """Write what is left."""
        if self._thread is None:
            self._file.close()
            return
        self._closed.set()
        self._thread.join(timeout=60)
        if self._changed.is_set():
            self._upload()
