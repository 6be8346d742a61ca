"""What a spike is, which checkpoint is good, and that a run passes over the same steps however often it is killed."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import FoldtrainError, StorageAwayError
from data_pipeline.order.ledger import Audit, DataOrder, audit, read_history, step_indices
from data_pipeline.order.permutations import step_positions
from tests.trainer.gloo import run_gloo
from tests.trainer.small_training import Rows, rows
from tests.trainer.test_loop import CountingStage, events, job
from trainer.checkpoints.catalog import complete_steps, step_folder
from trainer.engine.engine import Engines
from trainer.engine.scalars import Scalars
from trainer.job import TrainJob
from trainer.loop.compose import build_loop
from trainer.records.run_directory import RunDirectory
from trainer.rollback.spikes import (
    Rollback,
    Spike,
    SpikeDetector,
    consumed_steps,
    decide,
    from_json,
    keeps_to,
    next_step,
    recorded,
    to_json,
)

RANGES = st.sets(st.tuples(st.integers(0, 40), st.integers(1, 9)).map(lambda r: (r[0], r[0] + r[1])), max_size=5)


def detector(steps: int = 1, warmup: int = 4) -> SpikeDetector:
    """Has seen losses from 1.0 to 1.9 in steps 0 to 9: median 1.45, sigma 0.37, limit of six sigmas 3.67."""
    found = SpikeDetector(window=10, sigmas=6, warmup=warmup, steps=steps)
    for step in range(10):
        assert found.add(step, 1 + step / 10) is None
    return found


def test_a_loss_far_above_the_others_is_a_spike() -> None:
    spike = detector().add(10, 3.7)
    assert spike is not None
    assert (spike.first, spike.last, spike.loss) == (10, 10, 3.7)
    assert spike.usual == pytest.approx(1.45)
    assert spike.limit == pytest.approx(1.45 + 6 * 1.4826 * 0.25)


@pytest.mark.parametrize("loss", [3.6, 1.5, 0.0])
def test_a_loss_within_the_limit_is_none_and_a_small_one_never_is(loss: float) -> None:
    assert detector().add(10, loss) is None


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_a_spike_from_the_first_step_on(loss: float) -> None:
    assert SpikeDetector(window=10, sigmas=6, warmup=4).add(0, loss) is not None


def test_nothing_finite_is_judged_before_enough_is_known() -> None:
    early = SpikeDetector(window=10, sigmas=6, warmup=3)
    assert [early.add(step, loss) for step, loss in enumerate([1.0, 1.1, 1000.0])] == [None] * 3
    assert early.add(3, 1000.0) is not None


def test_a_step_that_was_not_applied_is_no_spike_however_strange_its_loss() -> None:
    watch = detector(steps=2)
    assert [watch.add(10, math.nan, applied=False), watch.add(11, 9.0), watch.add(12, math.inf, applied=False)] == [
        None
    ] * 3


def test_a_rollback_for_which_no_checkpoint_is_kept_long_enough_is_refused(tmp_path: Path) -> None:
    far: dict[str, Any] = {"checkpoint_every": 5, "spikes": SPIKES | {"window": 40}}  # 21 steps back at least
    poisoned(tmp_path, **far, keep_checkpoints=5)
    poisoned(tmp_path, **far, keep_checkpoints=1, keep_every=50)
    poisoned(tmp_path, **far | {"spikes": far["spikes"] | {"action": "record"}}, keep_checkpoints=1)
    with pytest.raises(ValueError, match=r"at least 21 steps back .* set keep_checkpoints to 6"):
        poisoned(tmp_path, **far, keep_checkpoints=4)


def test_several_steps_in_a_row_make_a_spike_once() -> None:
    watch = detector(steps=2)
    found = [watch.add(step, loss) for step, loss in [(10, 9.0), (11, 1.5), (12, 9.0), (13, math.nan), (14, 9.0)]]
    assert [(spike.first, spike.last) if spike else None for spike in found] == [None, None, None, (12, 13), None]


def test_a_loss_that_stays_high_becomes_usual() -> None:
    watch = detector(steps=1)
    assert watch.add(10, 9.0) is not None
    for step in range(11, 21):
        watch.add(step, 9.0)
    assert watch.add(21, 9.1) is not None  # above a window that never moves
    assert watch.add(22, 9.0) is None


def test_steps_that_were_not_applied_do_not_count_as_usual() -> None:
    watch = detector()
    for step in range(10, 30):
        watch.add(step, 3.0, applied=False)
    assert watch.add(30, 3.7) is not None


@given(st.lists(st.floats(0, 20), max_size=40), st.integers(0, 40))
def test_a_detector_goes_on_from_its_state_as_if_nothing_had_been(losses: list[float], cut: int) -> None:
    def fresh() -> SpikeDetector:
        return SpikeDetector(window=8, sigmas=3, warmup=4, steps=2)

    whole = fresh()
    expected = [whole.add(step, loss) for step, loss in enumerate(losses)]
    first, second = fresh(), fresh()
    found = [first.add(step, loss) for step, loss in enumerate(losses[:cut])]
    second.load_state(json.loads(json.dumps(first.state())))
    assert found + [second.add(cut + n, loss) for n, loss in enumerate(losses[cut:])] == expected


def test_a_good_checkpoint_is_before_the_skipped_steps_and_half_a_window_before_the_spike() -> None:
    spike = Spike(first=100, last=101, loss=9.0, usual=1.0, limit=2.0)
    assert decide(spike, [10, 60, 61, 95, 102], window=80, skip_steps=20) == Rollback(60, 82, 102)
    assert decide(spike, [10, 60, 61, 95, 102], window=8, skip_steps=7) == Rollback(95, 95, 102)
    assert decide(spike, [61, 95], window=80, skip_steps=20) is None


def test_a_checkpoint_from_before_a_decision_counts_only_up_to_where_it_went_back() -> None:
    decisions = [Rollback(60, 82, 102), Rollback(40, 120, 125)]
    held = [(40, set()), (60, set()), (100, set()), (110, {(82, 102)}), (130, {(82, 102), (120, 125)})]
    assert [step for step, ranges in held if keeps_to(step, ranges, decisions)] == [40, 130]


def test_decisions_are_read_from_events_in_their_order() -> None:
    happened: list[dict[str, Any]] = [
        {"event": "start", "step": 0},
        {"event": "spike", "step": 9, "action": "none"},
        {"event": "spike", "step": 30, "action": "rollback", "back_to": 20, "skip": [25, 31]},
    ]
    assert recorded(happened) == [Rollback(20, 25, 31)]


@given(RANGES, st.integers(0, 60))
def test_next_step_and_consumed_steps_follow_from_the_ranges_alone(ranges: set[tuple[int, int]], step: int) -> None:
    passed_over = {s for first, stop in ranges for s in range(first, stop)}
    assert next_step(step, ranges) == next(s for s in range(step, 200) if s not in passed_over)
    assert consumed_steps(step, ranges) == len(set(range(step)) - passed_over)
    assert from_json(json.loads(json.dumps(to_json(ranges)))) == ranges


# ------------------------------------------------------------------------------------------------------- in the loop

STEPS, POISON = 30, 20
SPIKES = {"window": 8, "sigmas": 20, "action": "rollback", "skip_steps": 3, "max_rollbacks": 2}


class NamedSamples:
    """As many samples as a run consumes, and the order of them."""

    shards = (STEPS * 8,)
    keys = np.array([f"image{number:03}" for number in range(STEPS * 8)], "S")
    held = "in memory"
    views = 1

    def order(self) -> DataOrder:
        return DataOrder(data="", kind="images", fingerprint="", seed=0, window=None, global_batch=8, check=0)

    def step_keys(self, step: int) -> list[str]:
        return [bytes(self.keys[index]).decode() for index in step_indices(self.order(), self.shards, step)]


class PoisonedStage(CountingStage):
    """A regression in which some steps' targets are absurd, on one rank alone; it notes the steps that it consumes."""

    def __init__(self, poison: tuple[int, ...], kill_at: int | None) -> None:
        super().__init__(None)
        self.samples = NamedSamples()
        self.consumed: list[int] = []
        self.poison, self.kill_at = poison, kill_at

    def batch(self, step: int) -> Rows:
        batch, rank, world = rows(step), dist.get_rank(), dist.get_world_size()
        order, positions = self.samples.order(), step_positions(step, 8, rank, world)
        index_B = order.samples(self.samples.shards).indices(positions)
        strange = 1e4 if step in self.poison and rank == 0 else 0
        return replace(batch, y_B=batch.y_B + strange, index_B=index_B)

    def step(self, micro_batches: Sequence[Rows], engines: Engines, rate: float) -> Scalars:
        assert self.loop is not None
        if self.kill_at is not None and len(self.consumed) == self.kill_at:
            raise KeyboardInterrupt
        self.consumed.append(self.loop.step)
        return super().step(micro_batches, engines, rate)


