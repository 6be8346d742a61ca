"""Metrics as TensorBoard event files, in `tensorboard/` of the stage."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from data_pipeline import storage

_UPLOAD_SECONDS = 30.0


class TensorBoardReader:
    """One event file for this start of a stage.

    For a remote folder the file is written on this machine, and put there as a whole now and then and at the end.

    Args:
        folder: of the stage, at any URI.
        upload_seconds: least time between two uploads.
    """

    def __init__(self, folder: str, upload_seconds: float = _UPLOAD_SECONDS) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        self._remote = storage.join(folder, "tensorboard") if storage.is_remote(folder) else None
        local = (
            Path(tempfile.mkdtemp(prefix="tensorboard-"))
            if self._remote
            else storage.local_path(folder) / "tensorboard"
        )
        local.mkdir(parents=True, exist_ok=True)
        self._upload_seconds, self._uploaded = upload_seconds, time.monotonic()
        self._writer = EventsWriter(str(local / "events"), filename_suffix=f".{time.time_ns()}")
        self._path = Path(self._writer._file_name)

    def write(self, record: dict[str, Any]) -> None:
        """Add the numbers of a record at its step."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        step, wall_time = int(record["step"]), float(record["time"])
        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in record.items()
            if isinstance(value, int | float) and name not in {"step", "time"}
        ]
        self._writer.write_event(Event(wall_time=wall_time, step=step, summary=Summary(value=values)))
        self._writer.flush()
        if self._remote and time.monotonic() - self._uploaded >= self._upload_seconds:
            self._upload()

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()
        if self._remote:
            self._upload()

    def _upload(self) -> None:
        assert self._remote is not None
        self._uploaded = time.monotonic()
        storage.write_bytes(storage.join(self._remote, self._path.name), self._path.read_bytes())
