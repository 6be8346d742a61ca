"""Stages of one command share their workers, with the same results, and their driver loads neither torch nor pandas."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cluster.drills.drilled_training import write_training
from data_pipeline.errors import CorruptShardError, FoldtrainError
from tests.cluster.drills import lines

STEPS = 6


def train_all(config: str, runs: list[str], damaged: str) -> dict[str, Any]:
    """Three stages of one command, in a process of its own; returns what is seen of it."""
    from cluster.config.loading import load_config
    from cluster.session.ray_session import ray_session
    from cluster.stages.pipeline import run_stage
    from cluster.training import warm_workers

    def load(run: str, *more: str) -> Any:
        trainer = {"steps": STEPS, "checkpoint_every": STEPS, "zero_stage": 2}
        changes = [f"generator.trainer.{key}={value}" for key, value in trainer.items()]
        return load_config(config, [f"run={run}", "cluster.cpus_per_worker=0.5", *changes, *more])

    seen: dict[str, Any] = {"workers": [], "reservations": []}
    with ray_session(load(runs[0]).cluster):
        from ray.util.placement_group import placement_group_table

        for run in runs:
            run_stage("train-generator", load(run))
            (group,) = warm_workers._PARKED.values()
            seen["workers"].append([worker._actor_id.hex() for worker in group._workers])
            seen["reservations"].append([each["state"] for each in placement_group_table().values()])
        shard = Path(damaged) / "tokens-00000.tar"
        shard.write_bytes(b"\0" * shard.stat().st_size)
        try:
            run_stage("train-generator", load(damaged + "-run", f"tokens.output={damaged}"))
        except FoldtrainError as error:
            seen["error"] = error
    seen["modules"] = sorted({"torch", "pandas", "deepspeed"} & sys.modules.keys())
    return seen


@pytest.mark.xdist_group("ray")
def test_a_later_stage_takes_the_workers_of_an_earlier_one_with_the_same_results(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = write_training(tmp_path, seed=0)
    runs = [str(tmp_path / name) for name in ("cold", "warm")]
    damaged = tmp_path / "damaged"
    shutil.copytree(tmp_path / "tokens", damaged)
    for run in (*runs, f"{damaged}-run"):
        shutil.copytree(tmp_path / "tokenizer", Path(run) / "tokenizer" / "export")
    # In a process of its own: Ray keeps the token of the first cluster that a process started.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        seen = process.submit(train_all, str(config), runs, str(damaged)).result()
    assert seen["modules"] == []
    cold, warm = seen["workers"]
    assert len(cold) == 2
    assert cold == warm
    assert seen["reservations"] == [["REMOVED"], ["REMOVED", "REMOVED"]]
    losses = [[record["loss"] for record in lines(Path(run) / "generator" / "metrics.jsonl")] for run in runs]
    assert len(losses[0]) == STEPS
    assert losses[0] == losses[1]
    assert weights(runs[0]) == weights(runs[1])
    # What only a user can mend ends a stage after one start, although it could be started again.
    assert isinstance(seen["error"], CorruptShardError)
    assert "starts again" not in capfd.readouterr().out


def weights(run: str) -> str:
    """The digest of what was trained."""
    card = json.loads((Path(run) / "generator" / "export" / "card.json").read_text())
    return json.dumps(card["files"], sort_keys=True)
