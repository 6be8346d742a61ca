"""A `foldtrain` command whose processes are to be killed: the command itself, and all that Ray starts for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from data_pipeline.errors import FoldtrainError

PATIENCE = 1200.0
"""Seconds after which a command counts as stuck: many times what it takes on a machine that does other work, too."""
_RAYS_OWN = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
OUTPUT_CHARACTERS = 4000
"""The end of a command's output that an error shows."""


class Family:
    """A process, and every one that descends from it. One whose parent is gone belongs to it if it was seen before.

    Args:
        pid: of the first.
    """

    def __init__(self, pid: int) -> None:
        self._known = {psutil.Process(pid)}

    def members(self) -> list[psutil.Process]:
        """Those that live."""
        self._known = {process for process in self._known if is_alive(process)}  # before another has its number
        parents = {process: process.info["ppid"] for process in psutil.process_iter(["ppid"])}
        pids = {process.pid for process in self._known}
        grown = True
        while grown:
            found = {process for process, parent in parents.items() if parent in pids and process.pid not in pids}
            self._known |= found
            pids |= {process.pid for process in found}
            grown = bool(found)
        self._known = {process for process in self._known if is_alive(process)}
        return sorted(self._known, key=lambda process: process.pid)


class Victim:
    """A command in a session of its own, and its family: every process that descends from it, orphans too.

    Args:
        arguments: of `foldtrain`.
        log: file for what it prints.
        environment: variables beside those of this process.
    """

    def __init__(self, arguments: tuple[str, ...], log: Path, environment: Mapping[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "foldtrain", *arguments]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._log = log
        self._family = Family(self._process.pid)

    def poll(self) -> int | None:
        """Its exit code, once it has ended."""
        return self._process.poll()

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait for its end.

        Returns:
            Its exit code.

        Raises:
            subprocess.TimeoutExpired: if it does not end.
        """
        return self._process.wait(timeout)

    def send_signal(self, number: signal.Signals) -> None:
        """To the command alone."""
        self._process.send_signal(number)

    def signal_group(self, number: signal.Signals) -> None:
        """To the command, to Ray's processes and to all workers, as batch systems and closing terminals do."""
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """End the command alone, the driver, by kill -9."""
        self.family()
        self._process.kill()
        self._process.wait()

    def output(self) -> str:
        """What it has printed."""
        return self._log.read_text(errors="replace")

    def family(self) -> list[psutil.Process]:
        """Its living processes."""
        return self._family.members()

    def workers(self, title: str) -> list[psutil.Process]:
        """Those of its processes that have this in their title."""
        return [process for process in self.family() if title in title_of(process)]

    def actors(self) -> list[psutil.Process]:
        """The processes that Ray runs for it, but for those that wait for work, and Ray's own."""
        return [process for process in self.family() if is_actor(title_of(process))]

    def raylets(self) -> list[psutil.Process]:
        """Ray's own processes that hold a node's workers."""
        return [process for process in self.family() if program_of(process) == "raylet"]

    def end(self) -> None:
        """Kill what is left of the family."""
        for process in self.family():
            kill(process)
        self._process.wait()
        for process in self.family():  # started meanwhile
            kill(process)


def is_actor(title: str) -> bool:
    """Whether a process is at work for a user of Ray, by its title."""
    return title.startswith("ray::") and not title.startswith(_RAYS_OWN)


def is_alive(process: psutil.Process) -> bool:
    """Whether it is there, and no zombie."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def title_of(process: psutil.Process) -> str:
    """Its command line; empty if it is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def program_of(process: psutil.Process) -> str:
    """The name of the program that it runs; empty if it is gone."""
    return Path(title_of(process).split(" ")[0]).name


def kill(process: psutil.Process) -> bool:
    """End a process by kill -9. Returns whether it was still there."""
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return False
    return True


@contextmanager
def standing_still(processes: Iterable[psutil.Process]) -> Iterator[None]:
    """Workers stand still, so that what happens comes before their last step, however fast the machine is."""
    stopped = list(processes)
    for process in stopped:
        process.suspend()
    try:
        yield
    finally:
        for process in stopped:
            with suppress(psutil.NoSuchProcess):  # it ended with a command that failed, which says why
                process.resume()


@contextmanager
def started(*arguments: str, environment: Mapping[str, str] | None = None, log: Path | None = None) -> Iterator[Victim]:
    """`foldtrain ARGUMENTS...`; whatever is left of its family in the end is killed.

    Args:
        arguments: of the command.
        environment: variables beside those of this process.
        log: file for what it prints; a temporary one if left out.
    """
    with tempfile.TemporaryDirectory(prefix="foldtrain-") as folder:
        victim = Victim(arguments, log or Path(folder) / "log", environment)
        try:
            yield victim
        finally:
            victim.end()


def run(*arguments: str, environment: Mapping[str, str] | None = None, log: Path | None = None) -> str:
    """The output of a command that has to succeed.

    Raises:
        FoldtrainError: if it does not, or does not end; with the end of its output.
    """
    with started(*arguments, environment=environment, log=log) as victim:
        try:
            code = victim.wait()
        except subprocess.TimeoutExpired:
            raise FoldtrainError(f"{arguments[0]} did not end in {PATIENCE:.0f} s:\n{tail(victim)}") from None
        if code != 0:
            raise FoldtrainError(f"{arguments[0]} ended with exit code {code}:\n{tail(victim)}")
        return victim.output()


def tail(victim: Victim) -> str:
    """The end of what a command printed."""
    return victim.output()[-OUTPUT_CHARACTERS:]


def wait_for(what: str, condition: Callable[[], Any], victim: Victim, pause: float = 0.02) -> Any:
    """The first true answer of a condition, asked again and again while a command runs, with so many seconds between.

    Raises:
        FoldtrainError: if the command ends before, or it takes too long.
    """
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        answer = condition()
        if answer:
            return answer
        try:
            victim.wait(timeout=pause)
        except subprocess.TimeoutExpired:
            continue
        raise FoldtrainError(f"the command ended before {what}:\n{tail(victim)}")
    raise FoldtrainError(f"no {what} in {PATIENCE:.0f} seconds:\n{tail(victim)}")
