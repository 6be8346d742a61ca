"""Striking a command that works on a bucket: what it has committed, and blows when their moment has come."""

from __future__ import annotations

import contextlib
import random
import subprocess
import time

from cluster.drills.blows import Blow, Kind, Pace, Situation, TrialPlan
from cluster.drills.bucket import Bucket, Stamp, Weather
from cluster.drills.s3_server import S3Server
from cluster.drills.victims import Victim, kill, title_of
from data_pipeline.shards.image_shards import index_name
from data_pipeline.tokens.tokenizing import record_name

_LOOK_SECONDS = 0.05
_STORM_SHARES, _STORM_SECONDS = (0.2, 0.6), (2.0, 6.0)


class Watch:
    """What a command commits, seen from outside.

    Args:
        bucket: where it works.
        folder: that it fills.
    """

    def __init__(self, bucket: Bucket, folder: str) -> None:
        self._bucket, self._folder = bucket, folder
        self.committed: dict[str, Stamp] = {}
        """The objects of complete shards."""
        self.first_commit: float | None = None
        """When (time.monotonic) the first shard was complete."""
        self.restart()

    def restart(self) -> None:
        """A command was started just now."""
        self.started = self.changed = time.monotonic()

    @property
    def shards(self) -> int:
        """That are complete."""
        return sum(name.endswith(".tar") for name in self.committed)

    def look(self, victim: Victim) -> None:
        """Wait a moment for the command's end, then see what is there; nothing new while the server is away."""
        from botocore.exceptions import BotoCoreError, ClientError

        with contextlib.suppress(subprocess.TimeoutExpired):
            victim.wait(timeout=_LOOK_SECONDS)
        try:
            committed = complete_shards(self._bucket.stamps(self._folder))
        except (BotoCoreError, ClientError):
            return
        if committed.keys() - self.committed.keys():
            self.changed = time.monotonic()
            self.first_commit = self.first_commit or self.changed
        self.committed = committed


def complete_shards(stamps: dict[str, Stamp]) -> dict[str, Stamp]:
    """Of the objects of a data set those of committed shards: each tar that has an index or a record, and that."""
    found = {}
    for name in stamps:
        beside = {index_name(name), record_name(name)} & stamps.keys() if name.endswith(".tar") else set()
        found.update({part: stamps[part] for part in (name, *beside) if beside})
    return found


class Striker:
    """Does the blows of a plan.

    Args:
        plan: which.
        pace: of the undisturbed command.
        server: of the bucket.
        weather: on the way to it.
    """

    def __init__(self, plan: TrialPlan, pace: Pace, server: S3Server, weather: Weather) -> None:
        self._left = list(plan.blows)
        self._pace, self._server, self._weather = pace, server, weather
        self._random = random.Random(f"strike {plan.seed}")
        self._last = 0.0
        self.done: list[str] = []
        """What was struck, and when."""
        self.kept: dict[str, Stamp] = {}
        """Objects that were committed before a blow, as they were then."""

    def strike(self, victim: Victim, watch: Watch) -> Kind | None:
        """Do the next blow if its moment has come and its victim is there. Returns what was struck."""
        now = time.monotonic()
        situation = Situation(watch.shards, now - watch.started, now - watch.changed, now - self._last)
        if not self._left or not self._left[0].is_due(situation, self._pace):
            return None
        blow = self._left[0]
        name = self._hit(blow, victim)
        if name is None:
            return None
        self._left.pop(0)
        self._last = time.monotonic()
        for part, stamp in watch.committed.items():
            self.kept.setdefault(part, stamp)
        when = f"{now - watch.started:.1f} s, {watch.shards} of {self._pace.shards} shards"
        self.done.append(f"{name} ({blow.moment}: {when})")
        return blow.kind

    def _hit(self, blow: Blow, victim: Victim) -> str | None:
        """Returns what was hit; None if it is not there yet."""
        if blow.kind == "server":
            self._server.restart()
            return "S3 server restarted"
        if blow.kind == "faults":
            share, seconds = self._random.uniform(*_STORM_SHARES), self._random.uniform(*_STORM_SECONDS)
            self._weather.storm(share, seconds)
            return f"{share:.0%} of requests fail for {seconds:.0f} s"
        if blow.kind == "driver":
            victim.kill()
            return "driver"
        found = victim.actors() if blow.kind == "actor" else victim.raylets()
        if not found:
            return None
        process = self._random.choice(found)
        title = title_of(process).split(" ")[0]
        return (title if blow.kind == "actor" else "raylet") if kill(process) else None
