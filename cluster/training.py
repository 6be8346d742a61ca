"""A training stage on Ray Train: workers that find each other, and are started again when one dies."""

from __future__ import annotations

import tempfile
import uuid
from pathlib import Path
from typing import Any

from cluster.config import ClusterConfig
from cluster.progress import follow_training
from cluster.ray_session import ray_session
from data_pipeline.errors import UsageError
from trainer.job import TrainJob


def train(job: TrainJob, cluster: ClusterConfig) -> bool:
    """Train what the job names, from its newest checkpoint on; nothing if it is finished.

    Returns:
        Whether there was anything to do.

    Raises:
        UsageError: if the folder holds a run with other settings, or the batch does not fit the workers.
        FoldtrainError: as a worker raised it; the workers are not started again for it, except for storage that was
            away (`max_failures` times).
    """
    if job.is_finished():
        return False
    _check_batch(job, cluster)
    job.begin()
    with ray_session(cluster):
        _fit(job, cluster)
    return True


def _check_batch(job: TrainJob, cluster: ClusterConfig) -> None:
    try:
        job.section.trainer.split_over(cluster.workers)
    except ValueError as error:
        raise UsageError(f"{job.stage}: {error} (cluster.workers)") from None


def _fit(job: TrainJob, cluster: ClusterConfig) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from cluster.worker_errors import EndAtUserError, fit

    gpu = cluster.gpus_per_worker > 0
    resources = {"CPU": cluster.cpus_per_worker} | ({"GPU": cluster.gpus_per_worker} if gpu else {})
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": job, "threads": max(1, int(cluster.cpus_per_worker))},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=cluster.workers, use_gpu=gpu, resources_per_worker=resources),
        run_config=RunConfig(
            # Ray's own folder holds nothing that we need: our checkpoints say where to go on.
            name=f"{job.stage}-{uuid.uuid4().hex[:8]}",
            storage_path=str(Path(tempfile.gettempdir()) / "foldtrain-ray-train"),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            callbacks=[EndAtUserError()],  # type: ignore[list-item] # Ray's types name the class of its first version
        ),
    )
    with follow_training(job):
        fit(trainer)


def _worker(settings: dict[str, Any]) -> None:
    """On each Ray Train worker: torch.distributed is there, LOCAL_RANK is set by Ray alone (ray#37212)."""
    import os

    import ray.train.torch
    import torch

    os.environ.setdefault("LOCAL_RANK", str(ray.train.get_context().get_local_rank()))
    if torch.cuda.is_available():
        torch.cuda.set_device(ray.train.torch.get_device())
    torch.set_num_threads(settings["threads"])
    from trainer.stages import run_worker

    run_worker(settings["job"])
