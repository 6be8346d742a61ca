"""What is made part by part of a plan, by Ray's pool or in this process: with the same lease, progress and record."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.config.run import ClusterConfig
from cluster.pool.pool_progress import PoolProgress
from cluster.pool.ray_pool import PoolSize, WorkerNeeds
from cluster.pool.shard_pool import OnMade, PoolSettings, Shards, make_shards
from cluster.pool.shard_worker import MakeShard, ShardWork
from data_pipeline.leases.lease import Lease


@dataclass(frozen=True)
class PartsLeft:
    """Parts of a plan that are still to be made."""

    label: str
    """The stage, for messages."""
    folder: str
    """URI; where the parts go."""
    parts: int
    """Of the whole plan."""
    images: int
    """Of the whole plan."""
    left: Shards
    """The parts to be made."""
    on_made: OnMade
    """Called with the number of a part and what making it gave."""

    def progress(self) -> PoolProgress:
        """How far the plan has come."""
        numbers = self.left.numbers
        done = self.images - sum(self.left.images(part) for part in numbers.tolist())
        return PoolProgress(
            self.label, self.folder, self.parts, self.images, self.parts - len(numbers), done, unit="part"
        )


def make_here(make: MakeShard, parts: PartsLeft, lease: Lease) -> None:
    """In this process, one after the other."""
    with parts.progress() as progress:
        for part in parts.left.numbers.tolist():
            lease.require()
            parts.on_made(part, make(part, lambda _images: None))
            progress.add(parts.left.images(part))
            progress.show_done()


def make_on_pool(work: ShardWork, parts: PartsLeft, cluster: ClusterConfig, lease: Lease) -> None:
    """By workers of the Ray cluster that this process is connected to.

    Raises:
        UsageError: what a worker says of something that concerns every part.
        FoldtrainError: if parts failed too often; all others are made then. If Ray's head is lost.
    """
    settings = PoolSettings(
        label=parts.label,
        output=parts.folder,
        size=PoolSize(cluster.fewest_workers, cluster.most_workers),
        needs=WorkerNeeds(cluster.cpus_per_worker, cluster.gpus_per_worker),
        require=lease.require,
    )
    with parts.progress() as progress:
        make_shards(work, parts.left, settings, progress, parts.on_made)
