"""`foldtrain drill train`: what is planned, what is seen on the wire, what counts as wrong, and a short run of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from cluster.config.loading import load_config
from cluster.drills.bucket import Bucket
from cluster.drills.drilled_training import SAMPLES, START, TOKENIZER, networks, stage_of, write_training
from cluster.drills.fault_proxy import Fault, FaultProxy
from cluster.drills.s3_server import BUCKET
from cluster.drills.trained import Trained, complete_checkpoints, read_trained, unlike, without_clocks
from cluster.drills.training import Reference, TrainingDrill
from cluster.drills.training_blows import (
    CHECKPOINT_EVERY,
    CHECKPOINTS,
    KINDS,
    MOMENTS,
    PARTS,
    STEPS,
    WORKERS,
    ZERO_STAGES,
    Blow,
    Pace,
    Phase,
    Sight,
    plan_trial,
)
from cluster.drills.trials import MISSES, Trial, until_struck
from cluster.drills.victims import PATIENCE, Victim, started, tail
from cluster.drills.wire import Start, Wire
from cluster.stages.train_jobs import train_job
from data_pipeline import storage
from data_pipeline.shards.token_shards import check_tokenizer
from data_pipeline.shards.weights import read_card
from data_pipeline.tools.preflight import check_tokens
from model.config import ImageFolderConfig
from tests.cluster.conftest import Foldtrain
from tests.conftest import S3
from trainer.records import segmented_object
from trainer.records.jsonl import JsonlWriter
from trainer.registry import stage_in

drill = [pytest.mark.drill, pytest.mark.xdist_group("train_drill")]

PLACE = "bucket/run/generator"
FIRST_SEED, TRIALS = 2582, 1
"""The driver killed while a checkpoint lacks all but its first file, then a worker while it loads the one before."""


# ------------------------------------------------------------------------------------------------------ what is planned


def test_a_seed_decides_all_of_a_trial() -> None:
    assert [plan_trial(seed) for seed in range(40)] == [plan_trial(seed) for seed in range(40)]
    assert plan_trial(3) != plan_trial(43)


def test_the_short_drill_strikes_an_upload_and_a_load() -> None:
    blows = plan_trial(FIRST_SEED).blows
    assert [(blow.kind, blow.moment, blow.stall) for blow in blows] == [
        ("driver", "upload", "rank_0000.json"),
        ("worker", "load", "rank_"),
    ]


def test_five_trials_strike_each_victim_and_each_moment_and_twenty_each_zero_stage() -> None:
    plans = [plan_trial(seed) for seed in range(20)]
    for start in range(0, 20, 5):
        assert {plan.blows[0].kind for plan in plans[start : start + 5]} == set(KINDS)
        assert {plan.blows[0].moment for plan in plans[start : start + 5]} == set(MOMENTS)
    assert {plan.zero_stage for plan in plans} == set(ZERO_STAGES)


def test_some_starts_are_struck_again_while_they_load_a_checkpoint() -> None:
    plans = [plan_trial(seed) for seed in range(20)]
    assert {len(plan.blows) for plan in plans} == {1, 2}
    assert {plan.blows[1].moment for plan in plans if len(plan.blows) > 1} == {"load"}


def test_uploads_are_held_up_at_each_of_their_objects() -> None:
    plans = [plan_trial(seed) for seed in range(400)]
    assert {plan.blows[0].stall for plan in plans if plan.blows[0].moment == "upload"} == {None, *PARTS}


def test_a_checkpoint_is_left_to_strike_after_any_that_is_waited_for() -> None:
    plans = [plan_trial(seed) for seed in range(400)]
    waits = {(plan.blows[0].moment, plan.blows[0].after) for plan in plans}
    assert max(after for moment, after in waits if moment != "committed") == CHECKPOINTS - 2
    assert ("committed", CHECKPOINTS) in waits


def sight(phase: Phase = "steps", since_phase: float = 0.0, done: int = 3, stalled: bool = False) -> Sight:
    return Sight(phase, since_phase, 12.0, done, stalled)


@pytest.mark.parametrize(
    ("blow", "now", "due"),
    [
        (Blow("driver", "start-up", delay=0.7), sight("start-up", done=0), False),
        (Blow("driver", "start-up", delay=0.5), sight("start-up", done=0), True),
        (Blow("driver", "steps", 4, 0.0), sight("steps", 9.0), False),
        (Blow("driver", "steps", 3, 0.5), sight("steps", 0.9), False),
        (Blow("driver", "steps", 3, 0.5), sight("steps", 1.0), True),
        (Blow("driver", "steps", 3, 0.0), sight("upload", 9.0), False),
        (Blow("driver", "steps", 2, 0.5), sight("steps", 0.5), True),
        (Blow("worker", "snapshot", 3, 0.01), sight("snapshot", 0.01), True),
        (Blow("worker", "upload", 3, 0.05), sight("upload", 0.04), False),
        (Blow("worker", "upload", 3, 0.05), sight("upload", 0.05), True),
        (Blow("worker", "upload", 3, stall="COMPLETE"), sight("upload", 9.0), False),
        (Blow("worker", "upload", 3, stall="COMPLETE"), sight("upload", 9.0, stalled=True), True),
        (Blow("worker", "load", stall="rank_"), sight("upload", stalled=True), False),
        (Blow("worker", "snapshot", 3, 0.01), sight("upload", 0.01, done=CHECKPOINTS - 1), True),
        (Blow("worker", "committed", 3, 0.05), sight("snapshot", 9.0), False),
        (Blow("worker", "committed", 8, 0.05), sight("export", 0.05, done=8), True),
    ],
)
def test_a_blow_falls_at_its_moment(blow: Blow, now: Sight, due: bool) -> None:
    assert blow.is_due(now, Pace(start_up=20.0, interval=2.0)) is due


# --------------------------------------------------------------------------------------------- what is seen on the wire


@pytest.fixture
def wire() -> Wire:
    """That of a stage whose command was just started."""
    found = Wire()
    found.begin(PLACE)
    return found


def ask(wire: Wire, method: str, name: str, status: int = 200) -> Fault | None:
    """A request and the server's answer; what is done to it."""
    path = f"/{PLACE}/{name}?x-id=Any"
    fault = wire(method, path, {})
    if fault is None:
        wire.answered(method, path, status)
    return fault


