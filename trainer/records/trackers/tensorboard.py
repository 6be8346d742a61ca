"""Metrics as TensorBoard event files, in `tensorboard/` of the stage."""

from __future__ import annotations

import io
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from data_pipeline import storage

_UPLOAD_SECONDS = 30.0
_FILE_BYTES = 2**20
"""Of a file that is put whole at each upload; then another one is begun. TensorBoard reads all files of a folder."""


class TensorBoardReader:
    """One event file for this start of a stage; for a remote folder one after the other.

    These are written on this machine. The last one is put as a whole now and then and at the end, the others once more
    when they have grown to 1 MiB, so that what goes up grows with the records and not with their square.

    Args:
        folder: of the stage, at any URI.
        upload_seconds: least time between two uploads.
    """

    def __init__(self, folder: str, upload_seconds: float = _UPLOAD_SECONDS) -> None:
        self._remote = storage.join(folder, "tensorboard") if storage.is_remote(folder) else None
        self._local = (
            Path(tempfile.mkdtemp(prefix="tensorboard-"))
            if self._remote
            else storage.local_path(folder) / "tensorboard"
        )
        self._local.mkdir(parents=True, exist_ok=True)
        self._upload_seconds, self._uploaded = upload_seconds, time.monotonic()
        self._open()

    def _open(self) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        self._writer = EventsWriter(str(self._local / "events"), filename_suffix=f".{time.time_ns()}")
        self._path = Path(self._writer._file_name)

    def write(self, record: dict[str, Any]) -> None:
        """Add the numbers and pictures of a record at its step."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        step, wall_time = int(record["step"]), float(record["time"])
        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in record.items()
            if isinstance(value, int | float) and name not in {"step", "time"}
        ]
        values += [_picture(name, value) for name, value in record.items() if isinstance(value, bytes)]
        self._writer.write_event(Event(wall_time=wall_time, step=step, summary=Summary(value=values)))
        self._writer.flush()
        if self._remote and self._path.stat().st_size >= _FILE_BYTES:
            self._upload()
            self._writer.close()
            self._path.unlink()
            self._open()
        elif self._remote and time.monotonic() - self._uploaded >= self._upload_seconds:
            self._upload()

    def close(self) -> None:
        """Finish the file; nothing is left of a remote run on this machine."""
        self._writer.close()
        if self._remote:
            try:
                self._upload()
            finally:
                shutil.rmtree(self._local, ignore_errors=True)

    def _upload(self) -> None:
        assert self._remote is not None
        self._uploaded = time.monotonic()
        storage.write_bytes(storage.join(self._remote, self._path.name), self._path.read_bytes())


def _picture(name: str, png: bytes) -> Any:
    from PIL import Image
    from tensorboardX.proto.summary_pb2 import Summary

    with Image.open(io.BytesIO(png)) as image:
        width, height = image.size
    shown = Summary.Image(encoded_image_string=png, width=width, height=height, colorspace=3)
    return Summary.Value(tag=name, image=shown)
