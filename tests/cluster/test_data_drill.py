"""`foldtrain drill data`: what is planned, a short run of it, and what counts as wrong."""

from __future__ import annotations

import json
import signal
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from cluster.drills.blows import AGAIN, FATAL, KINDS, MOMENTS, STAGES, Blow, Pace, Situation, plan_trial
from cluster.drills.data import DataDrill, differences
from cluster.drills.striking import Watch, complete_shards
from cluster.drills.victims import PATIENCE, Victim, is_actor, started, tail, wait_for
from tests.cluster.conftest import Foldtrain

drill = [pytest.mark.drill, pytest.mark.xdist_group("data_drill")]

FIRST_SEED, TRIALS = 1410508, 2
"""Ingest: a killed raylet, then requests that fail; tokenize: a killed driver, then the S3 server. What is fatal comes
first: the command has to start again then, so it cannot be over before it is struck again."""


# ------------------------------------------------------------------------------------------------------ what is planned


def test_a_seed_decides_all_of_a_trial() -> None:
    assert [plan_trial(seed) for seed in range(40)] == [plan_trial(seed) for seed in range(40)]
    assert plan_trial(3) != plan_trial(13)


def test_twenty_trials_strike_each_kind_in_both_stages_and_at_every_moment() -> None:
    plans = [plan_trial(seed) for seed in range(20)]
    assert {(plan.stage, plan.blows[0].kind) for plan in plans} == {(stage, kind) for stage in STAGES for kind in KINDS}
    assert {plan.blows[0].moment for plan in plans} == set(MOMENTS)
    assert {len(plan.blows) for plan in plans} == {1, 2}


def test_the_short_drill_has_every_blow_that_it_is_to_have() -> None:
    plans = [plan_trial(seed) for seed in range(FIRST_SEED, FIRST_SEED + TRIALS)]
    assert {blow.kind for plan in plans for blow in plan.blows} >= {*FATAL, "server", "faults"}


@pytest.mark.parametrize(
    ("blow", "now", "due"),
    [
        (Blow("actor", "start-up", 0.5, 0.1), Situation(0, 4.9, 4.9, 0.0), False),
        (Blow("actor", "start-up", 0.5, 0.1), Situation(0, 5.0, 5.0, 0.0), True),
        (Blow("actor", "middle", 0.5, 0.1), Situation(7, 20.0, 9.0, 0.0), False),
        (Blow("actor", "middle", 0.5, 0.1), Situation(8, 20.0, 0.0, 0.0), False),
        (Blow("actor", "middle", 0.5, 0.1), Situation(8, 20.0, 0.1, 0.0), True),
        (Blow("actor", "late", 0.99, 0.1), Situation(15, 20.0, 0.1, 0.0), True),
        (Blow("actor", AGAIN, 1.2, 0.1), Situation(8, 20.0, 0.1, 11.9), False),
        (Blow("actor", AGAIN, 1.2, 0.1), Situation(8, 20.0, 0.1, 12.0), True),
    ],
)
def test_a_blow_falls_at_its_moment(blow: Blow, now: Situation, due: bool) -> None:
    assert blow.is_due(now, Pace(start_up=10.0, shards=16)) is due


# ---------------------------------------------------------------------------------------------------------- what is hit


@pytest.mark.parametrize(
    ("title", "answer"),
    [("ray::ShardWorker", True), ("ray::Ledger.report", True), ("ray::IDLE", False), ("ray::RuntimeEnvAgent", False)],
)
def test_an_actor_is_a_process_that_works_for_the_command(title: str, answer: bool) -> None:
    assert is_actor(title) is answer


# ------------------------------------------------------------------------------------------------- what counts as wrong


def test_a_shard_is_committed_with_its_index_or_record() -> None:
    names = ("train/images-00000.tar", "train/images-00000.index.json", "train/images-00001.tar", "manifest.json")
    stamps = {name: (name, "now") for name in (*names, "tokens-00000.tar", "tokens-00000.json", "tokens-00001.json")}
    assert sorted(complete_shards(stamps)) == sorted([*names[:2], "tokens-00000.json", "tokens-00000.tar"])