def poisoned(folder: Path, **changes: Any) -> TrainJob:
    few = {"steps": STEPS, "checkpoint_every": 5, "spikes": SPIKES, "gradient_clipping": 1.0}
    return job(folder, **(few | changes))


def train(each: TrainJob, kill_at: int | None = None, poison: tuple[int, ...] = (POISON,)) -> list[int]:
    """The steps that were consumed, in their order."""
    stage = PoisonedStage(poison, kill_at)
    loop = stage.loop = build_loop(each, stage, torch.device("cpu"))
    try:
        loop.run()
    except KeyboardInterrupt:  # as dead as a process can be without ending: nothing more is written
        loop.writer.end(60)
    return stage.consumed


def losses(run: Path) -> list[tuple[int, float]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(record["step"], record["loss"]) for record in records]


def course(late: int) -> list[int]:
    """Up to the spike and `late` steps beyond it; back to the checkpoint at 15, past the steps left out, to the end."""
    return [*range(21 + late), *range(15, 18), *range(21, 30)]


@pytest.mark.slow
def test_a_spike_goes_back_to_a_good_checkpoint_passes_over_its_steps_and_names_its_samples(tmp_path: Path) -> None:
    assert run_gloo(2, tmp_path, train, poisoned(tmp_path / "run", log_every=5)) == [course(late=2)] * 2
    happened = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    (spike,) = [event for event in happened if event["event"] == "spike"]
    assert (spike["step"], spike["back_to"], spike["skip"]) == (POISON, 15, [18, 21])
    (named,) = [event for event in happened if event["event"] == "spike_samples"]
    assert (named["step"], named["keys"]) == (POISON, NamedSamples().step_keys(POISON))
    assert [step for step, _ in losses(tmp_path / "run")] == [5, 10, 15, 25, 30]
    assert complete_steps(str(tmp_path / "run" / "checkpoints")) == [5, 10, 15, 25, 30]


