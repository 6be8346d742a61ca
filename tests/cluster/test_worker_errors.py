"""An error that a user has to mend ends training on Ray at once, on all workers, and comes out as it was raised."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cluster.config.run import ClusterConfig
from cluster.session.ray_session import ray_session
from data_pipeline.errors import CorruptShardError, FoldtrainError, StorageAwayError
from tests.conftest import ROOT

MESSAGE = "shard images-0001.tar is damaged"


def fails_on_one_rank(settings: dict[str, Any]) -> None:
    """Rank 1 fails on each start; rank 0 waits for it in a collective."""
    import ray.train
    import torch
    import torch.distributed as dist

    rank = ray.train.get_context().get_world_rank()
    with (Path(settings["folder"]) / f"starts-{rank}").open("a") as file:
        file.write("x")
    if rank == 1:
        raise CorruptShardError(MESSAGE)
    dist.all_reduce(torch.zeros(1))


def train(folder: Path) -> None:
    with ray_session(ClusterConfig(cpus_per_worker=0.5)):
        # Ray reads its settings when it is imported, and `ray_session` sets them.
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        from cluster.session.worker_errors import EndAtUserError, fit

        trainer = TorchTrainer(
            fails_on_one_rank,
            train_loop_config={"folder": str(folder)},
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
            run_config=RunConfig(
                storage_path=str(folder / "ray"),
                failure_config=FailureConfig(max_failures=5),
                callbacks=[EndAtUserError()],
            ),
        )
        fit(trainer)


def test_storage_that_was_away_is_a_reason_to_start_again_unless_there_is_something_to_mend() -> None:
    from ray.train import WorkerGroupError

    from cluster.session.worker_errors import EndAtUserError, fit

    away, damaged = StorageAwayError("s3://bucket: timed out"), CorruptShardError(MESSAGE)
    EndAtUserError().after_exception(None, {0: RuntimeError("lost a peer"), 1: away})
    with pytest.raises(CorruptShardError):
        EndAtUserError().after_exception(None, {0: away, 1: damaged})

    class Exhausted:
        def fit(self) -> None:
            raise WorkerGroupError("all starts failed", {0: RuntimeError("lost a peer"), 1: away})

    with pytest.raises(FoldtrainError, match="timed out"):
        fit(Exhausted())


class Fails:
    """A trainer whose run ends with an error."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def fit(self) -> None:
        raise self._error


def test_a_process_that_ray_lost_is_told_in_a_sentence() -> None:
    from ray.exceptions import LocalRayletDiedError, NodeDiedError
    from ray.train import ControllerError, WorkerGroupError
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    from cluster.session.worker_errors import fit

    killed = NodeDiedError("its node has crashed\nmore of it")
    in_worker = UserExceptionWithTraceback(killed, "Traceback ...")
    for error in (killed, WorkerGroupError("lost", {1: in_worker}), ControllerError(killed)):
        with pytest.raises(FoldtrainError, match=r"Ray lost a process .*\(NodeDiedError\): its node has crashed\n"):
            fit(Fails(error))
    with pytest.raises(FoldtrainError, match="LocalRayletDiedError"):
        fit(Fails(LocalRayletDiedError()))


def test_a_bug_in_a_task_of_ray_stays_what_it_is() -> None:
    from ray.exceptions import RayTaskError
    from ray.train import WorkerGroupError

    from cluster.session.worker_errors import fit

    bug = RayTaskError("run", "Traceback ...", ValueError("a bug"))
    with pytest.raises(RayTaskError):
        fit(Fails(bug))
    with pytest.raises(WorkerGroupError):
        fit(Fails(WorkerGroupError("failed", {0: ValueError("a bug")})))


@pytest.mark.xdist_group("ray")
def test_an_error_that_a_user_has_to_mend_is_raised_as_it_was_after_one_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # workers have to find this file, too
    # In a process of its own: Ray keeps the token of the first cluster that a process started.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        error = process.submit(train, tmp_path).exception()
    assert isinstance(error, CorruptShardError)
    assert str(error) == MESSAGE
    assert [(tmp_path / f"starts-{rank}").read_text() for rank in (0, 1)] == ["x", "x"]
