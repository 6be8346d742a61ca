"""Stages run as a job on a Ray head of this machine, which is left as found: alone, private, and ended by its id."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from rich.console import Console
from tenacity import Retrying, retry_if_result, wait_fixed

from cluster.config.absolute_paths import require_reachable, with_absolute_paths
from cluster.config.fields import sections_in
from cluster.config.loading import load_config
from cluster.config.run import ClusterConfig, RunConfig
from cluster.jobs import job_views, logs, records, stopping, submitting
from cluster.jobs.graph import chosen_stages
from cluster.jobs.places import job_folder
from cluster.jobs.records import JobRecord, State, Submitted
from cluster.session import job_environment, local_head
from cluster.targets.opening import load_target, open_target
from cluster.targets.ray import RayJobs, RayTarget
from cluster.targets.target import TargetState
from data_pipeline.config import FolderSource
from data_pipeline.errors import FoldtrainError, UsageError
from data_pipeline.storage.places import rules_of
from tests.cluster.stand_in_stages import JOB_PROCESS

Foldtrain = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def config(small_config: Path) -> RunConfig:
    return load_config(small_config)


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FOLDTRAIN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def rendered(found: list[JobRecord], now: float = 1000.0) -> str:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(job_views.table(found, now))
    return captured.get()


def recorded(run: str, state: State | None) -> JobRecord:
    target: dict[str, Any] = {"target": "local", "target_config": {"kind": "local"}}
    job = Submitted(id="ingest-0a1b2c", stages=("ingest",), run=run, submitted=890.0, who="me@here", **target)
    return JobRecord(job.id, run, job, job.id, state)


def test_paths_of_a_local_job_mean_what_they_mean_here(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    absolute = with_absolute_paths(config)
    assert absolute.run == "/runs/small"
    assert absolute.data.source == FolderSource(path="/pictures")


def test_uris_and_embedded_files_are_no_paths_of_this_machine(small_config: Path) -> None:
    source = "data.source={kind: idx, images: 'embedded:i', labels: 's3://b/l'}"
    config = load_config(small_config, [source, "run=s3://b/run", "tokens.output=s3://b/tokens"])
    assert with_absolute_paths(config) == config
    require_reachable(config)


VALIDATION = "data.validation_source={kind: ilsvrc_val, path: /v.tar, labels: /l.txt}"


@pytest.mark.parametrize(
    "key", ["data.validation_source.path", "data.validation_source.synsets", "data.reading.cache_dir"]
)
def test_every_place_of_a_local_job_is_made_absolute(
    small_config: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    absolute = with_absolute_paths(load_config(small_config, [VALIDATION, f"{key}=here/below"]))
    value: object = absolute
    for name in key.split("."):
        value = getattr(value, name)
    assert value == "/here/below"


NO_PLACES = {
    *("kind", "metric", "timm", "backbone", "address", "classes", "extensions", "images", "label", "image", "views"),
    *("prometheus_host", "downsampling", "network", "teacher", "order", "init_except", "command", "link", "webhook"),
    *("sha256", "workers", "distance"),
}
"""Fields of text that are no places. A new field of text is added here, or given a type of storage/places.py."""


def test_each_text_of_the_config_is_a_place_or_known_to_be_none() -> None:
    sections, waiting = set(), [RunConfig]
    while waiting:
        section = waiting.pop()
        sections.add(section)
        found = [below for field in section.model_fields.values() for below in sections_in(field.annotation)]
        waiting += [below for below in found if below not in sections]
    texts = {
        name
        for section in sections
        for name, field in section.model_fields.items()
        if "str" in str(field.annotation) and rules_of(field.annotation, field.metadata) is None
    }
    assert texts <= NO_PLACES | {"extra"}


@pytest.mark.parametrize(
    "key",
    [
        *("run", "data.source.path", "data.images", "tokens.output"),
        *("data.validation_source.labels", "data.reading.cache_dir"),
    ],
)
def test_a_relative_path_is_refused_where_another_machine_reads_it(small_config: Path, key: str) -> None:
    reachable = ["run=s3://b/run", "data.source.path=/pictures", VALIDATION]
    with pytest.raises(UsageError, match=f"{key}: here/below is a relative path"):
        require_reachable(load_config(small_config, [*reachable, f"{key}=here/below"]))


def test_a_misspelt_stage_is_answered_with_the_likely_one(config: RunConfig) -> None:
    with pytest.raises(UsageError, match="did you mean tokenize"):
        chosen_stages(["tokenise"], config)


@pytest.mark.parametrize(
    ("name", "address", "reason"),
    [
        ("moon", None, "choose from .*local, ray"),
        ("rayy", None, "did you mean ray"),
        ("ray", None, "give the URL"),
        ("ray", "localhost:8265", "give the URL"),
        ("local", "http://127.0.0.1:8265", "address.*unknown key"),
    ],
)
def test_a_target_that_cannot_be_is_refused(name: str, address: str | None, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        open_target(*load_target(name, address=address))


def test_a_cluster_that_does_not_answer_is_an_error_with_its_address(small_config: Path) -> None:
    config = load_config(small_config, ["run=s3://b/run", "data.source.path=/pictures"])
    name, section = load_target("ray", address="http://127.0.0.1:1")
    target = open_target(name, section)
    assert isinstance(target, RayTarget)
    with pytest.raises(FoldtrainError, match=r"no Ray cluster can be used at http://127\.0\.0\.1:1"):
        target.check(submitting.new_job(["ingest"], config, section))


def test_the_table_shows_names_as_they_are() -> None:
    state = State(status="running", started=900.0, heartbeat=999.0)
    text = rendered([recorded("s3://b/[red]run", state)])
    assert [word for word in ("ingest-0a1b2c", "s3://b/[red]run", "running", "1m 40s") if word not in text] == []


def test_a_job_that_waits_has_no_duration() -> None:
    assert rendered([recorded("r", None)]).split()[-3:] == ["pending", "-", "-"]


def test_a_process_that_took_over_the_id_is_not_the_head(own_home: Path) -> None:
    own_home.mkdir()
    head = local_head.LocalHead("", "", "", os.getpid(), created=1.0, cpus=2, folder=str(own_home / "session"))
    local_head.state_file().write_text(json.dumps(asdict(head)))
    assert local_head.running() is None
    assert local_head.shutdown() is False


def test_without_a_local_cluster_a_job_of_one_is_lost(own_home: Path) -> None:
    target = open_target(*load_target("local"))
    assert target.state("ingest-0a1b2c").status == "lost"
    target.cancel("ingest-0a1b2c")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[local_head.LocalHead]:
    """A local head for the tests of this file; whatever it started ends with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOLDTRAIN_HOME", str(tmp_path_factory.mktemp("home")))
        started = local_head.start(cpus=2)
        first = psutil.Process(started.pid)
        try:
            yield started
        finally:
            tree = [first, *first.children(recursive=True)]
            local_head.shutdown()
        assert [left for left in tree if left.is_running() and left.status() != psutil.STATUS_ZOMBIE] == []
        assert not Path(started.folder).exists()