def write(wire: Wire, step: int, *, parts: tuple[str, ...] = PARTS) -> None:
    """A checkpoint of two ranks, or its first objects."""
    for part in parts:
        name = part.replace(".", "-0123abcd.") if part.startswith("rank") else part
        ask(wire, "PUT", f"checkpoints/step_{step:08d}/{name}")


def load(wire: Wire, step: int) -> None:
    """A start that loads a checkpoint."""
    ask(wire, "GET", f"checkpoints/step_{step:08d}/rank_0000-0123abcd.safetensors")
    ask(wire, "PUT", "environment.json")


def test_the_phases_of_a_stage_follow_from_its_requests(wire: Wire) -> None:
    phases = [wire.sight().phase]
    for name in ("environment.json", "ledger.jsonl", "checkpoints/step_00000005/rank_0000-0123abcd.safetensors"):
        ask(wire, "PUT", name)
        phases.append(wire.sight().phase)
    write(wire, 5)
    phases.append(wire.sight().phase)
    ask(wire, "PUT", "ledger.jsonl")
    phases.append(wire.sight().phase)
    write(wire, STEPS)
    phases.append(wire.sight().phase)
    assert phases == ["start-up", "steps", "steps", "upload", "steps", "snapshot", "export"]


def test_a_checkpoint_is_complete_once_its_marker_was_accepted_and_until_it_is_removed(wire: Wire) -> None:
    ask(wire, "PUT", "checkpoints/step_00000005/COMPLETE", status=503)
    assert wire.complete == set()
    write(wire, 5)
    assert wire.complete == {5}
    ask(wire, "DELETE", "checkpoints/step_00000005/COMPLETE", status=204)
    assert wire.complete == set()


def test_a_start_from_the_newest_complete_checkpoint_is_right(wire: Wire) -> None:
    ask(wire, "PUT", "environment.json")
    write(wire, 5)
    write(wire, 10)
    wire.relaunch(set())
    load(wire, 10)
    assert wire.wrong == []
    assert wire.starts == [Start(0, 0), Start(10, 10)]


