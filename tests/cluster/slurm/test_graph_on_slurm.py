"""A whole run as one job on a real Slurm, by the commands of a user: submitted, preempted, requeued, finished."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.drills import lines, write_config
from tests.cluster.slurm.slurm_cluster import SlurmCluster

pytestmark = [pytest.mark.drill, pytest.mark.xdist_group("slurm")]
_SECONDS = 900.0
_STAGES = "ingest,train-teacher,train-tokenizer,tokenize,train-generator,sample"
_SHORT = ["tokenizer.trainer.steps=12", "teacher.trainer.steps=10", "generator.trainer.steps=300"]


def until(is_so: Callable[[], Any]) -> Any:
    """What `is_so` says once it is anything."""
    deadline = time.monotonic() + _SECONDS
    while not (found := is_so()):
        assert time.monotonic() < deadline, "nothing has come of it"
        time.sleep(0.2)
    return found


def foldtrain(*words: str, code: int = 0) -> str:
    """What a command prints."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "cluster.cli", *words], capture_output=True, text=True, env=os.environ
    )
    print(f"$ foldtrain {' '.join(words)}\n{done.stdout}{done.stderr}")  # pytest -s: what docs/clusters/slurm.md shows
    assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def target_file(folder: Path, **fields: Any) -> str:
    path = folder / "team.yaml"
    asked = {
        "extends": "package:cluster/slurm.yaml",
        "cpus_per_node": 2,
        "memory_per_node": 2,
        "python": sys.executable,
    }
    path.write_text(yaml.safe_dump(asked | {"grace_seconds": 120} | fields))
    return str(path)


def test_a_preempted_run_goes_on_in_its_next_allocation_and_is_whole(
    slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOLDTRAIN_HOME", str(tmp_path / "home"))
    config, run = write_config(tmp_path), tmp_path / "run"
    said = foldtrain("submit", str(config), *_SHORT, "--target", target_file(tmp_path), "--stage", _STAGES, "-y")
    [job] = [path.name for path in (run / "jobs").iterdir() if (path / "job.json").exists()]
    assert f"submitted {job}" in said
    assert "to start at" in said  # Slurm's word
    assert job in foldtrain("jobs", str(run))

    generator = run / "generator"
    until(lambda: len(lines(generator / "metrics.jsonl")) > 3)
    number = slurm.run("squeue", "--noheader", "--format=%i").strip()
    slurm.run("scancel", "--batch", "--signal=USR1", number)  # as before the time limit
    until(lambda: slurm.run("squeue", "--noheader", "--format=%T", f"--jobs={number}").strip() == "PENDING")
    first = len(lines(generator / "metrics.jsonl"))
    assert 3 < first < 300
    assert "preempted" in foldtrain("describe", str(run))
    slurm.run("scontrol", "update", f"JobId={number}", "StartTime=now")  # without its two minutes
    shown = foldtrain("logs", "-f", str(run))

    assert "generator" in shown
    assert [record["step"] for record in lines(generator / "metrics.jsonl")] == list(range(1, 301))
    foldtrain("ledger", "audit", str(run))
    state = json.loads((run / "jobs" / job / "state.json").read_text())
    assert (state["status"], state["attempt"], [each["status"] for each in state["earlier"]]) == (
        "succeeded",
        2,
        ["preempted"],
    )
    until(lambda: not slurm.run("squeue", "--noheader"))