def write_pictures(folder: Path) -> None:
    """A class of a red picture, and one of a blue."""
    for name, colour in {"cat": "red", "dog": "blue"}.items():
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), colour).save(folder / name / "1.png")


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
class TestOnALocalHead:
    """Real jobs, one head."""

    def test_a_submitted_stage_runs_to_its_end(
        self, head: local_head.LocalHead, foldtrain: Foldtrain, small_config: Path, tmp_path: Path
    ) -> None:
        write_pictures(tmp_path / "pictures")
        hostile = "runs/a'b; touch pwned; `touch pwned` \"c"
        submitted = foldtrain("submit", str(small_config), f"run={json.dumps(hostile)}", "--stage", "ingest")
        assert submitted.returncode == 0, submitted.stderr
        job_id = submitted.stdout.split()[1].strip(";")
        followed = foldtrain("logs", "-f", job_id)
        assert followed.returncode == 0, followed.stderr
        assert all(f"{job_id}: pending" in line for line in followed.stderr.splitlines()), followed.stderr
        assert "ingest: done" in followed.stdout
        assert list((tmp_path / hostile / "images").rglob("manifest.json"))
        assert not list(tmp_path.rglob("pwned"))
        job = records.newest_job(str(tmp_path / hostile))
        assert (job.id, job.stages, job.status) == (job_id, ("ingest",), "succeeded")
        assert job.state is not None
        assert (job.state.done, job.state.exit_code) == ({"ingest": "done"}, 0)
        assert open_target(*load_target("local")).state(job_id).status == "succeeded"
        assert job_id in foldtrain("jobs").stdout

    def test_a_job_of_a_run_in_object_storage_has_its_record_and_log_there(
        self, head: local_head.LocalHead, foldtrain: Foldtrain, small_config: Path, tmp_path: Path, s3_uri: str
    ) -> None:
        write_pictures(tmp_path / "pictures")
        submitted = foldtrain("submit", "-f", str(small_config), f"run={s3_uri}", "--stage", "ingest")
        assert submitted.returncode == 0, submitted.stderr
        job = records.newest_job(s3_uri)
        assert (job.stages, job.status) == (("ingest",), "succeeded")
        assert "ingest: done" in logs.tail(job_folder(s3_uri, job.id))
        assert "ingest: done" in foldtrain("logs", s3_uri).stdout
        assert job.id in foldtrain("describe", s3_uri).stdout

    def test_following_a_job_that_fails_ends_with_1_and_its_reason(
        self, head: local_head.LocalHead, foldtrain: Foldtrain, small_config: Path
    ) -> None:
        done = foldtrain("submit", "-f", str(small_config), "data.source.path=no/such/folder", "--stage", "ingest")
        assert done.returncode == 1
        assert "no/such/folder" in done.stdout
        assert re.search(r"ingest-\w{6} failed: .*no/such/folder", done.stderr)
        assert "Traceback" not in done.stdout + done.stderr

    def test_an_unknown_job_ends_with_2(self, head: local_head.LocalHead, foldtrain: Foldtrain) -> None:
        done = foldtrain("logs", "ingest-000000")
        assert done.returncode == 2
        assert "no job ingest-000000 was submitted on this machine" in done.stderr

    def test_workers_of_a_job_take_over_its_variables(self, head: local_head.LocalHead, tmp_path: Path) -> None:
        code = "import os, ray\nfrom cluster.session.ray_processes import without_search_path\n"
        code += "ray.init(logging_level='ERROR', job_config=without_search_path())\n"
        code += "print('worker', ray.get(ray.remote(lambda: os.environ.get('AWS_PROBE')).remote()))"
        file = job_environment.hand_over(tmp_path / "jobs", "probe", {"AWS_PROBE": "is here"})
        runtime_env = {
            "env_vars": {job_environment.FILE_VARIABLE: str(file)},
            "worker_process_setup_hook": job_environment.SETUP_HOOK,
        }
        job_id = self._submit_command(head, shlex.join([sys.executable, "-P", "-c", code]), runtime_env)
        assert "worker is here" in self._printed(head, job_id)

    def test_a_job_saves_when_ray_ends_it_and_when_a_word_in_its_run_stops_it(
        self, head: local_head.LocalHead, small_config: Path, tmp_path: Path
    ) -> None:
        name, section = load_target("local")
        target, config = open_target(name, section), load_config(small_config, [f"run={tmp_path / 'run'}"])
        jobs = [submitting.new_job(["ingest"], config, section) for _ in range(2)]
        for job in jobs:
            argv = (job.argv[0], "-P", "-c", JOB_PROCESS, *job.argv[-2:])
            submitting.start(target, replace(job, argv=argv), section)
        for job in jobs:
            self._until(job.id, job.run, lambda record: "at work" in logs.tail(job_folder(record.run, record.id)))
        killed, stopped = (records.read_job(job.run, job.id) for job in jobs)
        target.cancel(killed.id)
        assert stopping.stop(stopped, now=False, tell=lambda _: None) == "stopped"
        ended = self._until(killed.id, killed.run, lambda record: record.state and record.state.ended)
        assert ended.state is not None
        assert (ended.status, ended.state.last_lines[-1]) == ("preempted", "saves a checkpoint")
        assert self._ended(head, stopped.id).status == "succeeded"  # to Ray: it is not to be started again
        assert self._ended(head, killed.id).status == "stopped"

    def test_a_job_is_ended_by_the_scheduler_and_one_that_it_does_not_know_is_lost(
        self, head: local_head.LocalHead
    ) -> None:
        job_id = self._submit_command(head, f"{sys.executable} -c 'import signal; signal.pause()'")
        ray = RayJobs(head.dashboard, head.headers)
        ray.cancel(job_id)
        assert self._ended(head, job_id).status == "stopped"
        assert ray.state("ingest-000000").status == "lost"

    def test_the_head_refuses_whoever_has_no_token(self, head: local_head.LocalHead) -> None:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with pytest.raises(urllib.error.HTTPError) as caught:
            direct.open(f"{head.dashboard}/api/jobs/", timeout=30)
        assert caught.value.code == 401

    def test_only_this_user_reads_the_token(self, head: local_head.LocalHead) -> None:
        files = [local_head.state_file(), Path(head.folder, "token")]
        assert [file.stat().st_mode & 0o077 for file in files] == [0, 0]
        assert Path(head.folder).stat().st_mode & 0o777 == 0o700  # around Ray's own, which it opens to everybody

    def test_the_next_job_uses_the_same_head(self, head: local_head.LocalHead) -> None:
        assert local_head.start(cpus=1) == head

    def test_a_job_that_needs_more_cpus_than_the_head_has_is_refused(
        self, head: local_head.LocalHead, config: RunConfig
    ) -> None:
        wide = config.model_copy(update={"cluster": ClusterConfig(workers=head.cpus, cpus_per_worker=2)})
        name, section = load_target("local")
        with pytest.raises(UsageError, match="foldtrain shutdown"):
            open_target(name, section).check(submitting.new_job(["ingest"], wide, section))

    @staticmethod
    def _submit_command(head: local_head.LocalHead, command: str, runtime_env: dict[str, Any] | None = None) -> str:
        from ray.job_submission import JobSubmissionClient

        client = JobSubmissionClient(head.dashboard, headers=head.headers)
        return str(client.submit_job(entrypoint=command, runtime_env=runtime_env))

    @staticmethod
    def _printed(head: local_head.LocalHead, job_id: str) -> str:
        from ray.job_submission import JobSubmissionClient

        TestOnALocalHead._ended(head, job_id)
        return str(JobSubmissionClient(head.dashboard, headers=head.headers).get_job_logs(job_id))

    @staticmethod
    def _ended(head: local_head.LocalHead, job_id: str) -> TargetState:
        ended = Retrying(
            retry=retry_if_result(lambda state: state.status in {"pending", "running"}), wait=wait_fixed(0.2)
        )
        return ended(RayJobs(head.dashboard, head.headers).state, job_id)

    @staticmethod
    def _until(job_id: str, run: str, is_so: Callable[[JobRecord], object]) -> JobRecord:
        waiting = Retrying(retry=retry_if_result(lambda record: not is_so(record)), wait=wait_fixed(0.1))
        return waiting(records.read_job, run, job_id)