def test_a_start_from_a_checkpoint_without_a_marker_is_noted(wire: Wire) -> None:
    write(wire, 5)
    write(wire, 10, parts=PARTS[:-1])
    load(wire, 10)
    assert "loaded the checkpoint of step 10: it is not complete" in wire.wrong[0]


def test_a_start_from_an_older_checkpoint_or_from_none_is_noted(wire: Wire) -> None:
    write(wire, 5)
    write(wire, 10)
    load(wire, 5)
    assert "loaded the checkpoint of step 5: the newest complete one is 10" in wire.wrong[0]
    ask(wire, "PUT", "environment.json")
    assert "began after step 0, and the checkpoint of step 10 was complete" in wire.wrong[-1]


def test_a_marker_whose_answer_was_lost_counts_as_the_bucket_lists_it(wire: Wire) -> None:
    write(wire, 5, parts=PARTS[:-1])
    wire.relaunch({5})
    load(wire, 5)
    assert wire.wrong == []


def test_an_upload_is_held_up_at_the_object_that_is_named(wire: Wire) -> None:
    wire.stall("index.json")
    folder = "checkpoints/step_00000005"
    assert ask(wire, "PUT", f"{folder}/rank_0000-0123abcd.json") is None
    assert not wire.sight().stalled
    assert ask(wire, "PUT", f"{folder}/index.json") is Fault.SILENCE
    assert wire.sight().stalled
    wire.stall(None)
    assert ask(wire, "PUT", f"{folder}/index.json") is None


def test_a_load_is_held_up_at_its_first_file(wire: Wire) -> None:
    write(wire, 5)
    wire.relaunch(set())
    wire.stall("rank_")
    assert ask(wire, "GET", "checkpoints/step_00000005/rank_0001-0123abcd.safetensors") is Fault.SILENCE
    assert (wire.sight().phase, wire.sight().stalled) == ("load", True)


def test_other_folders_are_none_of_its_business(wire: Wire) -> None:
    wire.stall("COMPLETE")
    assert wire("PUT", "/bucket/reference/generator/checkpoints/step_00000005/COMPLETE", {}) is None
    assert wire.sight().phase == "start-up"


@pytest.mark.xdist_group("s3")
def test_what_storage_sends_is_understood(s3: S3, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = f"s3://{BUCKET}/run/generator"
    wire.begin(f"{BUCKET}/run/generator")
    marker, file = (f"{folder}/checkpoints/step_00000005/{name}" for name in ("COMPLETE", "rank_0000-0a.safetensors"))
    with FaultProxy(s3.endpoint, seed=0, rule=wire, answered=wire.answered) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        storage.write_bytes(f"{folder}/environment.json", b"{}")
        storage.write_bytes(file, bytes(1_000_000))
        assert wire.sight().phase == "upload"
        storage.write_bytes(marker, b"{}")
        assert wire.complete == {5}
        storage.read_range(file, 10, 20)
        assert (wire.sight().phase, wire.wrong) == ("load", [])
        storage.remove_file(marker)
        assert wire.complete == set()
        storage.read_range(file, 10, 20)
        assert "loaded the checkpoint of step 5: it is not complete" in wire.wrong[0]


# ------------------------------------------------------------------------------------------------- what counts as wrong

TRAINED = Trained(
    steps=[1, 2],
    records={1: {"loss": 0.1, "step": 1}, 2: {"loss": 0.2, "step": 2}},
    states={"step_00000002": {"step": 2}},
    elements={"step_00000002 master/a/0 to 4": "1f"},
    exports={"model.safetensors": "2f"},
)


def test_a_run_equals_itself() -> None:
    assert list(unlike(TRAINED, TRAINED)) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"steps": [2]}, "metrics.jsonl has 1 records instead of 2; missing: [1]"),
        ({"records": {**TRAINED.records, 2: {"loss": 0.20000000000000004, "step": 2}}}, "the first at step 2: loss"),
        ({"states": {"step_00000002": {"step": 3}}}, "state.json: step_00000002.step: 2 -> 3"),
        ({"elements": {"step_00000002 master/a/0 to 4": "1e"}}, "1 of 1 differ, the first: step_00000002 master/a"),
        ({"elements": {}}, "checkpoints: 1 of 1 differ"),
        ({"exports": {"model.safetensors": "2e"}}, "exports: 1 of 1 differ, the first: model.safetensors"),
    ],
)
def test_every_difference_from_the_unbroken_run_is_named(changes: dict[str, Any], told: str) -> None:
    found = list(unlike(replace(TRAINED, **changes), TRAINED))
    assert len(found) == 1
    assert told in found[0]


