"""A training stage whose processes and S3 server are struck: does it end as if nothing had happened, bit for bit?

    reference   the command, undisturbed; one for each ZeRO stage
    trial       the same on an empty folder, struck at a moment; the command is started again if it died of it
    verdict     each start loads the newest complete checkpoint; metrics, checkpoints and exports are those of the
                reference; `foldtrain checkpoint verify` and `ledger audit` find nothing wrong; `gc` leaves nothing over

Moments are seen on the way to the storage (cluster/drills/wire.py). An upload may be held up at one object until the
blow, as by a node of the storage that is lost; of a snapshot only the beginning is seen, so blows to it fall a few
milliseconds later at random. What is left of a killed command is left to end by itself, beside the next start.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from cluster.drills.bucket import Bucket
from cluster.drills.drilled_training import TOKENIZER, stage_of, write_training
from cluster.drills.fault_proxy import FaultProxy
from cluster.drills.s3_server import S3Server
from cluster.drills.trained import Trained, complete_checkpoints, left_over, read_trained, unlike
from cluster.drills.training_blows import CHECKPOINTS, FATAL, Pace, TrialPlan, plan_trial
from cluster.drills.training_striking import TrainingStriker
from cluster.drills.trials import RESTARTS, Trial, until_struck
from cluster.drills.victims import Victim, run, started, tail
from cluster.drills.wire import Wire
from data_pipeline.errors import FoldtrainError

HANG_SECONDS = 300.0
"""A command that asks nothing of its checkpoints for so long hangs."""
_LOOK_SECONDS = 0.02


@dataclass
class TrainingTrial(Trial):
    """What came of a trial of training."""

    fell: list[str] = field(default_factory=list)
    """In what each blow fell: start-up, load, steps, snapshot, upload or export."""
    loaded: list[int] = field(default_factory=list)
    """Step of the checkpoint that each start loaded, before its first step; 0 for none."""
    left_over: dict[str, int] = field(default_factory=dict)
    """Folders of checkpoints with objects of attempts that died, and how many; before `foldtrain gc`."""


@dataclass(frozen=True)
class Reference:
    """The undisturbed command."""

    pace: Pace
    trained: Trained


def pace_of(begun: float, reached: Sequence[float]) -> Pace:
    """How a command went: from when it began, its first step, and each complete checkpoint (`Wire.reached`)."""
    return Pace(reached[0] - begun, (reached[-1] - reached[1]) / (len(reached) - 2))


class TrainingDrill:
    """A server, a proxy in front of it, data, and trials on them. To be used in a `with` statement.

    Args:
        folder: for all of it; empty or not there.
        seed: of the data.
        network: what is trained (cluster/drills/drilled_training.py).

    Raises:
        UsageError: if there is no such network.
    """

    def __init__(self, folder: Path, seed: int, network: str = "next-scale") -> None:
        self._folder, self._seed, self._network = folder, seed, network
        self._stage = stage_of(network)
        self._wire = Wire()
        self._server = S3Server(folder / "store")
        self._held = ExitStack()
        self._references: dict[int, Reference] = {}

    def __enter__(self) -> Self:
        with ExitStack() as held:
            held.enter_context(self._server)
            proxy = FaultProxy(self._server.endpoint, self._seed, rule=self._wire, answered=self._wire.answered)
            held.enter_context(proxy)
            self._bucket = Bucket(self._server)
            self._direct = self._server.environment()
            self._through = self._server.environment(proxy.endpoint) | {"RAY_ADDRESS": ""}  # a cluster of its own
            self._config = write_training(self._folder, self._seed, self._network)
            self._held = held.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def make_reference(self, seed: int) -> None:
        """Train undisturbed, with the ZeRO stage of a seed; once.

        Raises:
            FoldtrainError: if it fails.
        """
        zero_stage = plan_trial(seed).zero_stage
        if zero_stage in self._references:
            return
        folder = f"reference-{zero_stage}"
        self._begin(folder)
        with self._command(folder, zero_stage) as victim:
            begun = time.monotonic()
            while (code := victim.poll()) is None and time.monotonic() - self._wire.changed < HANG_SECONDS:
                self._wire.sight(_LOOK_SECONDS)
            reached = self._wire.reached
            if code != 0 or len(reached) != 1 + CHECKPOINTS or self._wire.wrong:
                raise FoldtrainError(f"training failed without any blow:\n{self._wire.wrong}\n{tail(victim)}")
        trained = read_trained(self._bucket, f"{folder}/{self._stage}")
        self._references[zero_stage] = Reference(pace_of(begun, reached), trained)

    def try_seed(self, seed: int) -> TrainingTrial:
        """The trial of a seed; once more, elsewhere, where the command was done before it could be struck."""
        self.make_reference(seed)
        return until_struck(lambda number: self._trial(plan_trial(seed), f"trial-{seed}-{number}"))

    def _trial(self, plan: TrialPlan, folder: str) -> TrainingTrial:
        begun = time.monotonic()
        trial = TrainingTrial(plan.seed, f"{self._network}, ZeRO {plan.zero_stage}")
        self._begin(folder)
        reference, entered = self._references[plan.zero_stage], time.monotonic()
        striker = TrainingStriker(plan, reference.pace, self._server, self._wire)
        with ExitStack() as survivors:
            for _ in range(1 + RESTARTS):
                self._wire.relaunch(self._complete_steps(folder))
                victim = survivors.enter_context(self._command(folder, plan.zero_stage))
                if not self._disturb(victim, striker, trial):
                    break
            else:
                trial.problems.append(f"it was started {1 + RESTARTS} times, and ended early each time")
        trial.blows, trial.fell = striker.done, striker.fell
        if not striker.done and len(self._wire.reached) == 1 + CHECKPOINTS:  # it went faster than the reference did
            self._references[plan.zero_stage] = replace(reference, pace=pace_of(entered, self._wire.reached))
        trial.loaded = [start.loaded for start in self._wire.starts]
        trial.problems += dict.fromkeys(self._wire.wrong)  # each rank and file says it again
        if not trial.problems:
            trial.problems += self._look_through(plan, folder, trial)
        trial.seconds = time.monotonic() - begun
        return trial

    def _disturb(self, victim: Victim, striker: TrainingStriker, trial: TrainingTrial) -> bool:
        """Strike a command until it ends. Returns whether it is to be started again."""
        may_end = False
        while (code := victim.poll()) is None:
            sight = self._wire.sight(_LOOK_SECONDS)
            may_end = striker.strike(victim, sight) in FATAL or may_end
            if time.monotonic() - self._wire.changed > HANG_SECONDS:
                trial.problems.append(f"nothing was heard of it for {HANG_SECONDS:.0f} s:\n{tail(victim)}")
                return False
        trial.exit_codes.append(code)
        if code != 0 and not may_end:
            trial.problems.append(f"it ended with exit code {code}, though nothing killed it:\n{tail(victim)}")
        return code != 0 and may_end

    def _look_through(self, plan: TrialPlan, folder: str, trial: TrainingTrial) -> Iterator[str]:
        """What is wrong with what a trial ended in."""
        place = f"{folder}/{self._stage}"
        found = read_trained(self._bucket, place)
        yield from unlike(found, self._references[plan.zero_stage].trained)
        if not found.begun_after <= set(trial.loaded):
            yield f"events.jsonl has starts after steps {sorted(found.begun_after)}; loaded were {trial.loaded}"
        for command in (("checkpoint", "verify"), ("ledger", "audit")):
            try:
                run(*command, self._bucket.uri(place), environment=self._direct)
            except FoldtrainError as error:
                yield str(error)
        trial.left_over = left_over(self._bucket, place)
        run("gc", self._bucket.uri(place), "--older-than", "0", "--delete", environment=self._direct)
        still = left_over(self._bucket, place)
        if still:
            yield f"foldtrain gc leaves behind: {still}"

    def _begin(self, folder: str) -> None:
        """Give a folder what the stage needs there, and look at it."""
        if self._stage != TOKENIZER:
            for path in sorted((self._folder / "tokenizer").iterdir()):
                self._bucket.put(f"{folder}/tokenizer/export/{path.name}", path.read_bytes())
        self._wire.begin(f"{self._bucket.name}/{folder}/{self._stage}")

    def _command(self, folder: str, zero_stage: int) -> AbstractContextManager[Victim]:
        """Train, in a folder of the bucket."""
        log = self._folder / f"{folder}-{time.time_ns()}.log"
        overrides = (f"run={self._bucket.uri(folder)}", f"{self._stage}.trainer.zero_stage={zero_stage}")
        return started(f"train-{self._stage}", str(self._config), *overrides, environment=self._through, log=log)

    def _complete_steps(self, folder: str) -> set[int]:
        """Steps of the complete checkpoints, as the bucket lists them."""
        names = complete_checkpoints(self._bucket.stamps(f"{folder}/{self._stage}"))
        return {int(name.removeprefix("step_")) for name in names}
