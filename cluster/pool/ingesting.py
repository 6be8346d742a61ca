"""Ingest: on the pool, or in this process where there is so little to do that starting workers would take longer."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from cluster.config.run import RunConfig
from cluster.pool.pool_progress import PoolProgress
from cluster.pool.ray_pool import PoolSize, Shard, WorkerNeeds
from cluster.pool.scale import clear_scale
from cluster.pool.shard_pool import PoolSettings, make_shards
from cluster.pool.shard_worker import Advance, MakeShard
from cluster.progress.stage_records import record_config, record_place
from cluster.session.ray_session import ray_session
from cluster.terminal.output import console
from data_pipeline import storage
from data_pipeline.ingest.ingesting import (
    IngestPlan,
    PlannedShard,
    check_quarantine,
    describe,
    finish,
    missing,
    plan_ingest,
    write_shard,
)
from data_pipeline.leases.lease import Lease, only_driver
from data_pipeline.sources import ItemReader

FEW_IMAGES = 2_000
"""Fewer images than this take less time here than Ray and its workers take to start (5 to 10 seconds)."""

_CHECK_SECONDS = 30.0
"""Bad images of shards that are there already count, too; that means reading all indexes, so it is not done at once."""


@dataclass(frozen=True)
class IngestWork:
    """What a worker does. The images to read come with each shard, what reads them comes once."""

    readers: dict[str, ItemReader]
    output: str
    max_bad: int

    def open(self, threads: int) -> MakeShard:  # noqa: ARG002 - images are read and checked one after the other
        """A function that writes a shard."""

        def make(shard: PlannedShard, advance: Advance) -> dict[str, Any]:
            record = write_shard(self.readers[shard.split], shard, self.output, self.max_bad, advance)
            return {"bad": len(shard.items) - record.samples}

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
    plan = plan_ingest(config.data, storage.absolute(config.folder("images")), config.seed)
    left = missing(plan)
    if left:
        few = len(left) == 1 or sum(len(shard.items) for shard in left) < FEW_IMAGES
        with (
            nullcontext() if few else ray_session(config.cluster),
            only_driver(plan.output, "ingest") as lease,
        ):
            left = missing(plan)  # another driver, whose end this one has waited for, may have made some
            if left:
                record_config(config, "images")
                with _progress(plan, left) as progress:
                    (_make_here if few else _make_on_pool)(plan, left, config, progress, lease)
    if not left:
        record_place(config, "images")
    done = finish(plan)
    clear_scale(plan.output)
    console().print(f"ingest: {describe(plan, done)}", markup=False)
    return sum(len(shard.items) for shard in left)


def _progress(plan: IngestPlan, left: list[PlannedShard]) -> PoolProgress:
    images_left = sum(len(shard.items) for shard in left)
    done = len(plan.shards) - len(left)
    return PoolProgress("ingest", plan.output, len(plan.shards), plan.total, done, plan.total - images_left)


def _make_here(
    plan: IngestPlan, left: list[PlannedShard], _config: RunConfig, progress: PoolProgress, lease: Lease
) -> None:
    for shard in left:
        lease.require()
        record = write_shard(plan.readers[shard.split], shard, plan.output, plan.max_bad)
        progress.add(len(shard.items))
        progress.show_done()
        if record.samples < len(shard.items):
            check_quarantine(plan)


def _make_on_pool(
    plan: IngestPlan, left: list[PlannedShard], config: RunConfig, progress: PoolProgress, lease: Lease
) -> None:
    settings = PoolSettings(
        label="ingest",
        output=plan.output,
        size=PoolSize(config.data.min_workers, config.data.max_workers),
        needs=WorkerNeeds(config.cluster.cpus_per_worker, 0),
        max_attempts=config.tokens.max_attempts,
        require=lease.require,
    )

    bad, looked_at = 0, -_CHECK_SECONDS

    def check(facts: dict[str, Any]) -> None:
        nonlocal bad, looked_at
        bad += facts["bad"]
        now = time.monotonic()
        if bad > plan.max_bad or (facts["bad"] and now - looked_at >= _CHECK_SECONDS):
            looked_at = now
            check_quarantine(plan)

    shards = [Shard(f"{shard.split}/{shard.name}", len(shard.items), shard) for shard in left]
    work = IngestWork(plan.readers, plan.output, plan.max_bad)
    make_shards(work, shards, settings, progress, check)