def test_clocks_do_not_count() -> None:
    clocks = {"time": 1.0, "step_seconds_p95": 2.0, "memory_bytes": 3, "goodput": 0.5, "mfu": 0.1, "eta_seconds": 4.0}
    numbers = {"loss": 1.0, "loss_group0_fold1": 2.0, "grad_norm": 3.0, "learning_rate": 4.0, "samples": 5}
    assert without_clocks(clocks | numbers) == numbers


def test_a_checkpoint_with_a_marker_is_complete() -> None:
    names = [f"checkpoints/step_00000005/{part}" for part in PARTS]
    names += [f"checkpoints/step_00000010/{part}" for part in PARTS[:-1]]
    assert complete_checkpoints([*names, "metrics.jsonl"]) == {"step_00000005"}


def test_a_command_that_was_done_too_early_is_tried_again_and_then_counts_as_wrong() -> None:
    tries: list[int] = []

    def trial(number: int) -> Trial:
        tries.append(number)
        return Trial(7, "generator")

    assert until_struck(trial).problems == ["the command ended before it was struck, 3 times"]
    assert tries == list(range(MISSES))


def test_a_try_that_ended_too_early_sets_the_pace_of_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drilled, plan = TrainingDrill(tmp_path, 3), plan_trial(3)
    slow = Reference(Pace(60.0, 30.0), Trained([], {}, {}, {}, {}))
    drilled._references[plan.zero_stage] = slow

    def runs(*_: object) -> bool:
        drilled._wire.reached = [drilled._wire.started + 4 + 2.5 * number for number in range(1 + CHECKPOINTS)]
        return False

    for name, stand_in in {
        "_begin": drilled._wire.begin,
        "_complete_steps": lambda _: set(),
        "_command": lambda *_: nullcontext(),
        "_disturb": runs,
        "_look_through": lambda *_: iter(()),
    }.items():
        monkeypatch.setattr(drilled, name, stand_in)
    assert not drilled._trial(plan, "trial").blows
    found = drilled._references[plan.zero_stage]
    assert found.pace.interval == pytest.approx(2.5)
    assert found.pace.start_up == pytest.approx(4, abs=0.1)
    assert found.trained is slow.trained


# --------------------------------------------------------------------------------------------------- what it works with


@pytest.mark.parametrize("network", networks())
def test_the_inputs_of_a_drill_fit_each_other(tmp_path: Path, network: str) -> None:
    path = write_training(tmp_path, 1, network)
    if network != TOKENIZER:
        shutil.copytree(tmp_path / "tokenizer", tmp_path / "run" / "tokenizer" / "export")
    stage = stage_of(network)
    job = train_job(load_config(str(path), [f"run={tmp_path}/run"]), stage_in(stage))
    assert (job.stage, job.section.trainer.steps) == (stage, STEPS)
    assert [manifest.samples for manifest in job.manifests.values()] == [SAMPLES]
    if network != TOKENIZER:
        job.section.model.check(job.manifests["tokens"].layout, ImageFolderConfig().forcing_width)


def test_tokens_of_a_drill_are_those_of_its_tokenizer(tmp_path: Path) -> None:
    write_training(tmp_path, 1)
    check_tokenizer(
        check_tokens(str(tmp_path / "tokens"), every_byte=True), read_card(str(tmp_path / "tokenizer"), "tokenizer")
    )


@pytest.mark.parametrize("network", ["next-scale", TOKENIZER])
def test_a_seed_decides_each_byte_that_is_trained_on(tmp_path: Path, network: str) -> None:
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
        write_training(folder, 1, network)
    files = [{path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()} for folder in folders]
    assert files[0].keys() == files[1].keys()
    for name, path in files[0].items():
        assert files[1][name].read_bytes() == path.read_bytes().replace(b"/one/", b"/other/"), name


