"""A training on a Ray cluster of three nodes, with its run in a bucket, of which one thing is lost: does it end?

    worker    one of its processes is ended by kill -9: the stage goes on by itself
    node      the raylet of a node, and then all of it; another one joins: it goes on by itself
    driver    the command; the same command goes on
    storage   each request fails for half a minute: it goes on by itself
    head      the node that has Ray's GCS, and so the cluster; it is started anew, and then the same command

    reference   the stage on one worker, undisturbed
    verdict     the command ends well, at most once more than it was killed; the losses are those of the reference, in
                float tolerance, as its workers change; `foldtrain ledger audit` and `checkpoint verify` find nothing

A blow falls once a checkpoint is complete, so that there is something behind it, and steps before it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from cluster.drills.bucket import Bucket, Weather
from cluster.drills.drilled_training import write_training
from cluster.drills.fault_proxy import FaultProxy
from cluster.drills.ray_nodes import RayNode, RayNodes
from cluster.drills.s3_server import S3Server
from cluster.drills.trained import complete_checkpoints, read_records
from cluster.drills.trials import RESTARTS, Trial, until_struck
from cluster.drills.victims import Victim, kill, run, started, tail, wait_for
from data_pipeline.errors import FoldtrainError

Blow = Literal["worker", "node", "driver", "storage", "head"]
BLOWS: tuple[Blow, ...] = ("worker", "node", "driver", "storage", "head")
"""Of the trials of seeds 0, 1, 2, ..., in turn."""
FATAL: frozenset[Blow] = frozenset({"driver", "head"})
"""After these the command is started again; all others it has to get over by itself."""
NODES, STEPS, CHECKPOINT_EVERY = 3, 60, 5
AWAY_SECONDS = 30.0
"""For which the storage answers nothing that is of use."""
TOLERANCE = 1e-5
"""Relative, of a loss: its sums are over other numbers of workers."""
_STAGE, _WORKER = "generator", "TrainWorker"
_LOOK_SECONDS = 0.2


@dataclass
class ClusterTrial(Trial):
    """What came of a trial."""

    restarts: int = 0
    """Times that the stage started its workers again."""
    difference: float = 0.0
    """The largest relative difference of a loss."""


class ClusterDrill:
    """A server, a proxy in front of it, data, and trials, each on a cluster of its own. To be used in a `with`.

    Args:
        folder: for all of it; empty or not there.
        seed: of the data.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._seed = folder, seed
        self._weather = Weather(seed)
        self._server = S3Server(folder / "store")
        self._held = ExitStack()
        self._losses: list[float] = []

    def __enter__(self) -> Self:
        with ExitStack() as held:
            held.enter_context(self._server)
            proxy = held.enter_context(FaultProxy(self._server.endpoint, self._seed, rule=self._weather))
            self._bucket = Bucket(self._server)
            self._direct = self._server.environment()
            self._through = self._server.environment(proxy.endpoint)
            self._config = write_training(self._folder, self._seed)
            self._held = held.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def make_reference(self, seed: int) -> None:  # noqa: ARG002 - one for all seeds
        """Train undisturbed, on one worker.

        Raises:
            FoldtrainError: if it fails.
        """
        self._provide("reference")
        run(*self._arguments("reference"), "cluster.workers=1", environment=self._direct | {"RAY_ADDRESS": ""})
        self._losses = self._losses_of("reference")

    def try_seed(self, seed: int) -> ClusterTrial:
        """The trial of a seed; once more, elsewhere, where the command was done before it could be struck."""
        blow = BLOWS[seed % len(BLOWS)]
        return until_struck(lambda number: self._trial(seed, blow, f"trial-{seed}-{number}"))

    def _trial(self, seed: int, blow: Blow, folder: str) -> ClusterTrial:
        begun = time.monotonic()
        trial = ClusterTrial(seed, f"{_STAGE}, {NODES} nodes")
        self._provide(folder)
        with RayNodes(variables=self._through) as nodes:
            others = [nodes.add() for _ in range(NODES - 1)]
            for _ in range(1 + RESTARTS):
                with self._command(folder, nodes) as victim:
                    self._strike_once(blow, victim, nodes, others, folder, trial)
                    code = victim.wait()
                    trial.exit_codes.append(code)
                    if code == 0:
                        break
                    if blow not in FATAL or not trial.blows:
                        trial.problems.append(f"it ended with exit code {code}, which it should not:\n{tail(victim)}")
                        break
                if blow == "head":
                    nodes.start_again(NODES - 1)
            else:
                trial.problems.append(f"it was started {1 + RESTARTS} times, and ended early each time")
        if not trial.problems:
            trial.problems += self._look_through(folder, trial)
        trial.seconds = time.monotonic() - begun
        return trial

    def _strike_once(
        self, blow: Blow, victim: Victim, nodes: RayNodes, others: list[RayNode], folder: str, trial: ClusterTrial
    ) -> None:
        """Do the blow, once there is a checkpoint; nothing if it was done, or the command is done before."""
        if trial.blows:
            return
        try:
            wait_for("a checkpoint", lambda: self._has_checkpoint(folder), victim)
        except FoldtrainError:
            return
        self._strike(blow, victim, nodes, others)
        trial.blows.append(blow)

    def _strike(self, blow: Blow, victim: Victim, nodes: RayNodes, others: list[RayNode]) -> None:
        match blow:
            case "worker":
                kill(nodes.head.workers(_WORKER)[0])
            case "node":
                others[0].lose()
                nodes.add()
            case "driver":
                victim.kill()
            case "storage":
                self._weather.storm(1.0, AWAY_SECONDS)
            case "head":
                nodes.head.lose()

    def _look_through(self, folder: str, trial: ClusterTrial) -> Iterator[str]:
        """What is wrong with what a trial ended in."""
        events = read_records(self._bucket, f"{folder}/{_STAGE}/events.jsonl")
        trial.restarts = sum(event["event"] == "restart" for event in events)
        found = self._losses_of(folder)
        if len(found) != len(self._losses):
            yield f"{len(found)} steps are on record, not {len(self._losses)}"
        pairs = zip(self._losses, found, strict=False)
        trial.difference = max((abs(one - other) / abs(one) for one, other in pairs), default=0.0)
        if trial.difference > TOLERANCE:
            yield f"a loss differs by {trial.difference:.1e} from that of the undisturbed run"
        for command in (("checkpoint", "verify"), ("ledger", "audit")):
            try:
                run(*command, self._bucket.uri(folder, _STAGE), environment=self._direct)
            except FoldtrainError as error:
                yield str(error)

    # ------------------------------------------------------------------------------------------------------ a command

    def _command(self, folder: str, nodes: RayNodes) -> AbstractContextManager[Victim]:
        log = self._folder / f"{folder}-{time.time_ns()}.log"
        options = (f"cluster.workers=1:{NODES}", f"cluster.address={nodes.address}")
        return started(*self._arguments(folder), *options, environment=self._through | nodes.environment, log=log)

    def _arguments(self, folder: str) -> tuple[str, ...]:
        changes = {
            "run": self._bucket.uri(folder),
            "generator.trainer.steps": STEPS,
            "generator.trainer.checkpoint_every": CHECKPOINT_EVERY,
            "generator.trainer.global_batch": 24,
            "generator.trainer.zero_stage": 2,
            "generator.model.drop_path": 0,  # its masks are drawn per worker
        }
        return (f"train-{_STAGE}", str(self._config), *(f"{key}={value}" for key, value in changes.items()))

    def _provide(self, folder: str) -> None:
        """Give a folder what the stage needs there."""
        for path in sorted((self._folder / "tokenizer").iterdir()):
            self._bucket.put(f"{folder}/tokenizer/export/{path.name}", path.read_bytes())

    def _has_checkpoint(self, folder: str) -> bool:
        time.sleep(_LOOK_SECONDS)
        return bool(complete_checkpoints(self._bucket.stamps(f"{folder}/{_STAGE}")))

    def _losses_of(self, folder: str) -> list[float]:
        return [float(each["loss"]) for each in read_records(self._bucket, f"{folder}/{_STAGE}/metrics.jsonl")]