def test_every_difference_from_the_reference_is_named() -> None:
    assert differences({"a": "1", "b": "2"}, {"a": "1", "b": "2"}) == []
    assert differences({"a": "1", "b": "3", "d": "4"}, {"a": "1", "b": "2", "c": "3"}) == [
        "missing: c",
        "not in the reference: d",
        "other bytes: b",
    ]


def test_a_try_that_ended_too_early_sets_the_pace_of_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drilled, plan = DataDrill(tmp_path, 3), plan_trial(3)
    drilled._paces[plan.stage], drilled._digests[plan.stage] = Pace(60.0, 16), {}
    monkeypatch.setattr(drilled, "_bucket", SimpleNamespace(name="bucket"), raising=False)

    def runs(_victim: object, _striker: object, watch: Watch, _trial: object) -> bool:
        watch.first_commit = watch.started + 4.0
        return False

    for name, stand_in in {
        "_provide": lambda *_: None,
        "_command": lambda *_: nullcontext(),
        "_disturb": runs,
        "_look_through": lambda *_: iter(()),
    }.items():
        monkeypatch.setattr(drilled, name, stand_in)
    assert not drilled._trial(plan, "trial").blows
    found = drilled._paces[plan.stage]
    assert (found.start_up, found.shards) == (pytest.approx(4.0), 16)


def test_a_folder_with_something_in_it_is_left_alone(foldtrain_here: Foldtrain, tmp_path: Path) -> None:
    (tmp_path / "full" / "of").mkdir(parents=True)
    done = foldtrain_here("drill", "data", "--folder", "full")
    assert (done.returncode, "is not empty" in done.stderr) == (2, True)


# ----------------------------------------------------------------------------------------------------- the drill itself


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Victim, Path]:
    """A drill of two trials, after its end, and the folder that it worked in."""
    folder = tmp_path_factory.mktemp("drill")
    options = ("--trials", str(TRIALS), "--seed", str(FIRST_SEED), "--folder", str(folder / "place"))
    with started("drill", "data", *options, "--json", str(folder / "trials.json"), log=folder / "log") as command:
        assert command.wait(timeout=4 * PATIENCE) == 0, tail(command)
        assert command.family() == []
    return command, folder


@pytest.fixture
def trials(finished: tuple[Victim, Path]) -> list[dict[str, Any]]:
    """What the drill recorded."""
    records: list[dict[str, Any]] = json.loads((finished[1] / "trials.json").read_text())["trials"]
    return records


class TestAShortDrill:
    pytestmark = drill

    def test_it_ends_in_byte_identical_data_sets(self, finished: tuple[Victim, Path]) -> None:
        assert finished[0].output().endswith(f"{TRIALS} of {TRIALS} trials ended in byte-identical data sets\n")

    def test_everything_was_struck_that_was_planned(self, trials: list[dict[str, Any]]) -> None:
        struck = " ".join(blow for trial in trials for blow in trial["blows"])
        for what in ("driver", "raylet", "of requests fail"):
            assert what in struck

    def test_a_killed_driver_was_started_again(self, trials: list[dict[str, Any]]) -> None:
        assert trials[1]["exit_codes"] == [-signal.SIGKILL, 0]

    def test_shards_of_before_the_blow_were_kept(self, trials: list[dict[str, Any]]) -> None:
        assert all(trial["kept"] > 0 for trial in trials)

    def test_its_folder_is_gone(self, finished: tuple[Victim, Path]) -> None:
        assert sorted(path.name for path in finished[1].iterdir()) == ["log", "trials.json"]

    def test_an_interrupted_drill_leaves_no_process_and_no_folder(self, tmp_path: Path) -> None:
        with started("drill", "data", "--folder", str(tmp_path / "place")) as command:
            wait_for("a command of the drill", command.raylets, command)
            family = command.family()
            command.send_signal(signal.SIGINT)
            assert command.wait() == 128 + signal.SIGINT
            assert psutil.wait_procs(family, timeout=PATIENCE)[1] == []
        assert not (tmp_path / "place").exists()
