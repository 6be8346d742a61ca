"""A run submitted as a job to a Ray cluster of three nodes, of which something is lost: does it end as if nothing had?

    reference   ingest, train-tokenizer, tokenize and train-generator as one job, undisturbed
    trial       the same in another folder; at a moment that the seed draws something is lost:
                  worker    a process of the training or of the pool       the job goes on by itself
                  raylet    Ray's process of a node that is not the head   the job goes on by itself, without the node
                  network   a node reaches nothing for some seconds        the job goes on by itself, with or without it
                  storage   the S3 server is away for half a minute        the job goes on by itself
                  driver    the process that does the stages               the same command goes on
                  head      Ray's head, and with it the cluster            it is started anew, then the same command
    verdict     each stage is finished; tokens, losses, weights and exports are those of the reference, bit for bit;
                `verify`, `ledger audit` and `checkpoint verify` find nothing; `describe` and `logs` tell of every job,
                and of one whose head is gone while it is gone

What an operator or a scheduler would do, the drill does: nodes that were lost are started again after the trial. With
three nodes of one CPU and two workers one is spare, so a job never waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from cluster.drills.bucket import Bucket
from cluster.drills.cluster_blows import FATAL, KINDS, TrialPlan, plan_trial, sooner
from cluster.drills.cluster_striking import ClusterStriker
from cluster.drills.data import PASSING, differences
from cluster.drills.drilled_graph import TRAINED, write_graph
from cluster.drills.drilled_jobs import DrilledJobs
from cluster.drills.node_networks import NodeNetworks, missing
from cluster.drills.ray_nodes import RayNodes
from cluster.drills.s3_server import S3Server
from cluster.drills.trained import Trained, read_records, read_trained, unlike
from cluster.drills.trials import RESTARTS, Trial, until_struck
from cluster.drills.victims import run
from cluster.jobs.records import JobRecord
from cluster.terminal.output import say
from data_pipeline.errors import FoldtrainError
from data_pipeline.leases import lease
from data_pipeline.storage.pacing import WRITES_VARIABLE
from data_pipeline.text.counted import counted

NODES = 3
AWAY_SECONDS = 30.0
"""For which the S3 server is away."""
HANG_SECONDS = 3600.0
"""A job that takes so long hangs: many times what it takes on a machine that does other work, too."""
_WRITES_PER_SECOND = "4"
"""Of each process, so that a stage of little work has a middle to strike."""
_LOOK_SECONDS = 0.1
_REFERENCE = "reference"


@dataclass
class ClusterTrial(Trial):
    """What came of a trial. Its exit codes are those of its jobs; -1 of one that said nothing any more."""

    jobs: list[str] = field(default_factory=list)
    """Ids of the jobs: more than one only after a fatal blow."""
    restarts: int = 0
    """Times that a training started its workers again."""


class ClusterDrill:
    """A server, a cluster, and trials on them. To be used in a `with` statement.

    Args:
        folder: for all of it; empty or not there.
        seed: of the config.
        away_seconds: for which the S3 server is away.
    """

    def __init__(self, folder: Path, seed: int, away_seconds: float = AWAY_SECONDS) -> None:
        self._folder, self._seed, self._away_seconds = folder, seed, away_seconds
        self._held = ExitStack()
        self._kinds = KINDS
        self._tokens: dict[str, str] = {}
        self._trained: dict[str, Trained] = {}

    def __enter__(self) -> Self:
        with ExitStack() as held:
            lacks = missing()
            self._networks = None if lacks else held.enter_context(NodeNetworks())
            if self._networks is None:
                self._kinds = tuple(kind for kind in KINDS if kind != "network")
                say(f"no network is cut: {lacks}", err=True)
            host = self._networks.here if self._networks else "127.0.0.1"
            self._server = held.enter_context(S3Server(self._folder / "store", host=host))
            self._bucket = Bucket(self._server)
            storage = self._server.environment()
            paced = storage | {WRITES_VARIABLE: _WRITES_PER_SECOND}
            nodes = RayNodes(variables=paced, jobs=True, networks=self._networks)
            self._nodes = held.enter_context(nodes)
            for _ in range(NODES - 1):
                self._nodes.add()
            config = write_graph(self._folder, self._seed)
            environment = storage | self._nodes.environment
            self._jobs = DrilledJobs(self._folder, config, self._bucket, self._nodes.dashboard, environment)
            self._held = held.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def make_reference(self, seed: int) -> None:  # noqa: ARG002 - one for all seeds
        """All stages, undisturbed.

        Raises:
            FoldtrainError: if it fails.
        """
        record = self._follow(_REFERENCE, self._jobs.submit(_REFERENCE), lambda: None)
        if record.status != "succeeded":
            log = run("logs", record.run, "--job", record.id, environment=self._jobs.environment)
            raise FoldtrainError(f"the job {record.status} without any blow:\n{log[-4000:]}")
        self._tokens, self._trained = self._tokens_of(_REFERENCE), self._trained_of(_REFERENCE)

    def try_seed(self, seed: int) -> ClusterTrial:
        """The trial of a seed; once more, elsewhere, where the job was over before it could be struck."""
        return self.try_plan(plan_trial(seed, self._kinds))

    def try_plan(self, plan: TrialPlan) -> ClusterTrial:
        """The same of a plan."""
        return until_struck(lambda number: self._trial(sooner(plan, number), f"trial-{plan.seed}-{number}"))

    def _trial(self, plan: TrialPlan, name: str) -> ClusterTrial:
        begun = time.monotonic()
        trial = ClusterTrial(plan.seed, plan.stage)
        try:
            self._until_done(plan, name, trial)
        except FoldtrainError as error:
            trial.problems.append(str(error))
        if trial.problems:
            self._nodes.start_again(NODES - 1)  # whatever hangs is gone
        else:
            trial.problems += self._look_through(name, trial)
            self._mend()
        trial.seconds = time.monotonic() - begun
        return trial

    def _until_done(self, plan: TrialPlan, name: str, trial: ClusterTrial) -> None:
        """Submit, strike once, and submit again after a fatal blow.

        Raises:
            FoldtrainError: if a job is not taken, hangs, or a cluster does not start again.
        """
        for _ in range(1 + RESTARTS):
            job = self._jobs.submit(name)
            trial.jobs.append(job)
            record = self._follow(name, job, lambda: self._strike_when_due(plan, name, trial))
            trial.exit_codes.append(_exit_code(record))
            trial.problems += self._jobs.telling(record, "ingest")
            if record.status == "succeeded":
                return
            if plan.kind not in FATAL or not trial.blows or trial.problems:
                why = record.message or "it did not say why"
                trial.problems.append(f"{job} {record.status}, which it should not: {why}")
                return
            if plan.kind == "head":
                self._nodes.start_again(NODES - 1)
        trial.problems.append(f"it was submitted {1 + RESTARTS} times, and ended early each time")

    def _follow(self, name: str, job: str, look: Callable[[], None]) -> JobRecord:
        """Look at a job again and again, until it is over. Returns how it stands then.

        Raises:
            FoldtrainError: if it hangs.
        """
        deadline = time.monotonic() + HANG_SECONDS
        while time.monotonic() < deadline:
            record = self._jobs.record(name, job)
            if record.status not in {"pending", "running"}:
                return record
            look()
            time.sleep(_LOOK_SECONDS)
        raise FoldtrainError(f"{job} is not over after {HANG_SECONDS:.0f} s")

    def _strike_when_due(self, plan: TrialPlan, name: str, trial: ClusterTrial) -> None:
        """By what the stage has committed: the job's own word of its stage is some seconds old."""
        if trial.blows or (units := self._jobs.units(name, plan.stage)) < plan.units:
            return
        time.sleep(plan.delay)
        striker = ClusterStriker(plan, self._nodes, self._server, self._networks, self._away_seconds)
        struck = striker.strike()
        if struck:
            trial.blows.append(f"{struck} ({plan.delay:.1f} s after {counted(units, 'commit')} of {plan.stage})")

    def _look_through(self, name: str, trial: ClusterTrial) -> Iterator[str]:
        """What is wrong with what a trial ended in."""
        yield from differences(self._tokens_of(name), self._tokens)
        for folder, found in self._trained_of(name).items():
            yield from (f"{folder}: {each}" for each in unlike(found, self._trained[folder]))
            events = read_records(self._bucket, f"{name}/{folder}/events.jsonl")
            trial.restarts += sum(event["event"] == "restart" for event in events)
        tokens, images = self._bucket.uri(name, "tokens"), self._bucket.uri(name, "images", "train")
        commands: list[tuple[str, ...]] = [("verify", tokens, "--against", images)]
        commands += [("checkpoint", "verify", self._bucket.uri(name, folder)) for folder in TRAINED]
        commands += [("ledger", "audit", self._bucket.uri(name))]
        for command in commands:
            try:
                run(*command, environment=self._jobs.environment)
            except FoldtrainError as error:
                yield str(error)

    def _mend(self) -> None:
        """Start the nodes again that were lost."""
        if not self._nodes.head.is_up:
            self._nodes.start_again(NODES - 1)
        for node in self._nodes.others:
            if not node.is_up:
                self._nodes.replace(node)

    def _trained_of(self, name: str) -> dict[str, Trained]:
        return {folder: read_trained(self._bucket, f"{name}/{folder}") for folder in TRAINED}

    def _tokens_of(self, name: str) -> dict[str, str]:
        found = self._bucket.digests(f"{name}/tokens")
        return {key: found[key] for key in found if key not in PASSING and not key.startswith(f"{lease.FOLDER}/")}


def _exit_code(record: JobRecord) -> int:
    code = record.state.exit_code if record.state else None
    return -1 if code is None else code
