"""Credentials reach a job through a file of this user's alone, and nothing else carries them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.config.loading import load_config
from cluster.jobs.submitting import new_job
from cluster.session import job_environment, local_head
from cluster.targets.opening import load_target, open_target
from cluster.targets.own_variables import not_sent
from cluster.targets.ray import RayJobs
from cluster.targets.target import JobSpec, TargetState, TargetStatus
from data_pipeline.errors import FoldtrainError

SECRET = "do-not-show-51f0"


class Client:
    """Ray's job API, as far as it is asked to submit."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: dict[str, Any] = {}
        self._error = error

    def submit_job(self, **asked: Any) -> str:
        self.asked = asked
        if self._error:
            raise self._error
        return str(asked["submission_id"])


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    client = Client()
    monkeypatch.setattr(RayJobs, "_client", lambda _: client)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    return client


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> local_head.LocalHead:
    (tmp_path / "head").mkdir(mode=0o700)
    head = local_head.LocalHead("127.0.0.1:1", "http://127.0.0.1:1", "t", 1, 0.0, 2, str(tmp_path / "head"))
    monkeypatch.setattr(local_head, "start", lambda _: head)
    monkeypatch.setenv("FOLDTRAIN_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir(mode=0o700)
    return head


def job(config: Path, target: str, *overrides: str, stage: str = "ingest", address: str | None = None) -> JobSpec:
    return new_job([stage], load_config(config, overrides), load_target(target, address=address)[1])


def files() -> Path:
    return local_head.home() / "variables"


def test_a_job_on_this_machine_gets_credentials_through_a_file_that_ray_knows_by_its_path_alone(
    client: Client, head: local_head.LocalHead, small_config: Path
) -> None:
    job_id = open_target(*load_target("local")).start(job(small_config, "local"))
    file = files() / f"{job_id}.json"
    assert SECRET not in repr(client.asked)
    assert client.asked["runtime_env"]["env_vars"] == {job_environment.FILE_VARIABLE: str(file)}
    assert client.asked["runtime_env"]["worker_process_setup_hook"] == job_environment.SETUP_HOOK
    assert json.loads(file.read_text())["AWS_SECRET_ACCESS_KEY"] == SECRET
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_job_that_is_not_taken_leaves_no_credentials(
    client: Client, head: local_head.LocalHead, small_config: Path
) -> None:
    client._error = RuntimeError("full")
    with pytest.raises(FoldtrainError, match="does not take the job: full"):
        open_target(*load_target("local")).start(job(small_config, "local"))
    assert list(files().iterdir()) == []


def test_the_next_job_removes_the_credentials_that_a_killed_one_left_and_no_others(
    client: Client, head: local_head.LocalHead, small_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: dict[str, TargetStatus] = {"killed": "failed", "stopped": "stopped", "runs": "running"}
    monkeypatch.setattr(RayJobs, "state", lambda _, name: TargetState(states.get(name, "lost")))
    for name in (*states, "is submitted by another command", "of a head before"):
        job_environment.hand_over(files(), name, {"AWS_PROFILE": "old"})
    os.utime(files() / "of a head before.json", (1, 1))
    monkeypatch.setattr(local_head, "start", lambda _: replace(head, created=2.0))
    job_id = open_target(*load_target("local")).start(job(small_config, "local"))
    kept = {path.stem for path in files().iterdir()}
    assert kept == {job_id, "runs", "is submitted by another command"}


def test_a_secret_that_a_target_names_reaches_a_job_of_this_machine_in_the_same_file(
    client: Client, head: local_head.LocalHead, small_config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("extends: package:cluster/local.yaml\nsecrets: [MY_KEY]\nenvironment: {YEAR: 2012}\n")
    target, spec = open_target(*load_target(str(own))), job(small_config, str(own))
    with pytest.raises(FoldtrainError, match=r"MY_KEY: named in `secrets` of the target and not set"):
        target.check(spec)
    monkeypatch.setenv("MY_KEY", SECRET)
    assert target.check(spec) == []
    target.start(spec)
    assert json.loads((files() / f"{spec.id}.json").read_text())["MY_KEY"] == SECRET
    assert client.asked["runtime_env"]["env_vars"]["YEAR"] == "2012"
    [rendered] = target.render(spec)
    assert json.loads(rendered.text) == client.asked
    assert SECRET not in rendered.text


def test_a_job_on_a_cluster_is_sent_none_and_submit_says_which_are_set_here(client: Client, small_config: Path) -> None:
    address = "http://127.0.0.1:1"
    spec = job(
        small_config,
        "ray",
        "run=s3://b/run",
        "data.source.path=/pictures",
        stage="train-generator",
        address=address,
    )
    target = open_target(*load_target("ray", address=address))
    said = " ".join(target.check(spec))
    target.start(spec)
    assert SECRET not in repr(client.asked)
    assert client.asked["runtime_env"] == {}
    assert shlex.split(client.asked["entrypoint"]) == [
        "python",
        "-P",
        "-m",
        "cluster.job_process",
        "s3://b/run",
        spec.id,
    ]
    assert "AWS_SECRET_ACCESS_KEY: set here for s3:// and not sent; the cluster's nodes need their own" in said
    assert "WANDB_API_KEY" in said
    assert SECRET not in said


@pytest.mark.parametrize(
    ("stage", "override", "named"),
    [
        ("ingest", "run=s3://b/run", ["AWS_A", "AWS_B"]),
        ("ingest", "run=/run", []),
        ("ingest", "data.source.path=hf://datasets/a/b", ["HF_TOKEN"]),
        ("train-generator", "run=/run", ["WANDB_API_KEY"]),
        ("train-generator", "tracking.wandb=off", []),
        ("tokenize", "tokens.output=s3://b/tokens", ["AWS_A", "AWS_B"]),
        (
            "train-tokenizer",
            "teacher={timm: vit_small, trainer: {steps: 1, global_batch: 8}}",
            ["HF_TOKEN", "WANDB_API_KEY"],
        ),
    ],
)
def test_only_what_a_stage_needs_is_named(
    small_config: Path, monkeypatch: pytest.MonkeyPatch, stage: str, override: str, named: list[str]
) -> None:
    monkeypatch.setattr("data_pipeline.storage.places.require_package", lambda _: None)
    environment = dict.fromkeys(["AWS_B", "AWS_A", "HF_TOKEN", "WANDB_API_KEY", "PATH"], SECRET)
    said = " ".join(not_sent(stage, load_config(small_config, [override]), environment))
    assert sorted(name for name in environment if name in said) == named
    assert SECRET not in said


def test_a_process_of_the_job_takes_the_variables_over_and_removes_the_file_at_its_end(tmp_path: Path) -> None:
    file = job_environment.hand_over(
        tmp_path / "jobs", "config-1", {"FOLDTRAIN_STORAGE_PATIENCE": "1", "AWS_A": SECRET}
    )
    code = (
        "import os, sys; from cluster import job_process; sys.argv[1:] = ['run', 'config-000001']\n"
        "from cluster.jobs import runner\n"
        "runner.Runner.run = lambda _: print(os.environ['AWS_A'], flush=True) or 0\n"
        "job_process.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {job_environment.FILE_VARIABLE: str(file)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{SECRET}\n"
    assert not file.exists()


def test_a_worker_that_starts_when_the_job_has_ended_goes_on_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(job_environment.FILE_VARIABLE, str(tmp_path / "gone.json"))
    job_environment.take_over()


def test_a_file_that_others_may_write_is_not_taken_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = job_environment.hand_over(tmp_path / "jobs", "a", {"AWS_A": SECRET})
    file.chmod(0o666)
    monkeypatch.setenv(job_environment.FILE_VARIABLE, str(file))
    with pytest.raises(FoldtrainError, match="not this user's alone"):
        job_environment.take_over()


def test_the_head_is_started_without_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", SECRET)
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    assert SECRET not in shlex.join(local_head._environment(tmp_path / "token").values())


@pytest.mark.parametrize("mode", [0o777, 0o755, 0o700])
def test_the_folder_of_the_state_file_is_closed_to_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: int
) -> None:
    monkeypatch.setenv("FOLDTRAIN_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home").chmod(mode)
    assert local_head.shutdown() is False
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700


def test_a_state_file_that_others_may_write_ends_no_process_and_removes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FOLDTRAIN_HOME", str(tmp_path))
    local_head.state_file().write_text("{}")
    local_head.state_file().chmod(0o666)
    with pytest.raises(FoldtrainError, match="not this user's alone"):
        local_head.shutdown()


def test_a_folder_for_the_state_file_that_cannot_be_made_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FOLDTRAIN_HOME", str(tmp_path / "file" / "below"))
    with pytest.raises(FoldtrainError, match="set FOLDTRAIN_HOME"):
        local_head.start(1)
