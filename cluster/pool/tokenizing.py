"""Tokenize on the pool: a worker holds the tokenizer, reads its shards' images from storage, commits the tokens there.

No image passes through Ray: a worker gets the plan, which has the same size for any number of images, then numbers of
shards, and says what it has committed. What is committed decides what is left, so a driver or a worker may die at any
instant.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cluster.config.run import RunConfig
from cluster.pool.pool_progress import PoolProgress
from cluster.pool.ray_pool import PoolSize, WorkerNeeds
from cluster.pool.scale import clear_scale
from cluster.pool.shard_pool import PoolSettings, Shards, make_shards
from cluster.pool.shard_worker import Advance, MakeShard
from cluster.progress.stage_records import record_config, record_place
from cluster.session.ray_session import ray_session, require_gpus
from data_pipeline import storage
from data_pipeline.config import ReadingConfig
from data_pipeline.leases.lease import Lease, only_driver
from data_pipeline.shards import weights
from data_pipeline.shards.manifest import ImageManifest
from data_pipeline.tokens.commits import Commits, read_commits
from data_pipeline.tokens.plan import TokenPlan, plan_tokens
from data_pipeline.tokens.tokenizing import finish
from data_pipeline.tools.preflight import check_images
from data_pipeline.tools.reusing import plan_reuse


@dataclass(frozen=True)
class TokenizeWork:
    """What a worker does."""

    plan: TokenPlan
    tokenizer: str
    """URI of its export."""
    gpus: int
    """GPUs that each worker reserves, 0 or 1."""
    manifest: ImageManifest | None = None
    """Of the images; a worker without it reads it."""
    reading: ReadingConfig = field(default_factory=ReadingConfig)
    """Where a node keeps the index of the images."""

    def open(self, threads: int) -> MakeShard:
        """Load the tokenizer, and the indexes of the image shards.

        Raises:
            UsageError: if this worker reserves a GPU, and sees none.
        """
        import torch

        from data_pipeline.node.host_memory import keep_freed_memory
        from data_pipeline.node.node_cache import NodeCache
        from data_pipeline.shards.image_shards import ImageShards
        from data_pipeline.tokens.tokenizing import load_encoder, tokenize_shard
        from trainer.engine.device import given_device

        torch.set_num_threads(threads)
        device = given_device(self.gpus)
        if device.type == "cpu":
            keep_freed_memory()
        cache = NodeCache(self.reading.cache_dir, self.reading.cache_bytes)
        images = ImageShards(self.plan.images, self.manifest, index_cache=cache)
        encode = load_encoder(self.plan, self.tokenizer, str(device))

        def make(number: int, advance: Advance) -> dict[str, Any]:
            made = tokenize_shard(self.plan, self.plan.shards[number], images, encode, advance, threads)
            return {"size": made.shard.bytes, "sha256": made.shard.sha256, "software": made.software}

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
    manifest = check_images(images)
    card = weights.read_card(tokenizer, "tokenizer")
    if not config.tokens.reuse:
        plan = plan_tokens(images, card, config.tokens, output, config.data.fit)
        return _tokenize(plan, manifest, tokenizer, config)
    reuse = plan_reuse(images, card, config.tokens, output, config.data.fit)
    done = sum(_tokenize(plan, ImageManifest.read(plan.images), tokenizer, config) for plan in reuse.plans)
    reuse.finish()
    record_place(config, "tokens")
    return done


def _tokenize(plan: TokenPlan, manifest: ImageManifest, tokenizer: str, config: RunConfig) -> int:
    """Make what is missing of a plan for the images of a manifest. Returns the images tokenized by this call."""
    commits = read_commits(plan)
    left = commits.missing
    if len(left):
        with ray_session(config.cluster):
            require_gpus(config.cluster, min(config.tokens.min_workers, len(left)))
            with only_driver(plan.output, "tokenize") as lease:
                commits.refresh()  # another driver, whose end this one has waited for, may have made some
                left = commits.missing
                if len(left):
                    record_config(config, "tokens")
                    commits.remove_stale()
                    gpus, reading = config.cluster.gpus_per_worker, config.data.reading
                    _make(TokenizeWork(plan, tokenizer, gpus, manifest, reading), commits, config, lease)
                    commits.refresh()
    if not len(left):
        record_place(config, "tokens")
    finish(plan, commits)
    clear_scale(plan.output)
    return commits.images(left)


def _make(work: TokenizeWork, commits: Commits, config: RunConfig, lease: Lease) -> None:
    plan, left = work.plan, commits.missing
    settings = PoolSettings(
        label="tokenize",
        output=plan.output,
        size=PoolSize(config.tokens.min_workers, config.tokens.max_workers),
        needs=WorkerNeeds(config.cluster.cpus_per_worker, config.cluster.gpus_per_worker),
        max_attempts=config.tokens.max_attempts,
        patience=config.tokens.patience_seconds,
        require=lease.require,
    )
    shards = Shards(left, lambda number: plan.shards[number].name, lambda number: plan.shards[number].samples)
    done, images = len(plan.shards) - len(left), plan.samples - commits.images(left)

    def on_made(number: int, facts: dict[str, Any]) -> None:
        commits.add(number, **facts)

    with PoolProgress("tokenize", plan.output, len(plan.shards), plan.samples, done, images) as progress:
        make_shards(work, shards, settings, progress, on_made)
