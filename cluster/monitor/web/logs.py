"""The jobs of a run and what they printed, from the run's own folder; what was read once is kept for all who look."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass
from typing import Any

from cluster.jobs import logs as job_logs
from cluster.jobs.places import JOBS, is_id, job_folder
from cluster.jobs.records import OVER, JobRecord, read_or_problem
from data_pipeline import storage
from data_pipeline.text.printable import printable

_COLOURS = re.compile(r"\x1b\[[0-9;:?]*[A-Za-z]")
MOST_JOBS = 50
"""That are listed."""
MOST_CHARACTERS = 512 * 2**10
"""Of a log that are kept, the last ones."""
_LOG_SECONDS, _JOB_SECONDS = 5.0, 15.0
"""For which a log, and how jobs stand, is not asked for again."""
_LONGEST = 1000


@dataclass
class _Log:
    """What was read of a job's output."""

    reader: job_logs.LogReader
    text: str = ""
    start: int = 0
    """Characters before it that are kept no more."""
    read_at: float = float("-inf")


class LogReader:
    """Reads the jobs of a run.

    Args:
        run: its URI.
    """

    def __init__(self, run: str) -> None:
        self._run, self._lock = run, threading.Lock()
        self._logs: dict[str, _Log] = {}
        self._jobs: dict[str, JobRecord] = {}
        self._read_at = float("-inf")

    def jobs(self) -> list[dict[str, Any]]:
        """The jobs with what their records say, the newest first; text as it may be shown."""
        return [_shown(record) for record in self._records()]

    def price(self) -> dict[str, Any] | None:
        """What an hour of all nodes of the newest job costs, as its target says; None if it does not."""
        for record in self._records():
            given = record.job.target_config if record.job else {}
            price, nodes = given.get("price_per_hour"), given.get("nodes", 1)
            nodes = nodes[0] if isinstance(nodes, list) and nodes else nodes  # the least of them
            if _is_number(price) and _is_number(nodes):
                return {"per_hour": price * nodes, "currency": printable(str(given.get("currency", ""))[:8])}
        return None

    def _records(self) -> list[JobRecord]:
        with self._lock:
            if time.monotonic() - self._read_at >= _JOB_SECONDS:
                ids = [name for name in storage.list_names(storage.join(self._run, JOBS)) if is_id(name)]
                for each in ids:
                    known = self._jobs.get(each)
                    if known is None or known.status not in OVER:
                        self._jobs[each] = read_or_problem(self._run, each)
                self._read_at = time.monotonic()
            found = list(self._jobs.values())
        return sorted(found, key=lambda record: (-record.submitted, record.id))[:MOST_JOBS]

    def after(self, job: str, place: int) -> dict[str, Any]:
        """What a job printed behind a place, in characters from its beginning.

        Returns:
            `text`, the place where it begins (`start`: later than asked for if that is kept no more) and its `end`.

        Raises:
            UsageError: if that is no id of a job.
        """
        folder = job_folder(self._run, job)
        with self._lock:
            log = self._logs.setdefault(job, _Log(job_logs.LogReader(folder)))
            if time.monotonic() - log.read_at >= _LOG_SECONDS:
                self._read_on(log)
                log.read_at = time.monotonic()
            end = log.start + len(log.text)
            begin = min(max(place, log.start), end)
            return {"text": log.text[begin - log.start :], "start": begin, "end": end}

    def _read_on(self, log: _Log) -> None:
        while piece := log.reader.news():
            plain = _COLOURS.sub("", piece).replace("\t", "    ").replace("\r\n", "\n").replace("\r", "\n")
            log.text += printable(plain, lines=True)
            surplus = len(log.text) - MOST_CHARACTERS
            if surplus > 0:
                log.text, log.start = log.text[surplus:], log.start + surplus


def _shown(record: JobRecord) -> dict[str, Any]:
    state = record.state
    found: dict[str, Any] = {
        "id": record.id,
        "status": record.status,
        "stages": record.stages,
        "target": record.target,
        "who": record.job.who if record.job else "",
        "message": record.message,
    }
    if state is not None:
        found |= {"stage": state.stage, "node": state.node, "attempt": state.attempt, "started": state.started}
        found |= {"ended": state.ended, "exit_code": state.exit_code}
    return {name: _text(value) for name, value in found.items()}


def _text(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value[:_LONGEST])
    return [printable(str(each)[:_LONGEST]) for each in value] if isinstance(value, list | tuple) else value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
