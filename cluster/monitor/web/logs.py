"""The jobs of a run and what they printed, from the run's own folder; what was read once is kept for all who look.

<run>/jobs/<id>/job.json     what was submitted
<run>/jobs/<id>/state.json   how it stands, written by the job itself
<run>/jobs/<id>/log/000000.txt, …    what it printed; the last piece grows
"""

from __future__ import annotations

import codecs
import re
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.text.printable import printable

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_PIECE = re.compile(r"(\d{6})\.txt")
_COLOURS = re.compile(r"\x1b\[[0-9;:?]*[A-Za-z]")
MOST_JOBS = 50
"""That are listed, the last ones by name."""
MOST_PIECE_BYTES = 4 * 2**20
MOST_CHARACTERS = 512 * 2**10
"""Of a log that are kept, the last ones."""
_FRESH_SECONDS = 5.0
"""For which a listing is not asked for again."""


@dataclass
class _Log:
    """What was read of a job's output."""

    text: str = ""
    start: int = 0
    """Characters before it that are kept no more."""
    piece: str = ""
    """Name of the last piece that was read, and how many bytes of it."""
    offset: int = 0
    decoder: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))
    listed_at: float = -_FRESH_SECONDS


@dataclass
class _Job:
    record: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    version: storage.Entry | None = None


class LogReader:
    """Reads the jobs of a run.

    Args:
        run: its URI.
    """

    def __init__(self, run: str) -> None:
        self._folder = storage.join(run, "jobs")
        self._lock = threading.Lock()
        self._logs: dict[str, _Log] = {}
        self._jobs: dict[str, _Job] = {}
        self._listed_at = -_FRESH_SECONDS

    def jobs(self) -> list[dict[str, Any]]:
        """The jobs with what their records say, the newest first; text as it may be shown."""
        with self._lock:
            if time.monotonic() - self._listed_at >= _FRESH_SECONDS:
                names = [name for name in storage.list_names(self._folder) if _ID.fullmatch(name)]
                for name in names[-MOST_JOBS:]:
                    self._look_at(name)
                self._listed_at = time.monotonic()
            found = [{"id": name} | job.record | job.state for name, job in self._jobs.items()]
        return sorted(found, key=lambda job: -(job.get("submitted") or job.get("started") or 0))

    def _look_at(self, name: str) -> None:
        job = self._jobs.setdefault(name, _Job())
        if not job.record:
            job.record = _fields(_record(storage.join(self._folder, name, "job.json")), _OF_JOB)
        if job.state.get("ended"):
            return  # a job that goes on writes that it has not ended: whoever waits for it asks `foldtrain describe`
        uri = storage.join(self._folder, name, "state.json")
        try:
            version = storage.stat(uri)
        except FileNotFoundError:
            return
        if version != job.version:
            job.state, job.version = _fields(_record(uri), _OF_STATE), version

    def after(self, job: str, place: int) -> dict[str, Any]:
        """What a job printed behind a place, in characters from its beginning.

        Returns:
            `text`, the place where it begins (`start`: later than asked for if that is kept no more) and its `end`.

        Raises:
            UsageError: if there is no such job.
        """
        if not _ID.fullmatch(job) or job.strip(".") == "":
            raise UsageError("there is no such job")
        with self._lock:
            log = self._logs.setdefault(job, _Log())
            if time.monotonic() - log.listed_at >= _FRESH_SECONDS:
                self._read_on(job, log)
                log.listed_at = time.monotonic()
            end = log.start + len(log.text)
            begin = min(max(place, log.start), end)
            return {"text": log.text[begin - log.start :], "start": begin, "end": end}

    def _read_on(self, job: str, log: _Log) -> None:
        folder = storage.join(self._folder, job, "log")
        names = sorted(name for name in storage.list_names(folder) if _PIECE.fullmatch(name))
        for name in names:
            if name < log.piece:
                continue
            if name != log.piece:
                log.piece, log.offset = name, 0
            data = storage.read_range(storage.join(folder, name), log.offset, MOST_PIECE_BYTES - log.offset)
            log.offset += len(data)
            text = _COLOURS.sub("", log.decoder.decode(data)).replace("\r\n", "\n").replace("\r", "\n")
            log.text += printable(text, lines=True)
        surplus = len(log.text) - MOST_CHARACTERS
        if surplus > 0:
            log.text, log.start = log.text[surplus:], log.start + surplus


_OF_JOB = {"stages": list, "target": str, "submitted": float, "who": str}
_OF_STATE = {
    "status": str,
    "stage": str,
    "started": float,
    "ended": float,
    "exit_code": int,
    "last_lines": list,
    "node": str,
    "attempt": int,
    "heartbeat": float,
    "message": str,
}


def _record(uri: str) -> dict[str, Any]:
    try:
        found = storage.read_json(uri)
    except (FileNotFoundError, UsageError):
        return {}
    return found if isinstance(found, dict) else {}


def _fields(record: dict[str, Any], kinds: dict[str, type]) -> dict[str, Any]:
    """The fields of a record that the page shows, of their kinds."""
    found: dict[str, Any] = {}
    for name, kind in kinds.items():
        value = record.get(name)
        if kind is str and isinstance(value, str):
            found[name] = printable(value[:1000])
        elif kind is list and isinstance(value, list):
            found[name] = [printable(str(each)[:1000]) for each in value[:50]]
        elif isinstance(value, int if kind is int else int | float) and not isinstance(value, bool):
            found[name] = value if kind in {int, float} else None
    return {name: value for name, value in found.items() if value is not None}
