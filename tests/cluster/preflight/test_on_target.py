"""The doctor on a target: started as any job, and what it found comes back through the run's folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.config.loading import load_config
from cluster.config.run import RunConfig
from cluster.preflight import on_target
from cluster.preflight.examining import Examined
from cluster.preflight.findings import Finding
from cluster.preflight.on_target import examine_on
from cluster.session.job_environment import FILE_VARIABLE, hand_over
from cluster.targets.local import LocalConfig
from cluster.targets.target import JobSpec, Rendered, TargetState
from data_pipeline import storage
from data_pipeline.errors import FoldtrainError, UsageError

ROOT = Path(__file__).resolve().parents[3]
SECTION = LocalConfig(python=sys.executable)


class Subprocesses:
    """A scheduler that starts a job's command on this machine, or something in its place."""

    name = "toy"

    def __init__(self, *instead: str) -> None:
        self._instead, self.jobs, self.cancelled = instead, dict[str, subprocess.Popen[bytes]](), list[str]()

    def check(self, job: JobSpec) -> list[str]:
        return [f"{job.id} will run here"]

    def render(self, job: JobSpec) -> list[Rendered]:
        return [Rendered("command", " ".join(job.argv))]

    def start(self, job: JobSpec) -> str:
        self.argv = job.argv
        variables = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        self.jobs["1"] = subprocess.Popen(self._instead or job.argv, env=variables, cwd="/")
        return "1"

    def state(self, handle: str) -> TargetState:
        code = self.jobs[handle].poll()
        if code is None:
            return TargetState("running")
        return TargetState("failed" if code else "succeeded", f"exit code {code}")

    def cancel(self, handle: str) -> None:
        self.cancelled.append(handle)
        self.jobs[handle].kill()


@pytest.fixture
def config(small_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.chdir(tmp_path)
    return load_config(str(small_config), [])


@pytest.mark.slow
def test_what_the_nodes_of_a_target_find_comes_back_and_leaves_nothing_behind(
    config: RunConfig, tmp_path: Path
) -> None:
    target, said = Subprocesses(), list[str]()
    examined = examine_on(target, SECTION, config, said.append)
    assert {found.check for found in examined.findings} >= {"versions", "disk", "storage", "conditional write"}
    assert [found for found in examined.findings if found.level == "error"] == []
    assert said[0].endswith("will run here")
    assert target.argv[:4] == (sys.executable, "-P", "-m", "cluster.preflight.process")
    assert not (tmp_path / "runs" / "small").exists()


def test_the_doctor_of_a_job_has_the_variables_that_were_handed_over_and_leaves_none_behind(tmp_path: Path) -> None:
    file = hand_over(tmp_path / "variables", "doctor-0a1b2c", {"FOLDTRAIN_STORAGE_PATIENCE": "of the shell"})
    command = [sys.executable, "-P", "-m", "cluster.preflight.process", "memory://bucket/run", "doctor-0a1b2c", "1"]
    variables = os.environ | {FILE_VARIABLE: str(file), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=variables, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "FOLDTRAIN_STORAGE_PATIENCE" in done.stderr
    assert "of the shell" in done.stderr
    assert not file.exists()


def test_a_job_that_ends_without_a_word_is_an_error_with_the_schedulers_own(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_target, "_AFTER_END_SECONDS", 0.0)
    monkeypatch.setattr(on_target, "_LOOK_SECONDS", 0.01)
    target = Subprocesses("false")
    with pytest.raises(FoldtrainError, match=r"nothing came back from 1, which is failed \(exit code 1\)"):
        examine_on(target, SECTION, config, print)


def test_a_job_that_is_not_started_in_time_is_cancelled(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_target, "_LOOK_SECONDS", 0.01)
    target = Subprocesses("sleep", "600")
    with pytest.raises(FoldtrainError, match="which is running"):
        examine_on(target, SECTION, config, print, seconds=0.05)
    assert target.cancelled == ["1"]
    target.jobs["1"].wait()


def test_what_the_other_side_could_not_do_is_told(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_target, "_LOOK_SECONDS", 0.01)

    class Refused(Subprocesses):
        def start(self, job: JobSpec) -> str:
            folder = on_target.folder_of(job.run, job.id)
            storage.write_json(f"{folder}/found.json", {"error": "no module named x"})
            return super().start(job)

    with pytest.raises(FoldtrainError, match="the doctor failed there: no module named x"):
        examine_on(Refused("true"), SECTION, config, print)


def test_a_record_is_read_as_it_was_written() -> None:
    examined = Examined([Finding("a", "disk", "error", "full", "free some space")], ["a"], 1.5)
    assert Examined.from_json(examined.to_json(), "found.json") == examined


@pytest.mark.parametrize("found", [[], {"findings": [{"node": 1}], "nodes": [], "seconds": 1}, {"findings": 3}, None])
def test_a_record_that_is_none_is_refused(found: object) -> None:
    with pytest.raises(UsageError, match=r"found\.json is no record of the doctor"):
        Examined.from_json(found, "found.json")


def test_a_level_that_there_is_not_is_refused() -> None:
    record = Examined([Finding("a", "disk", "error", "full")], ["a"], 1.5).to_json()
    record["findings"][0]["level"] = "fine"
    with pytest.raises(UsageError, match="no record of the doctor"):
        Examined.from_json(record, "found.json")
