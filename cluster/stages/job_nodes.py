"""Nodes for the workers that `foldtrain scale` asks for, where the scheduler of a job gives and takes them one by one.

Ray's autoscaler does it by itself on clouds and Kubernetes. On Slurm each further node is an allocation of its own,
which joins the Ray cluster of the job (cluster/targets/slurm.py).
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from cluster.config.loading import load_config
from cluster.config.run import RunConfig
from cluster.jobs.graph import standing, workers_of
from cluster.jobs.places import is_id, job_folder
from cluster.jobs.records import JobRecord, find_job, list_jobs, read_job
from cluster.pool.scale import STAGES, read_scale
from cluster.stages.planning import workers_per_node
from cluster.targets.config import TargetSection
from cluster.targets.opening import open_target, section_from
from data_pipeline import storage
from data_pipeline.errors import FoldtrainError, UsageError
from data_pipeline.storage.retries import patience
from data_pipeline.text.counted import counted

_ASIDE_SECONDS = 10.0
"""How long storage is waited for where the job does not depend on it."""


@runtime_checkable
class NodeTarget(Protocol):
    """A target whose jobs may get further nodes while they run."""

    def nodes(self, handle: str) -> int:
        """Nodes that a job has or has asked for."""

    def add_nodes(self, handle: str, count: int) -> str:
        """Ask for further ones."""

    def remove_nodes(self, handle: str, count: int) -> list[str]:
        """Have some that have joined leave again."""


def job_at_work(named: str) -> JobRecord | None:
    """The job that a user means: by its id, or the newest of a run that is at work; None if none is.

    Raises:
        UsageError: if there is no job of that id, or it has ended.
    """
    if is_id(named) and not storage.exists(named):
        record = find_job(named)
        if record.status != "running":
            raise UsageError(f"{named} is not at work: {record.status}{record.message and f' ({record.message})'}")
        return record
    if named.endswith((".yaml", ".yml")):
        return None
    running = [record for record in list_jobs(storage.absolute(named)) if record.status == "running"]
    return running[-1] if running else None


def adapt_job(record: JobRecord, most: int, *, may_grow: bool = True) -> str:
    """Have a job get the nodes that `most` workers need, if its scheduler gives them one by one. Returns what to say.

    Without `may_grow` it only gives back those that they do not need.

    Raises:
        FoldtrainError: if the scheduler does not do it.
    """
    if record.job is None or record.handle is None:
        return ""
    folder = job_folder(record.run, record.id)
    section = section_from(record.job.target_config, folder)
    target = open_target(record.job.target, section)
    if not isinstance(target, NodeTarget):
        return ""
    config = load_config(storage.join(folder, "config.yaml"))
    return adapt_nodes(target, section, config, record.handle, most, may_grow=may_grow)


def nodes_of_stage(run: str, job_id: str, config: RunConfig, stage: str) -> str:
    """Have a job get the nodes for the workers that `foldtrain scale` asked of a stage that it begins.

    The stage keeps that number until it is finished, but nodes that have joined leave with the allocation that they
    joined: that of a job that was requeued, or stopped and submitted again, has none of them. If nobody asked, those
    leave that joined for an earlier stage and of which this one has no use. What is not given is said, and stops
    nothing.

    Returns:
        What there is to say.
    """
    if stage not in STAGES:
        return ""
    try:
        with patience(_ASIDE_SECONDS):
            if standing(config, [stage])[0].is_skipped:
                return ""
            asked = read_scale(config.folder(STAGES[stage]))
            most = workers_of(config, stage)[1] if asked is None else asked[1]
            return adapt_job(read_job(run, job_id), most, may_grow=asked is not None)
    except (FoldtrainError, OSError) as error:
        return f"its nodes stay as they are: {error}"


def nodes_for(section: TargetSection, per_node: int, workers: int) -> int:
    """Nodes that so many workers need, within what the target's file allows a job."""
    return min(section.most_nodes, max(section.fewest_nodes, -(-workers // per_node)))


def adapt_nodes(
    target: object, section: TargetSection, config: RunConfig, handle: str, most: int, *, may_grow: bool = True
) -> str:
    """Ask for nodes for `most` workers, or give back those that they do not need. Returns what there is to say.

    Raises:
        UsageError: if the job has ended.
        FoldtrainError: if the scheduler does not do it.
    """
    if not isinstance(target, NodeTarget):
        return ""
    per_node = workers_per_node(config, section)
    if per_node is None and not may_grow:
        return ""
    if per_node is None:
        key = "gpus_per_node" if config.cluster.gpus_per_worker else "cpus_per_node"
        return f"the job keeps its nodes: its target does not say how many workers one has room for ({key})"
    wanted, now = nodes_for(section, per_node, most), target.nodes(handle)
    short = most - wanted * per_node
    over = f" (room for {wanted * per_node}: its target allows a job {section.most_nodes})" if short > 0 else ""
    if not may_grow and wanted >= now:
        return ""
    if wanted > now:
        target.add_nodes(handle, wanted - now)
        return f"{counted(wanted - now, 'more node is', 'more nodes are')} asked for, {wanted} in all{over}"
    if wanted < now:
        target.remove_nodes(handle, now - wanted)
        return f"{counted(now - wanted, 'node leaves', 'nodes leave')}, {counted(wanted, 'stays', 'stay')}{over}"
    return f"the job has the {counted(now, 'node')} that it needs{over}"
