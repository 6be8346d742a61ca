"""The target of docs/extending.md, in a package of its own: real processes of this machine, no line of foldtrain."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from cluster.config.loading import load_config
from cluster.jobs import logs, places, records, stopping
from cluster.jobs.records import JobRecord
from cluster.jobs.submitting import new_job, start, target_of
from cluster.targets.opening import load_target, open_target
from cluster.targets.target import JobSpec
from data_pipeline.errors import UsageError
from tests.cluster.stand_in_stages import JOB_PROCESS


@pytest.fixture
def submit(here_package: Path, small_config: Path, tmp_path: Path) -> Callable[..., JobRecord]:
    """Submits a job whose image shards are given, so that its stage has nothing to do."""
    given = [f"run={tmp_path / 'run'}", "data.source=null", "inputs.images=s3://b/images"]

    def call(change: Callable[[JobSpec], JobSpec] = lambda job: job) -> JobRecord:
        name, section = load_target(str(here_package / "here.yaml"))
        job = change(new_job(["ingest"], load_config(small_config, given), section))
        target = open_target(name, section)
        assert target.check(job) == []
        start(target, job, section)
        return records.read_job(job.run, job.id)

    return call


def with_stand_in(job: JobSpec) -> JobSpec:
    return replace(job, argv=(job.argv[0], "-P", "-c", JOB_PROCESS, *job.argv[-2:]))


def until(record: JobRecord, is_so: Callable[[JobRecord], bool]) -> JobRecord:
    while not is_so(found := records.read_job(record.run, record.id)):
        time.sleep(0.05)
    return found


def until_at_work(record: JobRecord) -> None:
    until(record, lambda found: "at work" in logs.tail(places.job_folder(found.run, found.id)))


def has_ended(record: JobRecord) -> bool:
    return record.state is not None and record.state.ended is not None


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_job_is_submitted_by_the_name_of_its_kind_and_runs_to_its_end(submit: Callable[..., JobRecord]) -> None:
    record = until(submit(), has_ended)
    assert (record.status, record.target) == ("succeeded", "here")
    assert record.state is not None
    assert record.state.done == {"ingest": "finished"}
    assert "ingest is not run: inputs.images names" in "".join(records.logs(record.run, record.id))


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_stop_is_heard_through_the_run_and_the_job_saves_before_it_ends(submit: Callable[..., JobRecord]) -> None:
    record, said = submit(with_stand_in), list[str]()
    until_at_work(record)
    assert stopping.stop(records.read_job(record.run, record.id), now=False, tell=said.append) == "stopped"
    assert said == ["ends after a checkpoint, within 60 s"]
    assert "".join(records.logs(record.run, record.id)) == "at work\nsaves a checkpoint\n"


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_job_whose_process_its_scheduler_kills_still_saves_and_says_how_it_ended(
    submit: Callable[..., JobRecord],
) -> None:
    record = submit(with_stand_in)
    until_at_work(record)
    assert record.handle is not None
    target_of(record).cancel(record.handle)
    ended = until(record, has_ended)
    assert ended.state is not None
    assert (ended.status, ended.state.told, ended.state.exit_code) == ("preempted", "its scheduler ended it", 143)
    assert ended.state.last_lines[-1] == "saves a checkpoint"


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_signal_to_its_first_process_is_a_notice_and_its_exit_code_tells_the_scheduler(
    submit: Callable[..., JobRecord],
) -> None:
    record = submit(with_stand_in)
    until_at_work(record)
    assert record.handle is not None
    process = psutil.Process(int(record.handle.partition("@")[0]))
    process.send_signal(10)  # SIGUSR1, as Slurm sends it before the end of the time
    until(record, has_ended)
    _, status = os.waitpid(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 143


def test_a_job_that_its_target_does_not_take_leaves_no_record(
    submit: Callable[..., JobRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # without `nice`
    with pytest.raises(FileNotFoundError):
        submit()
    assert records.list_jobs(str(tmp_path / "run")) == []
    assert places.remembered() == {}


def test_an_entry_point_that_is_no_kind_is_refused(here_package: Path) -> None:
    info = here_package / "here-1.0.dist-info"
    (info / "entry_points.txt").write_text("[foldtrain.targets]\nhere = here_target:HereTarget\n")
    with pytest.raises(UsageError, match=r"entry point here of foldtrain\.targets is no TargetKind"):
        load_target(str(here_package / "here.yaml"))
