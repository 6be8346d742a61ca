"""From a config and stages to a job that its target has taken: recorded first, so that it finds what it is to do."""

from __future__ import annotations

import time
from collections.abc import Sequence

from cluster.config.absolute_paths import with_absolute_paths
from cluster.config.loading import resolved_yaml
from cluster.config.run import RunConfig
from cluster.jobs import control, places, records
from cluster.jobs.records import JobRecord, Submitted
from cluster.targets.config import TargetSection
from cluster.targets.opening import open_target, section_from
from cluster.targets.target import JobSpec, Target
from data_pipeline import storage
from data_pipeline.errors import UsageError

PROCESS = "cluster.job_process"


def new_job(stages: Sequence[str], config: RunConfig, section: TargetSection) -> JobSpec:
    """A job that is to run stages on a target. Nothing is written yet."""
    if section.same_machine:
        config = with_absolute_paths(config)
    run, job_id = storage.absolute(config.run), places.new_id(stages)
    argv = (section.python, "-P", "-m", PROCESS, run, job_id)
    return JobSpec(job_id, tuple(stages), config, run, argv)


def start(target: Target, job: JobSpec, section: TargetSection) -> str:
    """Record a job and hand it to its target. Returns the scheduler's id of it.

    A job that the target does not take leaves no record.

    Raises:
        FoldtrainError: if the run cannot be written to, or the target does not take the job.
    """
    submitted = Submitted(
        id=job.id,
        stages=job.stages,
        run=job.run,
        target=target.name,
        target_config=section.model_dump(mode="json"),
        submitted=time.time(),
        who=control.me(),
    )
    try:
        records.write_job(submitted, resolved_yaml(job.config))
        handle = target.start(job)
    except BaseException:
        records.remove_job(job.run, job.id)
        raise
    records.write_handle(job.run, job.id, handle)
    places.remember(job.run, job.id)
    return handle


def target_of(record: JobRecord) -> Target:
    """The target that a job was given to, by the config that is on record.

    Raises:
        UsageError: if the record cannot be read, or its kind of target is not installed here.
    """
    if record.job is None:
        raise UsageError(record.problem)
    where = f"the record of {record.id}"
    return open_target(record.job.target, section_from(record.job.target_config, where))


def grace_of(record: JobRecord) -> float:
    """Seconds that a job has to end, once it was told to."""
    found = record.job.target_config.get("grace_seconds") if record.job else None
    return float(found) if isinstance(found, int | float) else 120.0
