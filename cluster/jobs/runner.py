"""The process that keeps a job's record: it starts the stages as a process below it, and outlives whatever ends them.

    main thread    waits for the stages' process; passes a signal on, once; kills what does not end within the grace
    pump           what the stages print → this process's own output, and the log in the run
    words          what the stages say of themselves (a line of JSON each, through a pipe): stage, outcome, error
    uploads        every few seconds: the log, a sign of life, a look for a request to stop

It is in a session of its own (cluster/job_process.py), so that a scheduler that kills a job's first process three
seconds after its polite word, or dies itself, takes neither the checkpoint nor the record.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any

from cluster.jobs import control, records
from cluster.jobs.logs import LogWriter
from cluster.jobs.places import job_folder
from cluster.jobs.records import Attempt, State
from cluster.session import job_environment
from data_pipeline import storage
from data_pipeline.errors import FoldtrainError
from data_pipeline.storage.retries import patience

WORDS_VARIABLE = "FOLDTRAIN_JOB_WORDS"
"""Names the file descriptor through which the stages' process says how it stands."""
TOLD_EXIT = 143
"""Exit code of a job that its scheduler told to end: it may be started again, and goes on."""
STOPPED_EXIT = 0
"""Of a job that was stopped by request: no scheduler is to start it again."""
_LOOK_SECONDS = 0.2
_REMOTE_SECONDS, _DISK_SECONDS = 5.0, 1.0
"""Between two uploads."""
_SAME_SECONDS = 1.0
"""A signal that comes again within this is the same."""
_LAST_SECONDS = 120.0
"""How long the last word is tried while storage is away."""
_AT_ONCE_SECONDS = 10.0
"""For processes that were told twice."""
_ASIDE_SECONDS = 10.0
_LINES, _LINE_LENGTH = 20, 500
_COLORS = re.compile(r"\x1b\[[0-9;]*m")


