"""Striking a training command: its processes are looked up beforehand, so that no moment passes meanwhile."""

from __future__ import annotations

import random
import signal
import time

import psutil

from cluster.drills.s3_server import S3Server
from cluster.drills.training_blows import Blow, Kind, Pace, Sight, TrialPlan
from cluster.drills.victims import Victim, is_alive, kill
from cluster.drills.wire import Wire
from data_pipeline.text.counted import counted

WORKER_TITLE = "TrainWorker"
_LOOK_SECONDS = 0.3
"""Between two looks for processes that are not there yet."""


class TrainingStriker:
    """Does the blows of a plan.

    Args:
        plan: which.
        pace: of the undisturbed command.
        server: of the bucket.
        wire: on the way to it.
    """

    def __init__(self, plan: TrialPlan, pace: Pace, server: S3Server, wire: Wire) -> None:
        self._left = list(plan.blows)
        self._pace, self._server, self._wire = pace, server, wire
        self._random = random.Random(f"strike {plan.seed}")
        self._targets: list[psutil.Process] = []
        self._looked = 0.0
        self._stalling = False
        self.done: list[str] = []
        """What was struck, and when."""
        self.fell: list[str] = []
        """In what each blow fell, as it was seen on the wire."""

    def strike(self, victim: Victim, sight: Sight) -> Kind | None:
        """Do the next blow if its moment has come and its victim is there. Returns what was struck."""
        if not self._left:
            return None
        blow = self._left[0]
        if blow.stall and not self._stalling and sight.done >= blow.after:
            self._wire.stall(blow.stall)
            self._stalling = True
        if sight.phase == "steps" and blow.moment not in {"start-up", "load"}:  # these strike processes of a new start
            self._find(blow, victim)
        if not blow.is_due(sight, self._pace):
            return None
        what = self._hit(blow, victim)
        if what is None:
            return None
        now = sight if blow.kind == "server" else self._wire.sight()  # a server's restart takes seconds
        self._record(blow, what, now)
        self._wire.stall(None)
        self._left.pop(0)
        self._targets, self._looked, self._stalling = [], 0.0, False
        return blow.kind

    def _record(self, blow: Blow, what: str, now: Sight) -> None:
        held = f", held at {blow.stall}" if blow.stall else ""
        self.fell.append(now.phase)
        when = f"{now.since_start:.1f} s, {now.done} checkpoints complete, in {now.phase}{held}"
        self.done.append(f"{what} ({blow.moment}: {when})")

    def _find(self, blow: Blow, victim: Victim) -> None:
        """Look its processes up, unless they are known or were looked for just now."""
        alive = bool(self._targets) and all(is_alive(process) for process in self._targets)
        if alive or time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        if blow.kind == "raylet":  # a lost node takes its workers along
            raylets = victim.raylets()
            self._targets = raylets + victim.workers(WORKER_TITLE) if raylets else []
        else:  # a driver's family, too, has to be known before it is gone
            self._targets = victim.workers(WORKER_TITLE)
        self._looked = time.monotonic()

    def _hit(self, blow: Blow, victim: Victim) -> str | None:
        """Returns what was hit; None if it is not there yet."""
        if blow.kind == "server":
            self._server.restart()
            return "S3 server restarted"
        if blow.kind == "driver":
            if not self._targets:
                victim.family()
            victim.send_signal(signal.SIGKILL)
            return "driver"
        self._find(blow, victim)
        if not self._targets:
            return None
        if blow.kind == "workers":
            hit = [kill(process) for process in self._targets]
            return counted(sum(hit), "worker") if any(hit) else None
        if blow.kind == "raylet":
            hit = [kill(process) for process in self._targets]
            return f"raylet and {counted(sum(hit[1:]), 'worker')}" if hit[0] else None
        return "worker" if kill(self._random.choice(self._targets)) else None
