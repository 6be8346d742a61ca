"""Further nodes for a job that is scaled, where its scheduler gives them one by one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from cluster import job_process
from cluster.commands import runs
from cluster.config.loading import load_config, resolved_yaml
from cluster.jobs import places, records
from cluster.jobs.records import JobRecord, State, Submitted
from cluster.pool.scale import read_scale, write_scale
from cluster.stages import job_nodes, pipeline
from cluster.stages.job_nodes import adapt_nodes, nodes_of_stage
from cluster.targets.config import TargetSection
from data_pipeline.errors import FoldtrainError, UsageError
from data_pipeline.leases.lease import only_driver
from data_pipeline.node import compiled_code


class Scheduler:
    """A target that notes what is asked of it."""

    def __init__(self, nodes: int) -> None:
        self.count = nodes
        self.asked: list[int] = []

    def nodes(self, handle: str) -> int:
        assert handle == "17"
        return self.count

    def add_nodes(self, _handle: str, count: int) -> str:
        self.asked.append(count)
        return "18"

    def remove_nodes(self, _handle: str, count: int) -> list[str]:
        self.asked.append(-count)
        return ["18"]


def section(**settings: Any) -> TargetSection:
    return TargetSection.model_validate({"kind": "slurm", "nodes": "2:6", "gpus_per_node": 8} | settings)


@pytest.mark.parametrize(
    ("now", "most", "asked", "said"),
    [
        (2, 32, [2], "2 more nodes are asked for, 4 in all"),
        (2, 25, [2], "2 more nodes are asked for, 4 in all"),  # the fourth has room for seven more
        (4, 16, [-2], "2 nodes leave, 2 stay"),
        (4, 1, [-2], "2 nodes leave, 2 stay"),  # a job keeps those that it was started with
        (3, 24, [], "the job has the 3 nodes that it needs"),
        (2, 64, [4], "4 more nodes are asked for, 6 in all (room for 48: its target allows a job 6)"),
    ],
)
def test_as_many_nodes_are_asked_for_as_the_most_workers_need(
    small_config: Path, now: int, most: int, asked: list[int], said: str
) -> None:
    scheduler = Scheduler(now)
    config = load_config(small_config, ["cluster.gpus_per_worker=1"])
    assert adapt_nodes(scheduler, section(), config, "17", most) == said
    assert scheduler.asked == asked


def test_on_cpus_a_node_has_room_for_what_its_cpus_allow(small_config: Path) -> None:
    scheduler = Scheduler(2)
    config = load_config(small_config, ["cluster.cpus_per_worker=4"])
    adapt_nodes(scheduler, section(cpus_per_node=16), config, "17", 12)
    assert scheduler.asked == [1]


def test_without_a_word_of_what_a_node_has_nothing_is_asked_for_and_the_key_is_named(small_config: Path) -> None:
    scheduler = Scheduler(2)
    said = adapt_nodes(scheduler, section(), load_config(small_config, []), "17", 12)
    assert "cpus_per_node" in said
    assert scheduler.asked == []


@pytest.fixture
def job(small_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobRecord:
    """One that is at work in a run whose generator trains, on a target that gives nodes one by one."""
    monkeypatch.setenv("FOLDTRAIN_HOME", str(tmp_path / "home"))
    run = str(tmp_path / "run")
    given = {"kind": "ray", "address": "http://head:8265", "nodes": "2:6", "cpus_per_node": 8}
    submitted = Submitted(
        id="generator-0a1b2c",
        stages=("train-generator",),
        run=run,
        target="big",
        target_config=given,
        submitted=1.0,
        who="me@here",
    )
    records.write_job(submitted, resolved_yaml(load_config(small_config, [])))
    records.write_handle(run, submitted.id, "17")
    records.write_state(run, submitted.id, State(status="running", started=1.0, heartbeat=time.time()))
    (tmp_path / "run" / "generator").mkdir()
    (tmp_path / "run" / "generator" / "settings.json").write_text("{}")
    return records.read_job(run, submitted.id)


def test_the_job_of_a_run_is_scaled_with_its_nodes_by_its_id_or_by_its_run(
    job: JobRecord, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scheduler = Scheduler(2)
    monkeypatch.setattr(job_nodes, "open_target", lambda _name, _section: scheduler)
    places.remember(job.run, job.id)
    with only_driver(f"{job.run}/generator", "training of generator"):
        for named, most in ((job.run, "3:24"), (job.id, "17")):
            runs.scale(named, most)
    assert scheduler.asked == [1, 1]  # three nodes have room for 24 workers, and for 17
    assert read_scale(f"{job.run}/generator") == (17, 17)
    assert "generator-0a1b2c: 1 more node is asked for, 3 in all" in capsys.readouterr().out


def test_a_job_that_has_ended_is_not_scaled(job: JobRecord) -> None:
    places.remember(job.run, job.id)
    records.write_state(job.run, job.id, State(status="failed", started=1.0, ended=2.0, message="no space left"))
    with pytest.raises(UsageError, match=r"generator-0a1b2c is not at work: failed \(no space left\)"):
        runs.scale(job.id, "3")
    assert job_nodes.job_at_work(job.run) is None


def test_a_target_with_an_autoscaler_of_its_own_is_asked_for_nothing(small_config: Path) -> None:
    assert adapt_nodes(object(), section(), load_config(small_config, []), "17", 12) == ""


@pytest.mark.parametrize(
    ("stage", "asked", "said"),
    [
        ("train-generator", [1], "1 more node is asked for, 3 in all"),
        ("tokenize", [], ""),  # nobody asked for other workers of it
        ("evaluate", [], ""),  # it has none
    ],
)
def test_a_job_that_begins_a_stage_again_asks_for_the_nodes_of_the_workers_that_it_was_scaled_to(
    job: JobRecord, small_config: Path, monkeypatch: pytest.MonkeyPatch, stage: str, asked: list[int], said: str
) -> None:
    scheduler = Scheduler(2)
    monkeypatch.setattr(job_nodes, "open_target", lambda _name, _section: scheduler)
    write_scale(f"{job.run}/generator", 3, 24)
    config = load_config(small_config, [f"run={job.run}"])
    assert nodes_of_stage(job.run, job.id, config, stage) == said
    assert scheduler.asked == asked


@pytest.mark.parametrize(
    ("stage", "workers", "asked", "said"),
    [
        ("train-generator", "1", [-2], "2 nodes leave, 2 stay"),  # a job keeps those that it was started with
        ("train-generator", "20", [-1], "1 node leaves, 3 stay"),
        ("train-generator", "2:24", [-1], "1 node leaves, 3 stay"),
        ("train-generator", "40", [], ""),  # more than there are: nobody asked for them
        ("tokenize", "1", [-2], "2 nodes leave, 2 stay"),
        ("sample", "40", [-2], "2 nodes leave, 2 stay"),
        ("evaluate", "1", [], ""),
    ],
)
def test_nodes_that_joined_for_an_earlier_stage_leave_when_one_begins_that_has_no_use_of_them(
    job: JobRecord,
    small_config: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    workers: str,
    asked: list[int],
    said: str,
) -> None:
    scheduler = Scheduler(4)
    monkeypatch.setattr(job_nodes, "open_target", lambda _name, _section: scheduler)
    config = load_config(small_config, [f"run={job.run}", f"cluster.workers={workers}"])
    assert nodes_of_stage(job.run, job.id, config, stage) == said
    assert scheduler.asked == asked


def test_a_stage_that_is_finished_changes_no_nodes(
    job: JobRecord, small_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = Scheduler(4)
    monkeypatch.setattr(job_nodes, "open_target", lambda _name, _section: scheduler)
    config = load_config(small_config, [f"run={job.run}"])
    card = Path(config.product("generator")) / "card.json"
    card.parent.mkdir(parents=True)
    card.write_text("{}")
    assert nodes_of_stage(job.run, job.id, config, "train-generator") == ""
    assert scheduler.asked == []


def test_nothing_is_given_back_where_nobody_knows_what_a_node_has_room_for(small_config: Path) -> None:
    scheduler = Scheduler(4)
    assert adapt_nodes(scheduler, section(), load_config(small_config, []), "17", 1, may_grow=False) == ""
    assert scheduler.asked == []


def test_a_scheduler_that_gives_no_nodes_is_said_and_ends_no_stage(
    job: JobRecord, small_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> object:
        raise FoldtrainError("sbatch refused: no more jobs")

    monkeypatch.setattr(job_nodes, "open_target", refuse)
    write_scale(f"{job.run}/generator", 3, 24)
    said = nodes_of_stage(job.run, job.id, load_config(small_config, [f"run={job.run}"]), "train-generator")
    assert said == "its nodes stay as they are: sbatch refused: no more jobs"


def test_a_jobs_process_asks_as_a_stage_begins_and_prints_what_came_of_it(
    job: JobRecord, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, str, str]] = []

    def nodes_of_stage(run: str, job_id: str, _config: object, stage: str) -> str:
        asked.append((run, job_id, stage))
        return "1 more node is asked for" if stage == "tokenize" else ""

    def run_stages(_names: object, _config: object, _before: float, say: pipeline.Say) -> None:
        for stage in ("ingest", "tokenize"):
            say(stage, None)
            say(stage, "done")

    monkeypatch.setattr(compiled_code, "keep_compiled_code_private", lambda: None)
    monkeypatch.setattr(job_nodes, "nodes_of_stage", nodes_of_stage)
    monkeypatch.setattr(pipeline, "run_stages", run_stages)
    assert job_process._do_stages(job.run, job.id) == 0
    assert asked == [(job.run, job.id, "ingest"), (job.run, job.id, "tokenize")]
    assert capsys.readouterr().out == "tokenize: 1 more node is asked for\n"
