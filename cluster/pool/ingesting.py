"""Ingest: on the pool, or in this process where there is so little to do that starting workers would take longer."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from cluster.config.run import RunConfig
from cluster.pool.pool_progress import PoolProgress
from cluster.pool.ray_pool import PoolSize, WorkerNeeds
from cluster.pool.scale import clear_scale
from cluster.pool.shard_pool import PoolSettings, Shards, make_shards
from cluster.pool.shard_worker import Advance, MakeShard
from cluster.progress.stage_records import record_config, record_place
from cluster.session.ray_session import ray_session
from cluster.terminal.output import console
from data_pipeline import storage
from data_pipeline.ingest.ingesting import (
    Commits,
    IngestPlan,
    PlannedShard,
    ShardInputs,
    describe,
    find_plan,
    find_sources,
    finish,
    look,
    plan_ingest,
    publish,
    write_shard,
)
from data_pipeline.ingest.shard_table import ShardTable
from data_pipeline.leases.lease import Lease, only_driver

FEW_IMAGES = 2_000
"""Fewer images than this take less time here than Ray and its workers take to start (5 to 10 seconds)."""


@dataclass(frozen=True)
class IngestWork:
    """What a worker does. It gets some tens of bytes of each shard of the plan, and reads the rows of its own."""

    inputs: ShardInputs
    shards: ShardTable

    def open(self, threads: int) -> MakeShard:  # noqa: ARG002 - images are read and checked one after the other
        """A function that writes a shard."""

        def make(number: int, advance: Advance) -> dict[str, Any]:
            written = write_shard(self.inputs, self.shards[number], advance)
            return {"bad": written.bad, "named": written.named}

        return make


def ingest(config: RunConfig) -> int:
    """Make all image shards that are missing, then the manifests.

    Returns:
        Images that were ingested by this call, or looked at and left out.

    Raises:
        UsageError: if the source is wrong, or the output holds another data set.
        LeaseHeldError: if another driver makes them.
        FoldtrainError: if too many images are bad, or shards failed too often.
    """
    output = storage.absolute(config.folder("images"))
    sources = find_sources(config.data, output, config.seed)
    plan = find_plan(config.data, output, config.seed, sources)
    commits = look(plan) if plan else None
    left: list[PlannedShard] = []
    if plan is None or commits is None or commits.left():
        with TemporaryDirectory(prefix="foldtrain-plan-") as aside:
            if plan is None and _holds_shards(output):  # another data set is refused before anything is written
                look(plan_ingest(config.data, output, config.seed, sources=sources, place=aside))
            with only_driver(output, "ingest") as lease:
                publish(aside, output, lease.require)
                plan = plan or plan_ingest(config.data, output, config.seed, lease.require, sources)
                commits = commits or Commits(plan)
                commits.look()  # another driver, whose end this one has waited for, may have made some
                commits.check_bad()
                left = commits.left()
                if left:
                    record_config(config, "images")
                    _make(plan, commits, left, config, lease)
    if not left:
        record_place(config, "images")
    done = finish(plan, commits)
    clear_scale(plan.output)
    console().print(f"ingest: {describe(plan, done)}", markup=False)
    return sum(shard.images for shard in left)


def _holds_shards(output: str) -> bool:
    return any(storage.exists(storage.join(output, split)) for split in ("train", "validation"))


def _make(plan: IngestPlan, commits: Commits, left: list[PlannedShard], config: RunConfig, lease: Lease) -> None:
    images = sum(shard.images for shard in left)
    done = len(plan.shards) - len(left)
    progress = PoolProgress("ingest", plan.output, len(plan.shards), plan.total, done, plan.total - images)
    few = len(left) == 1 or images < FEW_IMAGES
    with nullcontext() if few else ray_session(config.cluster), progress:
        if few:
            _make_here(plan, commits, left, progress, lease)
        else:
            _make_on_pool(plan, commits, left, config, progress, lease)


def _make_here(
    plan: IngestPlan, commits: Commits, left: list[PlannedShard], progress: PoolProgress, lease: Lease
) -> None:
    for shard in left:
        lease.require()
        written = write_shard(plan.inputs, shard)
        progress.add(shard.images)
        progress.show_done()
        commits.note(shard.number, written.bad, written.named)
        commits.check_bad()


def _make_on_pool(
    plan: IngestPlan,
    commits: Commits,
    left: list[PlannedShard],
    config: RunConfig,
    progress: PoolProgress,
    lease: Lease,
) -> None:
    settings = PoolSettings(
        label="ingest",
        output=plan.output,
        size=PoolSize(config.data.min_workers, config.data.max_workers),
        needs=WorkerNeeds(config.cluster.cpus_per_worker, 0),
        max_attempts=config.tokens.max_attempts,
        require=lease.require,
    )

    def made(number: int, facts: dict[str, Any]) -> None:
        commits.note(number, facts["bad"], facts["named"])
        commits.check_bad()

    def name(number: int) -> str:
        shard = plan.shards[number]
        return f"{shard.split}/{shard.name}"

    numbers = np.array([shard.number for shard in left], np.int64)
    shards = Shards(numbers, name, lambda number: plan.shards[number].images)
    make_shards(IngestWork(plan.inputs, plan.shards), shards, settings, progress, made)
