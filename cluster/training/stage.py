"""A training stage on Ray: workers that find each other, and are started again when one dies.

`cluster.workers: MIN:MAX` makes it elastic. A worker or a node is lost: it starts again with those that are left, from
the last checkpoint. There is room for more: the workers end with a checkpoint, and it starts again with all.
`foldtrain scale` makes any stage elastic while it runs (size_control.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from cluster.alerts.alerts import Alerts
from cluster.alerts.rules import Found
from cluster.config.run import ClusterConfig
from cluster.pool.scale import clear_scale
from cluster.progress.training_progress import Follower, follow_training, has_ended
from cluster.session.head_watch import HeadLostError, watch_head
from cluster.session.ray_folder import ray_folder
from cluster.session.ray_processes import own_raylet_has_ended
from cluster.session.ray_session import is_connected, ray_session, require_gpus
from cluster.terminal.output import console
from cluster.training.size_control import SizeControl
from data_pipeline.errors import UsageError
from data_pipeline.leases.lease import only_driver
from trainer.checkpoints.catalog import latest_step
from trainer.job import TrainJob
from trainer.loop.ending import Ending

_LAST_SECONDS = 90.0
"""How long the command waits for the last checkpoint of workers that have lost Ray's head."""


@dataclass(frozen=True)
class Trained:
    """What a call of `train` came to."""

    step: int
    """Steps that are done."""
    ending: Ending
    """Finished or stopped."""
    noticed: bool
    """Whether the command was told to end."""


def train(
    job: TrainJob,
    cluster: ClusterConfig,
    preflight: Callable[[], frozenset[str]] = frozenset,
    alerts: Alerts | None = None,
) -> Trained | None:
    """Train what the job names, from its newest checkpoint on, until it is finished or told to stop.

    Args:
        job: the stage.
        cluster: what workers need, and how many there may be.
        preflight: called before the workers are started: looks at the nodes, raises if they are not fit for it, and
            gives Ray's ids of those that are to be left out.
        alerts: are shown the records of the stage, and told of what it loses; None for nobody.

    Returns:
        What it came to; None if the stage is finished already.

    Raises:
        UsageError: if the folder holds a run with other settings, or the batch does not fit the workers.
        LeaseHeldError: if another driver trains it.
        FoldtrainError: as a worker raised it; the workers are not started again for it, except for storage that was
            away (`max_failures` times).
    """
    if job.is_finished():
        return None
    control = _control(job, cluster)
    if control.is_elastic:
        micro = control.applied(job).section.trainer.micro_batch
        console().print(f"{job.stage}: elastic, {_listed(control.sizes)} workers; micro batch {micro}")
    asked, alerts = _asked_at(), alerts or Alerts((), job.folder, job.stage)
    with follow_training(job, asked, alerts.look) as shown, ray_session(cluster):
        require_gpus(cluster, cluster.fewest_workers)
        with only_driver(job.folder, f"training of {job.stage}") as lease:
            if job.is_finished():  # by another driver, whose end this one has waited for
                return None
            return _train(replace(job, lease=lease.claim), cluster, control, shown, asked, preflight(), alerts)


def _asked_at() -> float:
    """Unix time, in seconds, at which this stage was asked for: as the command, or as a stage of a pipeline."""
    import psutil

    in_pipeline = is_connected()
    return time.time() if in_pipeline else float(psutil.Process().create_time())


def _listed(sizes: Sequence[int]) -> str:
    *others, last = map(str, sizes)
    return f"{', '.join(others)} or {last}" if others else last


def _control(job: TrainJob, cluster: ClusterConfig) -> SizeControl:
    """Numbers of workers that can be used."""
    trainer, fewest, most = job.section.trainer, cluster.fewest_workers, cluster.most_workers
    control = SizeControl(job.folder, trainer, cluster)
    if control.sizes:
        return control
    if not cluster.is_elastic:
        try:
            trainer.split_over(most)
        except ValueError as error:
            raise UsageError(f"{job.stage}: {error} (cluster.workers)") from None
    micro = f" in micro batches of {trainer.micro_batch}" if trainer.micro_batch else ""
    raise UsageError(
        f"{job.stage}: trainer.global_batch {trainer.global_batch} cannot be cut{micro} over any number of workers "
        f"from {fewest} to {most} (cluster.workers)"
    )


def _train(
    job: TrainJob,
    cluster: ClusterConfig,
    control: SizeControl,
    shown: Follower,
    asked: float,
    without: frozenset[str],
    alerts: Alerts,
) -> Trained:
    """As `train`, on the Ray that is connected."""
    from cluster.session.head_nodes import HeadNodes, own_node
    from cluster.training.notices import Notice
    from cluster.training.supervision import Supervisor

    def lost(what: str) -> None:
        alerts.tell(Found("node-lost", what))

    notice, since = Notice(), time.time()
    watch = watch_head(lambda: notice.end_without_head(_wait_for_workers(job, since)))
    try:
        with ray_folder() as folder, notice, shown.telling(notice), watch:
            nodes, own = HeadNodes(), own_node()
            ending, step = Supervisor(job, cluster, control, notice, nodes, folder, asked, without, lost, own).run()
    except KeyboardInterrupt:
        console().print(f"{job.stage}: interrupted; the same command goes on from its last checkpoint")
        raise
    if ending is Ending.FINISHED:
        clear_scale(job.folder)
        return Trained(step, ending, notice.received)
    return Trained(latest_step(job.checkpoints) or 0, Ending.STOPPED, noticed=True)


def _wait_for_workers(job: TrainJob, since: float) -> HeadLostError:
    """Wait until the workers have ended by themselves, as they do without Ray's head. Returns what there is to say.

    Args:
        job: the stage.
        since: unix time at which it was started here, seconds.
    """
    lost = "Ray's head (GCS, or the raylet beside it)"
    console().print(f"{job.stage}: {lost} no longer answers: the workers save a checkpoint if they can, and end")
    waiting = Retrying(
        retry=retry_if_result(lambda ended: not ended), stop=stop_after_delay(_LAST_SECONDS), wait=wait_fixed(0.5)
    )
    try:
        waiting(lambda: has_ended(job, since) or own_raylet_has_ended())
        state = "no worker is at work"
    except RetryError:
        state = f"the workers did not say within {_LAST_SECONDS:.0f} s that they ended"
    step = latest_step(job.checkpoints)
    newest = "there is no checkpoint" if step is None else f"the newest checkpoint is that of step {step}"
    return HeadLostError(
        f"{job.stage}: {lost} was lost, killed or cut off; {state}, {newest}. The same command goes on from "
        "there; if it joins a cluster (cluster.address, RAY_ADDRESS), start that cluster's head again first."
    )
