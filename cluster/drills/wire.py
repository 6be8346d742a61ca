"""What a training stage asks of its storage, seen by the proxy on the way: what it does, loads, and has completed.

Each of these requests tells something (trainer/loop/training_loop.py has them in this order):

    GET step_N/rank_*          it loads the checkpoint of step N
    PUT environment.json       it has loaded what there is to load; its first step is next
    PUT ledger.jsonl           from the first checkpoint of a start on: the next one is about to be copied and written
    PUT step_N/*               the checkpoint of step N is written, up to its COMPLETE
    DELETE step_N/COMPLETE     it is removed

A checkpoint is complete from the server's answer to the PUT of its COMPLETE on. Loading any but the newest complete
one is wrong, and is noted.
"""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from cluster.drills.fault_proxy import Fault
from cluster.drills.training_blows import CHECKPOINT_EVERY, STEPS, Phase, Sight

_CHECKPOINT = re.compile(r"checkpoints/step_(\d+)/(.+)")
_ATTEMPT = re.compile(r"-[0-9a-f]{8}(?=\.)")


@dataclass(frozen=True)
class Start:
    """A start of the stage, as far as its first step."""

    loaded: int
    """Step of the checkpoint that it loaded; 0 if none."""
    newest: int
    """Step of the newest complete checkpoint then; 0 if there was none."""


class Wire:
    """The rule of a fault proxy, and its witness. Its methods may be called from any thread."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self.begin("")

    def begin(self, place: str) -> None:
        """Look at another folder from now on: that of a stage, with the bucket, nothing in it yet."""
        with self._news:
            self._place = f"{place}/"
            self.complete: set[int] = set()
            """Steps of the checkpoints that are complete."""
            self.starts: list[Start] = []
            """That came as far as their first step."""
            self.wrong: list[str] = []
            """Loads that should not have been."""
            self.reached: list[float] = []
            """When (time.monotonic) each start came to its first step, and each checkpoint was complete."""
            self._stall: str | None = None
            self._relaunch()

    def relaunch(self, complete: set[int]) -> None:
        """The command is started. `complete` is what the bucket lists, to which nobody writes just now."""
        with self._news:
            self.complete |= complete
            self._relaunch()

    def _relaunch(self) -> None:
        self.started = self.changed = time.monotonic()
        self._committed_here = 0
        self._loaded: int | None = None
        self._stalled = False
        self._enter("start-up")

    def _enter(self, phase: Phase) -> None:
        self.phase: Phase = phase
        self._since = time.monotonic()

    def stall(self, name: str | None) -> None:
        """From now on, give no answer about objects of checkpoints whose names begin like this; None for all to pass.

        What is held up already stays so until its client gives up, or is gone.
        """
        with self._news:
            self._stall, self._stalled = name, False

    def sight(self, wait: float = 0.0) -> Sight:
        """What is seen now, or at the next request, `wait` seconds later at most."""
        with self._news:
            if wait > 0:
                self._news.wait(wait)
            now = time.monotonic()
            done = max(self.complete, default=0) // CHECKPOINT_EVERY
            return Sight(self.phase, now - self._since, now - self.started, done, self._stalled)

    def __call__(self, method: str, path: str, _headers: dict[str, str]) -> Fault | None:
        """What is done to a request that is about to pass."""
        name = self._name(path)
        with self._news:
            found = _CHECKPOINT.fullmatch(name)
            if method == "PUT" and name == "ledger.jsonl" and self._committed_here and self.phase == "steps":
                self._enter("snapshot")
                self._news.notify_all()
            if found is None:
                return None
            self.changed = time.monotonic()
            step, part = int(found[1]), _ATTEMPT.sub("", found[2])
            if method == "GET" and part.startswith("rank_") and part.endswith(".safetensors"):
                self._load(step)
            elif method == "PUT":
                self._put()
            stalled = self._stall is not None and part.startswith(self._stall) and method in {"GET", "PUT"}
            stalled = stalled and method == ("GET" if self.phase == "load" else "PUT")
            self._stalled = self._stalled or stalled
            self._news.notify_all()
            return Fault.SILENCE if stalled else None

    def answered(self, method: str, path: str, status: int) -> None:
        """The server's answer to a request."""
        if status >= 300:
            return
        name = self._name(path)
        with self._news:
            found = _CHECKPOINT.fullmatch(name)
            if method == "PUT" and name == "environment.json":
                self._first_step()
            elif found and found[2] == "COMPLETE" and method == "PUT":
                self._commit(int(found[1]))
            elif found and found[2] == "COMPLETE" and method == "DELETE":
                self.complete.discard(int(found[1]))
            self._news.notify_all()

    def _name(self, path: str) -> str:
        """Of the object, below the stage's folder; empty if it is elsewhere."""
        key = unquote(urlsplit(path).path).lstrip("/")
        return key.removeprefix(self._place) if key.startswith(self._place) else ""

    def _load(self, step: int) -> None:
        newest = max(self.complete, default=0)
        if step != newest:
            kind = "the newest complete one is" if step in self.complete else "it is not complete; the newest that is:"
            self.wrong.append(f"loaded the checkpoint of step {step}: {kind} {newest or 'none'}")
        self._loaded = step
        if self.phase not in {"load", "export"}:
            self._enter("load")

    def _put(self) -> None:
        if self.phase != "upload":
            self._enter("upload")

    def _first_step(self) -> None:
        self.changed = time.monotonic()
        self.reached.append(self.changed)
        newest = max(self.complete, default=0)
        self.starts.append(Start(self._loaded or 0, newest))
        if (self._loaded or 0) != newest:
            self.wrong.append(f"began after step {self._loaded or 0}, and the checkpoint of step {newest} was complete")
        self._loaded, self._committed_here = None, 0
        self._enter("steps")

    def _commit(self, step: int) -> None:
        self.complete.add(step)
        self.reached.append(time.monotonic())
        self._committed_here += 1
        self._enter("export" if step == STEPS else "steps")
