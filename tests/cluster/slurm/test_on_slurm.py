"""Jobs on a real Slurm of two nodes: Ray on each, neighbours, preemption, nodes that come late and leave."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.config.run import RunConfig
from cluster.session.ray_folder import make_folder, own_folders
from cluster.targets.slurm import SlurmTarget
from cluster.targets.slurm_config import SlurmConfig
from cluster.targets.slurm_node import JOB_FILE
from cluster.targets.target import ENDED, JobSpec, TargetState
from data_pipeline.errors import FoldtrainError, UsageError
from tests.cluster.slurm.slurm_cluster import NODE_CPUS, SlurmCluster

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]
_TINY = str(Path(__file__).with_name("tiny_job.py"))
_SECONDS = 400.0
_HOSTILE = "a'b\n#SBATCH --partition=urgent\n$(touch evil) \"x\\"


def target(**fields: Any) -> SlurmTarget:
    asked = {"cpus_per_node": 1, "memory_per_node": 1.5, "python": sys.executable, "grace_seconds": 60} | fields
    return SlurmTarget("slurm", SlurmConfig.model_validate(asked))


def run_config(folder: Path, workers: int = 1) -> RunConfig:
    asked = {"run": str(folder), "inputs": {"images": "/images", "tokenizer": "/tokenizer"}}
    return RunConfig.model_validate(asked | {"cluster": {"workers": workers}})


def spec(folder: Path, *words: str, name: str = "generator-3fa9c1", config: RunConfig | None = None) -> JobSpec:
    config = config or run_config(folder)
    argv = (sys.executable, "-P", _TINY, str(folder), *words)
    return JobSpec(id=name, stages=("train-generator",), config=config, run=str(folder), argv=argv)


@pytest.fixture
def started(slurm: SlurmCluster) -> Iterator[Callable[[SlurmTarget, JobSpec], str]]:
    """Start a job; those that a test leaves are cancelled."""
    jobs: list[tuple[SlurmTarget, str]] = []

    def start(on: SlurmTarget, job: JobSpec) -> str:
        jobs.append((on, on.start(job)))
        return jobs[-1][1]

    yield start
    for on, handle in jobs:
        on.cancel(handle)
        until(lambda on=on, handle=handle: on.state(handle).status in ENDED)


def until(is_so: Callable[[], Any]) -> Any:
    """What `is_so` says once it is anything."""
    deadline = time.monotonic() + _SECONDS
    while not (found := is_so()):
        assert time.monotonic() < deadline, "nothing has come of it"
        time.sleep(0.2)
    return found


def ended(on: SlurmTarget, handle: str) -> TargetState:
    return until(lambda: state if (state := on.state(handle)).status in ENDED else None)


def ran(folder: Path, attempt: int = 1) -> dict[str, Any]:
    """What a job found once it had its nodes."""
    path = folder / f"ran-{attempt}.json"
    until(path.exists)
    return dict(json.loads(path.read_text()))


def start_again(slurm: SlurmCluster, handle: str) -> None:
    """A requeued job waits for two minutes, which are over."""
    until(lambda: slurm.run("squeue", "--noheader", "--format=%T", f"--jobs={handle}").strip() == "PENDING")
    slurm.run("scontrol", "update", f"JobId={handle}", "StartTime=now")


def left_of(handle: str) -> list[object]:
    """Processes of a job, and folders that nothing will remove."""
    processes = [
        process.pid
        for process in psutil.process_iter(["environ"])
        if (process.info["environ"] or {}).get("SLURM_JOB_ID") == handle
    ]
    make_folder().rmdir()  # as the next command does, which removes what killed ones have left
    own = [folder for folder in own_folders() if (folder / JOB_FILE).exists()]
    return [*processes, *(folder for folder in own if (folder / JOB_FILE).read_text() == handle)]


def test_a_job_has_ray_on_each_of_its_nodes_with_the_gpus_of_the_config(
    started: Callable[[SlurmTarget, JobSpec], str], tmp_path: Path
) -> None:
    on = target(nodes=2, gpus_per_node=1, environment={"HOSTILE": _HOSTILE})
    handle = started(on, spec(tmp_path, "2", "none", _HOSTILE))
    assert ended(on, handle).status == "succeeded"
    found = ran(tmp_path)
    assert found["nodes"] == ["n1", "n2"]
    assert [(node["CPU"], node["GPU"]) for node in found["resources"]] == [(1, 1), (1, 1)]
    assert found["arguments"] == ["none", _HOSTILE]
    assert [found["environment"]["HOSTILE"], *(each["HOSTILE"] for each in found["seen"])] == [_HOSTILE] * 3
    until(lambda: not left_of(handle))


def test_two_jobs_share_a_node_and_the_end_of_one_is_not_the_others(
    started: Callable[[SlurmTarget, JobSpec], str], tmp_path: Path
) -> None:
    on = target(options={"nodelist": "n1"})
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir(), other.mkdir()
    handles = [started(on, spec(folder, "1", "wait", name=f"job-{folder.name}")) for folder in (one, other)]
    found = [ran(folder) for folder in (one, other)]
    assert found[0]["nodes"] == found[1]["nodes"] == ["n1"]
    assert found[0]["address"] != found[1]["address"]
    on.cancel(handles[0])
    assert ended(on, handles[0]).status == "stopped"
    until(lambda: not left_of(handles[0]))
    assert psutil.pid_exists(found[1]["pid"])
    (other / "done").touch()
    assert ended(on, handles[1]).status == "succeeded"


def test_a_preempted_job_saves_what_it_has_and_goes_on_in_the_next_allocation(
    slurm: SlurmCluster, started: Callable[[SlurmTarget, JobSpec], str], tmp_path: Path
) -> None:
    on = target(options={"nodelist": "n1"}, cpus_per_node=None)
    handle = started(on, spec(tmp_path, "1", "wait"))
    assert [node["CPU"] for node in ran(tmp_path)["resources"]] == [NODE_CPUS]  # the node for itself
    urgent = ("--partition=urgent", "--nodelist=n1", "--exclusive", "--output=/dev/null", "--chdir=/")
    before = slurm.run("sbatch", "--parsable", *urgent, "--wrap=true").strip()
    until((tmp_path / "told-1.json").exists)  # by Slurm's notice to the steps of a job that is preempted
    assert len(json.loads((tmp_path / "told-1.json").read_text())) == 1  # a second one would end a stage at once
    assert ended(on, before).status == "succeeded"
    start_again(slurm, handle)
    ran(tmp_path, attempt=2)
    assert "started 2 times" in on.state(handle).message
    (tmp_path / "done").touch()
    assert ended(on, handle).status == "succeeded"


def test_a_job_that_loses_its_first_node_goes_on_in_the_next_allocation(
    slurm: SlurmCluster, started: Callable[[SlurmTarget, JobSpec], str], tmp_path: Path
) -> None:
    on = target(nodes=2)
    handle = started(on, spec(tmp_path, "2", "wait"))
    before = ran(tmp_path)
    slurm.lose_node("n1")  # with the head, and the process that would have the job requeued
    slurm.run("scontrol", "update", "NodeName=n1", "State=DOWN", "Reason=lost")  # what SlurmdTimeout comes to
    until(lambda: slurm.idle() == 1)  # nothing of the job runs on the other
    slurm.start_node("n1")
    until(lambda: slurm.idle() == 2)
    start_again(slurm, handle)
    after = ran(tmp_path, attempt=2)
    assert after["nodes"] == before["nodes"] == ["n1", "n2"]
    (tmp_path / "done").touch()
    assert ended(on, handle).status == "succeeded"
    until(lambda: not left_of(handle))


def test_a_node_joins_a_job_that_runs_and_leaves_it_again(
    slurm: SlurmCluster, started: Callable[[SlurmTarget, JobSpec], str], tmp_path: Path
) -> None:
    on = target(nodes="1:2")
    handle = started(on, spec(tmp_path, "1", "wait"))
    ran(tmp_path)

    def nodes() -> int:
        path = tmp_path / "now.json"
        return len(json.loads(path.read_text())) if path.exists() else 0

    joined = on.add_nodes(handle, 1)
    until(lambda: nodes() == 2)
    assert on.nodes(handle) == 2
    with pytest.raises(UsageError, match="set nodes of its file to 1:3"):
        on.add_nodes(handle, 1)
    assert on.remove_nodes(handle, 1) == [f"{joined}_0"]
    until(lambda: nodes() == 1)
    assert ended(on, f"{joined}_0").status == "succeeded"
    assert on.state(handle).status == "running"
    with pytest.raises(UsageError, match="keeps the 1 that it was started with"):
        on.remove_nodes(handle, 1)
    (tmp_path / "done").touch()
    assert ended(on, handle).status == "succeeded"


def test_a_notice_before_the_time_limit_reaches_the_job(
    slurm: SlurmCluster, started: Callable[[SlurmTarget, JobSpec], str], tmp_path: Path
) -> None:
    on = target(requeue=False)
    handle = started(on, spec(tmp_path, "1", "wait"))
    ran(tmp_path)
    slurm.run("scancel", "--batch", "--signal=USR1", handle)  # what --signal=B:USR1@60 has Slurm send
    state = ended(on, handle)
    assert (state.status, "told to end" in state.message) == ("failed", True), state
    assert len(json.loads((tmp_path / "told-1.json").read_text())) == 1


def test_a_secret_that_a_node_lacks_is_named_where_slurm_shows_the_job(
    started: Callable[[SlurmTarget, JobSpec], str], tmp_path: Path
) -> None:
    on = target(secrets=["A_SECRET_KEY"])
    state = ended(on, started(on, spec(tmp_path, "1")))
    assert state.status == "failed"
    assert "A_SECRET_KEY: not set on n" in state.message


def test_slurm_is_asked_whether_it_takes_the_script(slurm: SlurmCluster, tmp_path: Path) -> None:
    said = target(nodes=2, gpus_per_node=2, time="1:00:00").check(spec(tmp_path, "2"))
    assert "to start at" in said[-1]
    assert slurm.run("squeue", "--noheader") == ""


@pytest.mark.parametrize(
    ("fields", "says"),
    [({"partition": "there-is-none"}, "invalid partition"), ({"gpus_per_node": 9}, "configuration is not available")],
)
def test_what_slurm_cannot_do_is_said_before_anything_starts(
    slurm: SlurmCluster, tmp_path: Path, fields: dict[str, Any], says: str
) -> None:
    with pytest.raises(FoldtrainError, match=says):
        target(**fields).check(spec(tmp_path, "1"))


@pytest.mark.parametrize("value", ["a b", 'x " y', "back\\slash", "# no comment", "it's", "100%", "ü"])
def test_an_option_reaches_sbatch_as_it_was_written(slurm: SlurmCluster, tmp_path: Path, value: str) -> None:
    on = target(options={"comment": value, "hold": True})
    handle = on.start(spec(tmp_path, "1"))
    try:
        assert slurm.run("squeue", "--noheader", "--format=%k", f"--jobs={handle}").rstrip("\n") == value
    finally:
        on.cancel(handle)
    assert on.state(handle).status == "stopped"


def test_a_job_that_slurm_does_not_know_is_lost_and_cancelling_it_changes_nothing(slurm: SlurmCluster) -> None:
    on = target()
    on.cancel("999999")
    assert on.state("999999").status == "lost"


def test_workers_that_do_not_fit_into_the_nodes_are_refused(slurm: SlurmCluster, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cluster\.workers is 3"):
        target(nodes=2).check(spec(tmp_path, "1", config=run_config(tmp_path, workers=3)))
