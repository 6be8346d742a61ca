"""Ingest and tokenize, with their processes, their S3 server and their network struck: do they end in the same bytes?

    reference   both stages, undisturbed
    trial       one stage on an empty folder, struck at a moment; the same command is started again if it died of it
    verdict     the bytes of the reference, `foldtrain verify`, `foldtrain gc`, and no committed shard written again

Writes are paced (data_pipeline/storage/pacing.py), so that the work takes seconds and has a
middle to strike.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from cluster.drills.blows import FATAL, Pace, Stage, TrialPlan, plan_trial
from cluster.drills.bucket import Bucket, Stamp, Weather
from cluster.drills.drilled_data import write_data
from cluster.drills.fault_proxy import FaultProxy
from cluster.drills.s3_server import S3Server
from cluster.drills.striking import Striker, Watch
from cluster.drills.trials import RESTARTS, Trial, until_struck
from cluster.drills.victims import Victim, run, started, tail
from data_pipeline.errors import FoldtrainError
from data_pipeline.leases import lease
from data_pipeline.storage.pacing import WRITES_VARIABLE

REFERENCE = "reference"
DATA: dict[Stage, str] = {"ingest": "images", "tokenize": "tokens"}
"""Folder that a stage fills."""
PASSING = ("progress.json", "control.json", "config.yaml")
"""Objects that describe a run, not data."""
HANG_SECONDS = 180.0
"""A command that commits nothing for so long hangs."""
_WRITES_PER_SECOND = "3"


@dataclass
class DataTrial(Trial):
    """What came of a trial of ingest or tokenize."""

    made_twice: int = 0
    """Shards that were sent to the store more than once: the same request again, or the shard made again."""
    kept: int = 0
    """Shards that were committed before a blow; none of them may be written again."""


class DataDrill:
    """A server, a proxy in front of it, data, and trials on them. To be used in a `with` statement.

    Args:
        folder: for all of it; empty or not there.
        seed: of the data and of the proxy's faults.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._seed = folder, seed
        self._weather = Weather(seed)
        self._server = S3Server(folder / "store")
        self._held = ExitStack()
        self._paces: dict[Stage, Pace] = {}
        self._digests: dict[Stage, dict[str, str]] = {}

    def __enter__(self) -> Self:
        with ExitStack() as held:
            held.enter_context(self._server)
            proxy = held.enter_context(FaultProxy(self._server.endpoint, self._seed, rule=self._weather))
            self._bucket = Bucket(self._server)
            self._direct = self._server.environment()
            ours = {WRITES_VARIABLE: _WRITES_PER_SECOND, "RAY_ADDRESS": ""}  # a cluster of its own, whatever is set
            self._through = self._server.environment(proxy.endpoint) | ours
            self._config = write_data(self._folder, self._seed)
            self._held = held.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def make_reference(self, seed: int) -> None:  # noqa: ARG002 - one for all seeds
        """Both stages, undisturbed.

        Raises:
            FoldtrainError: if one fails.
        """
        for stage in DATA:
            self._provide(stage, REFERENCE)
            with self._command(stage, REFERENCE) as victim:
                watch = Watch(self._bucket, f"{REFERENCE}/{DATA[stage]}")
                while victim.poll() is None:
                    watch.look(victim)
                watch.look(victim)
                if victim.poll() != 0 or watch.first_commit is None:
                    raise FoldtrainError(f"{stage} failed without any blow:\n{tail(victim)}")
            self._paces[stage] = Pace(watch.first_commit - watch.started, watch.shards)
            self._digests[stage] = self._data_of(stage, REFERENCE)

    def try_seed(self, seed: int) -> DataTrial:
        """The trial of a seed; once more, elsewhere, where the command was done before it could be struck."""
        return until_struck(lambda number: self._trial(plan_trial(seed), f"trial-{seed}-{number}"))

    def _trial(self, plan: TrialPlan, folder: str) -> DataTrial:
        begun = time.monotonic()
        trial, place = DataTrial(plan.seed, plan.stage), f"{folder}/{DATA[plan.stage]}"
        self._provide(plan.stage, folder)
        striker = Striker(plan, self._paces[plan.stage], self._server, self._weather)
        watch = Watch(self._bucket, place)
        for _ in range(1 + RESTARTS):
            with self._command(plan.stage, folder) as victim:
                again = self._disturb(victim, striker, watch, trial)
            if not again:
                break
        else:
            trial.problems.append(f"it was started {1 + RESTARTS} times, and ended early each time")
        if not striker.done and watch.first_commit is not None:  # it went faster than the reference did
            start_up = watch.first_commit - watch.started
            self._paces[plan.stage] = replace(self._paces[plan.stage], start_up=start_up)
        trial.blows, trial.kept = striker.done, sum(name.endswith(".tar") for name in striker.kept)
        if not trial.problems:
            trial.problems += self._look_through(plan.stage, folder, striker.kept)
        tars = [f"{self._bucket.name}/{place}/{name}" for name in self._digests[plan.stage] if name.endswith(".tar")]
        trial.made_twice = sum(self._weather.puts[path] > 1 for path in tars)
        trial.seconds = time.monotonic() - begun
        return trial

    def _disturb(self, victim: Victim, striker: Striker, watch: Watch, trial: DataTrial) -> bool:
        """Strike a command until it ends. Returns whether it is to be started again."""
        may_end = False
        watch.restart()
        while (code := victim.poll()) is None:
            watch.look(victim)
            may_end = striker.strike(victim, watch) in FATAL or may_end
            if time.monotonic() - watch.changed > HANG_SECONDS:
                trial.problems.append(f"it committed nothing for {HANG_SECONDS:.0f} s:\n{tail(victim)}")
                return False
        trial.exit_codes.append(code)
        if code != 0 and not may_end:
            trial.problems.append(f"it ended with exit code {code}, though nothing killed it:\n{tail(victim)}")
        return code != 0 and may_end

    def _look_through(self, stage: Stage, folder: str, kept: dict[str, Stamp]) -> Iterator[str]:
        """What is wrong with what a trial ended in."""
        place = f"{folder}/{DATA[stage]}"
        now = self._bucket.stamps(place)
        again = sorted(name for name, stamp in kept.items() if now.get(name) != stamp)
        if again:
            yield f"committed before the blow, and written again: {', '.join(again)}"
        for options in (("--delete",), ()):
            text = run("gc", self._bucket.uri(place), "--older-than", "0", *options, environment=self._direct)
        if "nothing is left over" not in text:
            yield f"gc leaves something:\n{text}"
        yield from differences(self._data_of(stage, folder), self._digests[stage])
        splits = ("/train", "/validation") if stage == "ingest" else ("",)
        images = ("--against", self._bucket.uri(REFERENCE, "images", "train")) if stage == "tokenize" else ()
        for split in splits:
            try:
                run("verify", self._bucket.uri(place) + split, *images, environment=self._direct)
            except FoldtrainError as error:
                yield str(error)

    def _command(self, stage: Stage, folder: str) -> AbstractContextManager[Victim]:
        """The stage, on a folder of the bucket."""
        images = self._bucket.uri(REFERENCE, "images") if stage == "tokenize" else self._bucket.uri(folder, "images")
        log = self._folder / f"{folder}-{stage}-{time.time_ns()}.log"
        arguments = (stage, str(self._config), f"run={self._bucket.uri(folder)}", f"data.images={images}")
        return started(*arguments, environment=self._through, log=log)

    def _provide(self, stage: Stage, folder: str) -> None:
        """Give a folder what the stage needs there."""
        if stage == "tokenize":
            for path in sorted((self._folder / "tokenizer").iterdir()):
                self._bucket.put(f"{folder}/tokenizer/export/{path.name}", path.read_bytes())

    def _data_of(self, stage: Stage, folder: str) -> dict[str, str]:
        found = self._bucket.digests(f"{folder}/{DATA[stage]}")
        data = {name for name in found if name not in PASSING and not name.startswith(f"{lease.FOLDER}/")}
        return {name: found[name] for name in data}


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """What differs from the reference, by name: one line for each way in which it does."""
    lists = {
        "missing": expected.keys() - found.keys(),
        "not in the reference": found.keys() - expected.keys(),
        "other bytes": {name for name in found.keys() & expected.keys() if found[name] != expected[name]},
    }
    return [f"{what}: {', '.join(sorted(names))}" for what, names in lists.items() if names]
