"""Rows of images on the pool, or in this process: a worker holds images and networks, and commits rows part by part.

Nothing of an image passes through Ray. What is committed decides what is left, so a driver or a worker may die at any
instant, and another number of workers goes on. Numbers are computed from the rows, in the order of the images: so they
have the same digits whoever measured them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.config.run import ClusterConfig
from cluster.pool.parts import PartsLeft, make_here, make_on_pool
from cluster.pool.sampling import software_of
from cluster.pool.scale import clear_scale
from cluster.pool.shard_pool import Shards
from cluster.pool.shard_worker import Advance, MakeShard
from cluster.session.ray_session import ray_session, require_gpus
from data_pipeline.leases.lease import Lease, only_driver
from trainer.evaluation.measures import LABEL, Measure, Rows
from trainer.evaluation.row_files import (
    FinishedRows,
    PartFacts,
    Parts,
    RowPlan,
    StoredRows,
    begin,
    digest_pixels,
    read_finished,
    write_part,
)
from trainer.evaluation.sets import ImageSet

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class MeasureWork:
    """What a worker does."""

    plan: RowPlan
    images: ImageSet
    measure: Measure
    gpus: int = 0
    """GPUs that each worker reserves, 0 or 1."""

    def open(self, threads: int) -> MakeShard:
        """Open the images and load the networks.

        Raises:
            UsageError: if they are others than the plan was made for; or this worker reserves a GPU, and sees none.
        """
        import torch

        from trainer.engine.device import given_device

        torch.set_num_threads(threads)
        return self.on(given_device(self.gpus))

    def on(self, device: torch.device) -> MakeShard:
        """As `open`, on a device."""
        plan = self.plan
        reader, measured = self.images.open(device), self.measure.open(device)
        software = software_of(device)

        def make(part: int, advance: Advance) -> dict[str, Any]:
            start, stop = plan.span(part)
            batches: list[Rows] = []
            pixels = hashlib.sha256()
            for first in range(start, stop, plan.batch):
                last = min(first + plan.batch, stop)
                pixels_BHWC, label_B = reader.read(first, last)
                pixels.update(bytes.fromhex(digest_pixels(pixels_BHWC)))
                batches.append(measured(pixels_BHWC, label_B, first) | {LABEL: label_B.astype(np.int64)})
                advance(last - first)
            rows = {name: np.concatenate([each[name] for each in batches]) for name in batches[0]}
            return write_part(plan, part, rows, pixels.hexdigest(), software).model_dump()

        return make


def measure_all(work: MeasureWork, by: ClusterConfig | torch.device, label: str = "evaluate") -> StoredRows:
    """Make all parts that are missing, and open the rows.

    Args:
        work: what to measure.
        by: a cluster, whose workers do it; or the device on which this process does.
        label: of the progress.

    Raises:
        UsageError: if the folder holds other rows.
        LeaseHeldError: if another driver makes them.
        FoldtrainError: if parts failed too often.
    """
    plan = work.plan
    finished = read_finished(plan)
    if finished is None and isinstance(by, ClusterConfig):
        with ray_session(by):
            require_gpus(by, min(by.fewest_workers, plan.parts))
            finished = _make(plan, label, lambda left, lease: make_on_pool(work, left, by, lease))
    elif finished is None:
        assert not isinstance(by, ClusterConfig), "one of the two"
        finished = _make(plan, label, lambda left, lease: make_here(work.on(by), left, lease))
    return StoredRows(plan, finished)


def _make(plan: RowPlan, label: str, make: Callable[[PartsLeft, Lease], None]) -> FinishedRows:
    with only_driver(plan.folder, "evaluate") as lease:
        finished = read_finished(plan)
        if finished is not None:  # by another driver, whose end this one has waited for
            return finished
        begin(plan)
        parts = Parts(plan)
        parts.look()
        if len(parts.missing):
            make(_left(parts, label), lease)
        lease.confirm()
        clear_scale(plan.folder)
        return parts.finish()


def _left(parts: Parts, label: str) -> PartsLeft:
    plan = parts.plan
    left = Shards(parts.missing, lambda part: f"part {part}", plan.size)
    return PartsLeft(
        label, plan.folder, plan.parts, plan.count, left, lambda _part, facts: parts.add(PartFacts(**facts))
    )
