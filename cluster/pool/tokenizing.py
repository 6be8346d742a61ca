"""Tokenize on the pool: a worker holds the tokenizer, reads its shards' images from storage, commits the tokens there.

No image passes through Ray. What is committed decides what is left, so a driver or a worker may die at any instant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cluster.config.run import RunConfig
from cluster.pool.pool_progress import PoolProgress
from cluster.pool.ray_pool import PoolSize, Shard, WorkerNeeds
from cluster.pool.scale import clear_scale
from cluster.pool.shard_pool import PoolSettings, make_shards
from cluster.pool.shard_worker import Advance, MakeShard
from cluster.progress.stage_records import record_config, record_place
from cluster.session.ray_session import ray_session, require_gpus
from data_pipeline import storage
from data_pipeline.leases.lease import Lease, only_driver
from data_pipeline.shards import weights
from data_pipeline.tokens.tokenizing import PlannedShard, TokenPlan, finish, missing, plan_tokens
from data_pipeline.tools.preflight import check_images


@dataclass(frozen=True)
class TokenizeWork:
    """What a worker does."""

    plan: TokenPlan
    tokenizer: str
    """URI of its export."""
    gpus: int
    """GPUs that each worker reserves, 0 or 1."""

    def open(self, threads: int) -> MakeShard:
        """Load the tokenizer, and the indexes of the image shards.

        Raises:
            UsageError: if this worker reserves a GPU, and sees none.
        """
        import torch

        from data_pipeline.node.host_memory import keep_freed_memory
        from data_pipeline.shards.image_shards import ImageShards
        from data_pipeline.tokens.tokenizing import load_encoder, tokenize_shard
        from trainer.engine.device import given_device

        torch.set_num_threads(threads)
        device = given_device(self.gpus)
        if device.type == "cpu":
            keep_freed_memory()
        images = ImageShards(self.plan.images)
        encode = load_encoder(self.plan, self.tokenizer, str(device))

        def make(shard: PlannedShard, advance: Advance) -> dict[str, Any]:
            tokenize_shard(self.plan, shard, images, encode, advance, threads)
            return {}

        return make


def tokenize(config: RunConfig) -> int:
    """Make all token shards that are missing, then the manifest.

    Returns:
        Images tokenized by this call.

    Raises:
        UsageError: if images or tokenizer are not there, or the output holds other tokens.
        LeaseHeldError: if another driver makes them.
        FoldtrainError: if shards failed too often.
    """
    images, tokenizer = (storage.absolute(config.product(name)) for name in ("images", "tokenizer"))
    output = storage.absolute(config.folder("tokens"))
    check_images(images)
    plan = plan_tokens(images, weights.read_card(tokenizer, "tokenizer"), config.tokens, output, config.data.fit)
    left = _left(plan)
    if left:
        with ray_session(config.cluster):
            require_gpus(config.cluster, min(config.tokens.min_workers, len(left)))
            with only_driver(plan.output, "tokenize") as lease:
                left = _left(plan)  # another driver, whose end this one has waited for, may have made some
                if left:
                    record_config(config, "tokens")
                    _make(TokenizeWork(plan, tokenizer, config.cluster.gpus_per_worker), left, config, lease)
    if not left:
        record_place(config, "tokens")
    finish(plan)
    clear_scale(output)
    return sum(shard.images for shard in left)


def _left(plan: TokenPlan) -> list[Shard]:
    return [Shard(shard.name, shard.stop - shard.start, shard) for shard in missing(plan)]


def _make(work: TokenizeWork, left: list[Shard], config: RunConfig, lease: Lease) -> None:
    plan, images = work.plan, sum(shard.images for shard in left)
    settings = PoolSettings(
        label="tokenize",
        output=plan.output,
        size=PoolSize(config.tokens.min_workers, config.tokens.max_workers),
        needs=WorkerNeeds(config.cluster.cpus_per_worker, config.cluster.gpus_per_worker),
        max_attempts=config.tokens.max_attempts,
        patience=config.tokens.patience_seconds,
        require=lease.require,
    )
    done = len(plan.shards) - len(left)
    progress = PoolProgress("tokenize", plan.output, len(plan.shards), plan.samples, done, plan.samples - images)
    with progress:
        make_shards(work, left, settings, progress)