def test_a_tokenizer_of_a_drill_has_all_that_its_step_shares_and_its_discriminator_starts_between_checkpoints(
    tmp_path: Path,
) -> None:
    section = load_config(str(write_training(tmp_path, 1, TOKENIZER)), [f"run={tmp_path}/run"]).tokenizer
    assert section is not None
    assert section.trainer.micro_batch == section.trainer.global_batch // WORKERS // 2  # two micro-batches
    adversarial = section.loss.adversarial
    assert adversarial is not None
    assert adversarial.adaptive
    assert adversarial.lecam
    assert section.loss.contrasts
    assert section.dead_code_steps
    assert adversarial.start == START
    assert 0 < START < STEPS - CHECKPOINT_EVERY
    assert START % CHECKPOINT_EVERY


def test_a_network_that_nobody_knows_is_refused(foldtrain_here: Foldtrain) -> None:
    done = foldtrain_here("drill", "train", "--network", "tokeniser")
    assert done.returncode == 2
    assert "there is no network 'tokeniser' to train: choose one of tokenizer, next-scale" in done.stderr


def test_a_folder_with_something_in_it_is_left_alone(foldtrain_here: Foldtrain, tmp_path: Path) -> None:
    (tmp_path / "full" / "of").mkdir(parents=True)
    done = foldtrain_here("drill", "train", "--folder", "full")
    assert (done.returncode, "is not empty" in done.stderr) == (2, True)


# ----------------------------------------------------------------------------------------------------- the drill itself


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Victim, list[dict[str, Any]]]]:
    """A short drill after its end, and what it recorded."""
    folder = tmp_path_factory.mktemp("drill")
    options = ("--trials", str(TRIALS), "--seed", str(FIRST_SEED), "--folder", str(folder / "place"))
    with started("drill", "train", *options, "--json", str(folder / "trials.json"), log=folder / "log") as command:
        assert command.wait(timeout=4 * PATIENCE) == 0, tail(command)
        assert command.family() == []
        assert sorted(path.name for path in folder.iterdir()) == ["log", "trials.json"]
        yield command, json.loads((folder / "trials.json").read_text())["trials"]


class TestAShortDrill:
    pytestmark = drill

    def test_it_ends_as_if_nothing_had_happened(self, finished: tuple[Victim, list[dict[str, Any]]]) -> None:
        summary = f"{TRIALS} of {TRIALS} trials ended equal to the unbroken run bit for bit\n"
        assert finished[0].output().endswith(summary)

    def test_everything_was_struck_that_was_planned(self, finished: tuple[Victim, list[dict[str, Any]]]) -> None:
        planned = [len(plan_trial(seed).blows) for seed in range(FIRST_SEED, FIRST_SEED + TRIALS)]
        assert [len(trial["blows"]) for trial in finished[1]] == planned

    def test_the_checkpoint_before_the_unfinished_one_was_loaded(
        self, finished: tuple[Victim, list[dict[str, Any]]]
    ) -> None:
        after = plan_trial(FIRST_SEED).blows[0].after
        assert [(trial["fell"], trial["loaded"]) for trial in finished[1]] == [
            (["upload", "load"], [0, after * CHECKPOINT_EVERY])
        ]


def test_the_records_of_a_long_trial_are_read_from_their_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmented_object, "SEAL_BYTES", 100)
    folder = f"memory://{uuid4().hex}"

    class InMemory(Bucket):
        def __init__(self) -> None: ...
        def read(self, key: str) -> bytes:
            return storage.read_bytes(f"{folder}/{key}")

        def stamps(self, _folder: str) -> dict[str, Any]:
            return {}

        def digests(self, _folder: str) -> dict[str, str]:
            return {}

    for name, record in (("metrics", {"step": 1, "loss": 0.5}), ("events", {"step": 0, "event": "start"})):
        writer = JsonlWriter(f"{folder}/run/{name}.jsonl", keep=[record | {"step": step} for step in range(50)])
        writer.close()
    found = read_trained(InMemory(), "run")
    assert found.steps == list(range(50))
    assert found.records[49] == {"step": 49, "loss": 0.5}
    assert found.begun_after == frozenset(range(50))
