"""Two trainings that take turns on one machine, so that what else the machine does meets both alike.

A machine's speed drifts by more than the differences that matter here. So both trainings are started, and then the
processes of one are stopped (SIGSTOP) while those of the other run, a few seconds each, until one has done its steps.
A training's rate is its steps over the time in which it ran.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

import psutil

TURN_SECONDS = 3.0
_LOOK_SECONDS = 0.05


class Training:
    """A command that trains, with all processes that it starts.

    Args:
        command: what to run.
        folder: of its run; its metrics.jsonl has records with `step` and `time`.
    """

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self._command, self._metrics, self._log = command, folder / "metrics.jsonl", folder.with_suffix(".log")
        self._turns: list[tuple[float, float]] = []

    def __enter__(self) -> Training:
        with self._log.open("wb") as log:
            self._process = psutil.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends all its processes."""
        for process in self._stop_all():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()

    def run_until(self, step: int, seconds: float) -> bool:
        """Let it run until it has recorded a step, or for some time. Returns whether it has.

        Raises:
            RuntimeError: if it ends before, with all that it said.
        """
        began = time.time()
        for process in reversed(self._all()):
            with suppress(psutil.NoSuchProcess):
                process.resume()
        while not (there := self.last_step() >= step) and time.time() < began + seconds:
            if self._process.poll() is not None and self.last_step() < step:
                raise RuntimeError(f"{' '.join(self._command)} ended early\n{self._log.read_text(errors='replace')}")
            time.sleep(_LOOK_SECONDS)
        self._stop_all()
        self._turns.append((began, time.time()))
        return there

    def last_step(self) -> int:
        """That it has recorded; 0 for none."""
        records = self._records()
        return records[-1][0] if records else 0

    def steps_per_second(self, first: int) -> float:
        """From one step to the last that is recorded."""
        (_, began), *_, (last, ended) = [record for record in self._records() if record[0] >= first]
        ran = sum(max(0.0, min(end, ended) - max(start, began)) for start, end in self._turns)
        return (last - first) / ran

    def _records(self) -> list[tuple[int, float]]:
        if not self._metrics.exists():
            return []
        lines = self._metrics.read_text().rpartition("\n")[0].splitlines()
        return [(record["step"], record["time"]) for record in map(json.loads, lines)]

    def _all(self) -> list[psutil.Process]:
        try:
            return [self._process, *self._process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _stop_all(self) -> list[psutil.Process]:
        """Parents first, again until no process has a child that is not stopped."""
        stopped: list[psutil.Process] = []
        while new := [process for process in self._all() if process not in stopped]:
            stopped += new
            for process in new:
                with suppress(psutil.NoSuchProcess):
                    process.suspend()
        return stopped


def rates(trainings: Sequence[Training], first: int, last: int) -> list[float]:
    """Steps per second of each, from step `first` until one of them has done `last`."""
    with ExitStack() as stack:
        for training in trainings:
            stack.enter_context(training)
            training.run_until(first, float("inf"))
        for training in itertools.cycle(trainings):
            if training.run_until(last, TURN_SECONDS):
                break
        return [training.steps_per_second(first) for training in trainings]