class Runner:
    """Runs the stages of a job in a process, and keeps its record.

    Args:
        run: URI of the run.
        job_id: of the job.
        command: of the process that does the stages.
        front: end of a pipe whose other end the scheduler's own process holds: it ends when that does.
    """

    def __init__(self, run: str, job_id: str, command: Sequence[str], front: int | None = None) -> None:
        self._run, self._id, self._command, self._front = run, job_id, list(command), front
        self._folder = job_folder(run, job_id)
        self._log = LogWriter(self._folder)
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._process: subprocess.Popen[bytes] | None = None
        self._told, self._told_at, self._signals = "", 0.0, 0
        self._is_stopped = self._is_superseded = False
        self._stage, self._done, self._error = "", dict[str, str](), ""
        self._over = threading.Event()
        self._grace = 120.0

    def run(self) -> int:
        """Do the job. Returns the exit code.

        Raises:
            UsageError: if the run has no such job.
        """
        record = records.read_job(self._run, self._id)
        assert record.job is not None
        self._grace = _grace(record.job.target_config)
        self._begin(record.state)
        if record.stop is not None:
            return self._end("stopped", STOPPED_EXIT, f"stopped by {record.stop.by} before it began")
        self._keep()
        self._listen()
        code = self._work()
        return self._close(code)

    # ---------------------------------------------------------------------------------------------------------- record

    def _begin(self, before: State | None) -> None:
        earlier = [] if before is None else [*before.earlier, Attempt(**_of_attempt(before))]
        self._attempt = 1 if before is None else before.attempt + 1
        self._earlier = tuple(earlier[-50:])
        self._started = time.time()

    def _state(self, **ending: Any) -> State:
        values: dict[str, Any] = {
            "attempt": self._attempt,
            "status": "running",
            "stage": self._stage,
            "started": self._started,
            "heartbeat": time.time(),
            "told": self._told,
            "node": socket.gethostname(),
            "pid": os.getpid(),
            "done": dict(self._done),
            "last_lines": tuple(self._lines),
            "earlier": self._earlier,
        }
        return State(**values | ending)

    def _keep(self) -> None:
        """Put a sign of life on record, unless a later start of the same job is at work: then this one ends."""
        newest = records.read_state(self._run, self._id)
        if newest is not None and newest.attempt > self._attempt:
            self._is_superseded = True
            self._tell(f"start {newest.attempt} of this job on {newest.node}")
        else:
            records.write_state(self._run, self._id, self._state())

    def _end(self, status: str, code: int, error: str = "") -> int:
        """Put the last word on record. Returns the exit code."""
        ending = {"status": status, "ended": time.time(), "exit_code": code, "message": error[:4000]}
        if not self._is_superseded:
            try:
                with patience(_LAST_SECONDS):
                    records.write_state(self._run, self._id, self._state(**ending))
            except (OSError, FoldtrainError) as problem:  # its scheduler is told all the same
                print(f"the record of {self._id} does not say that it {status}: {problem}", file=sys.stderr)  # noqa: T201
        return code

    def _close(self, code: int) -> int:
        """What a code of the stages' process comes to."""
        job_environment.remove()  # before the last word: whoever waits for that finds no secret left
        with patience(_LAST_SECONDS):
            self._log.flush()
        if code == 0:
            return self._end("succeeded", 0)
        if self._is_stopped or self._was_asked_to_stop():
            return self._end("stopped", STOPPED_EXIT, self._error)
        if self._told or code == TOLD_EXIT:
            return self._end("preempted", TOLD_EXIT, self._error)
        number = -code if code < 0 else 0
        return self._end("failed", 128 + number if number else code, self._error or _why(number, self._lines))

    def _was_asked_to_stop(self) -> bool:
        """Whether there is a request that this process had no time to look for: its scheduler was quicker."""
        try:
            with patience(_ASIDE_SECONDS):
                return bool(self._told) and control.read_stop(self._folder) is not None
        except (OSError, FoldtrainError):
            return False

    # --------------------------------------------------------------------------------------------------------- process

    def _work(self) -> int:
        read_end, write_end = os.pipe()
        with contextlib.ExitStack() as files:
            words = files.enter_context(os.fdopen(read_end, "rb"))
            environment = os.environ | {WORDS_VARIABLE: str(write_end), "PYTHONUNBUFFERED": "1"}
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[write_end],
                start_new_session=True,
                env=environment,
            )
            os.close(write_end)
            assert self._process.stdout is not None
            threads = [
                threading.Thread(target=self._pump, args=(self._process.stdout,), name="pump", daemon=True),
                threading.Thread(target=self._hear, args=(words,), name="words", daemon=True),
                threading.Thread(target=self._upload, name="uploads", daemon=True),
            ]
            if self._front is not None:
                threading.Thread(target=self._watch_front, args=(self._front,), name="front", daemon=True).start()
            for thread in threads:
                thread.start()
            if self._told:  # by a signal that came before there was a process
                self._pass_on()
            code = self._wait(self._process)
            self._over.set()
            for thread in threads[:2]:
                thread.join(_AT_ONCE_SECONDS)  # a process of Ray may hold the pipe for longer
            threads[2].join(_LAST_SECONDS)
            return code

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(_LOOK_SECONDS)
            if self._told and time.monotonic() - self._told_at > self._grace:
                self._error = self._error or f"it had not ended {self._grace:g} s after it was told to, and was killed"
                _kill(process)

    def _pump(self, output: IO[bytes]) -> None:
        rest = b""
        while data := output.read1(65_536):  # type: ignore[attr-defined] # of a buffered reader
            self._log.write(data)
            with contextlib.suppress(OSError, ValueError):  # the scheduler's log may be gone
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
            *whole, rest = (rest + data).split(b"\n")
            rest = rest[-_LINE_LENGTH:]
            self._lines.extend(_line(line) for line in whole if line.strip())
        if rest.strip():
            self._lines.append(_line(rest))

    def _hear(self, words: IO[bytes]) -> None:
        for line in words:
            with contextlib.suppress(ValueError, TypeError, AttributeError):
                word = json.loads(line)
                if "stage" in word:
                    self._stage = str(word["stage"])[:80]
                    if "outcome" in word:
                        self._done[self._stage] = str(word["outcome"])[:80]
                if "error" in word:
                    self._error = str(word["error"])

    def _upload(self) -> None:
        pause = _REMOTE_SECONDS if storage.is_remote(self._run) else _DISK_SECONDS
        kept, stage = time.monotonic(), self._stage
        while not self._over.wait(pause):
            self._log.flush()
            with contextlib.suppress(OSError, FoldtrainError), patience(_ASIDE_SECONDS):
                self._obey(control.read_stop(self._folder))
                if time.monotonic() - kept > records.BEAT_SECONDS or stage != self._stage:
                    stage = self._stage
                    self._keep()
                    kept = time.monotonic()

    # ------------------------------------------------------------------------------------------------------------- end

    def _listen(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._tell(signal.Signals(number).name)

    def _watch_front(self, front: int) -> None:
        """Wait for the end of the scheduler's own process, which comes after this one's, or because it was killed.

        That is no second notice: a scheduler that gave notice kills what is there seconds later, Ray after 3, when
        the stages may still write the checkpoint.
        """
        with contextlib.suppress(OSError):
            os.read(front, 1)
        if not self._over.is_set() and not self._told:
            self._tell("its scheduler ended it")

    def _tell(self, by: str) -> None:
        """Have the stages end, with a checkpoint. Again, and not just the same once more: at once."""
        now = time.monotonic()
        if self._told and now - self._told_at < _SAME_SECONDS:
            return
        if not self._told:
            self._told, self._told_at = by, now
        self._pass_on()

    def _pass_on(self) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)

    def _obey(self, stop: control.Stop | None) -> None:
        if stop is None:
            return
        if not self._is_stopped:
            self._is_stopped = True
            self._tell(f"stop, asked for by {stop.by}")
        process = self._process
        if stop.stop == "now" and process is not None and not self._over.is_set():
            self._over.wait(_SAME_SECONDS)
            self._pass_on()  # a second notice ends at once
            if not self._over.wait(_AT_ONCE_SECONDS):
                _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the stages' process and those of its session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _of_attempt(state: State) -> dict[str, Any]:
    """A start, for the record of the next: one that still `runs` by its own word was killed."""
    values = {name: getattr(state, name) for name in Attempt.model_fields}
    if state.status == "running":
        values |= {
            "status": "failed",
            "ended": state.heartbeat,
            "message": "it gave no further sign of life: it was killed",
        }
    return values


def _grace(target: dict[str, Any]) -> float:
    seconds = target.get("grace_seconds")
    return float(seconds) if isinstance(seconds, int | float) and 0 <= seconds <= 86_400 else 120.0


def _line(data: bytes) -> str:
    """A line of its output, without what only a terminal understands."""
    return _COLORS.sub("", data[-_LINE_LENGTH:].decode(errors="replace").replace("\t", "    ")).rstrip()


def _why(number: int, lines: Sequence[str]) -> str:
    if number == signal.SIGKILL:
        return (
            "its process was killed (SIGKILL): by the kernel, if the memory of the node ran out (`dmesg` there says "
            "so), or by somebody"
        )
    if number:
        return f"its process was ended by {signal.Signals(number).name}"
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or list(lines) or ["it said nothing"])[-1].removeprefix("error: ")


def python_command(*arguments: str) -> list[str]:
    """A command of this interpreter, which looks for modules where it is installed and nowhere else."""
    return [sys.executable or str(Path("python")), "-P", "-m", *arguments]