def ledger_of(run: Path) -> Audit:
    records = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    return audit(read_history("ledger.jsonl", records), NamedSamples.keys, NamedSamples.shards)


@dataclass(frozen=True)
class Plan:
    """A run, and the batches before which it is killed, start after start."""

    job: TrainJob
    poison: tuple[int, ...] = (POISON,)
    kills: tuple[int | None, ...] = (None,)


def follow(plans: list[Plan]) -> list[list[list[int] | str]]:
    """For each start of each plan, the steps that it consumed, or what it failed with."""

    def start(plan: Plan, kill_at: int | None) -> list[int] | str:
        try:
            return train(plan.job, kill_at, plan.poison)
        except FoldtrainError as error:
            return str(error)

    return [[start(plan, kill_at) for kill_at in plan.kills] for plan in plans]


@dataclass(frozen=True)
class Outcome:
    """A run's folder, and what each of its starts consumed."""

    folder: Path
    starts: list[Any]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Runs on one rank, all in one process, whose start takes longer than they do."""
    folder = tmp_path_factory.mktemp("runs")
    plans = {
        "unbroken": Plan(poisoned(folder / "unbroken")),
        # the batch after the decision; then again before the steps that are passed over
        "broken": Plan(poisoned(folder / "broken"), kills=(22, 2, None)),
        "three spikes": Plan(poisoned(folder / "three spikes"), poison=(12, 18, 24)),
        "recorded": Plan(poisoned(folder / "recorded", spikes=SPIKES | {"action": "record"})),
        "unwatched": Plan(poisoned(folder / "unwatched", spikes=None)),
        "last": Plan(poisoned(folder / "last"), poison=(STEPS - 1,)),
    }
    found = run_gloo(1, folder, follow, list(plans.values()))[0]
    return {name: Outcome(folder / name, starts) for name, starts in zip(plans, found, strict=True)}


@pytest.mark.slow
def test_a_run_that_dies_after_the_decision_takes_the_same_course(runs: dict[str, Outcome]) -> None:
    assert runs["unbroken"].starts == [course(late=1)]  # each step's record waits for what it came to
    assert runs["broken"].starts == [[*range(22)], [15, 16], [15, 16, 17, *range(21, 30)]]
    assert losses(runs["broken"].folder) == losses(runs["unbroken"].folder)
    assert events(runs["broken"].folder, "spike") == [POISON]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unbroken", "broken"])
def test_the_ledger_accounts_for_steps_that_were_passed_over(name: str, runs: dict[str, Outcome]) -> None:
    found = ledger_of(runs[name].folder)
    assert found.problems == ()
    assert found.epochs == ((27 * 8, 30 * 8, 1),)


def lose_checkpoints(first: TrainJob, again: TrainJob) -> str:
    """A run dies after its rollback, and its checkpoints are lost."""
    train(first, kill_at=22)
    for step in complete_steps(first.checkpoints):
        shutil.rmtree(step_folder(first.checkpoints, step))
    with pytest.raises(FoldtrainError) as refused:
        train(again)
    return str(refused.value)


def test_a_run_that_went_back_never_begins_anew_by_itself(tmp_path: Path) -> None:
    (message,) = run_gloo(1, tmp_path, lose_checkpoints, poisoned(tmp_path / "run"), poisoned(tmp_path / "run"))
    assert "no complete checkpoint to go on from after the rollback to step 15" in message


def unstored(each: TrainJob) -> tuple[str, list[int]]:
    """A run whose storage does not take the decision in time."""
    stage = PoisonedStage((POISON,), None)
    loop = stage.loop = build_loop(each, stage, torch.device("cpu"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDirectory, "commit", lambda *_: False)
        with pytest.raises(StorageAwayError) as refused:
            loop.run()
    return str(refused.value), complete_steps(each.checkpoints)


@pytest.mark.slow
def test_a_decision_that_cannot_be_stored_is_not_acted_on_by_any_rank(tmp_path: Path) -> None:
    answers = run_gloo(2, tmp_path, unstored, poisoned(tmp_path / "run"))
    assert ["the rollback to step 15 could not be stored" in message for message, _ in answers] == [True, True]
    assert complete_steps(str(tmp_path / "run" / "checkpoints")) == [5, 10, 15, 20]


@pytest.mark.slow
def test_the_run_stops_after_too_many_rollbacks(runs: dict[str, Outcome]) -> None:
    (message,) = runs["three spikes"].starts
    assert "spiked at step 24" in message
    assert "max_rollbacks" in message
    assert events(runs["three spikes"].folder, "spike") == [12, 18]


@pytest.mark.slow
def test_a_spike_that_is_only_recorded_changes_nothing(runs: dict[str, Outcome]) -> None:
    assert runs["recorded"].starts == runs["unwatched"].starts == [list(range(STEPS))]
    assert losses(runs["recorded"].folder) == losses(runs["unwatched"].folder)
    assert events(runs["recorded"].folder, "spike") == [POISON]


@pytest.mark.slow
def test_a_run_whose_last_steps_spike_ends_with_the_steps_before(runs: dict[str, Outcome]) -> None:
    last = runs["last"]
    assert last.starts == [[*range(30), *range(25, 27)]]
    assert complete_steps(str(last.folder / "checkpoints"))[-1] == STEPS
    assert (last.folder / "export" / "card.json").exists()
