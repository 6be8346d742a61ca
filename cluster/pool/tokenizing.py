"""Tokenize on the pool: a worker holds the tokenizer, reads its shards' images from storage, commits the tokens there.

No image passes through Ray: a worker gets the plan, which has the same size for any number of images, then numbers of
shards, and says what it has committed. What is committed decides what is left, so a driver or a worker may die at any
instant.

Images that were held out of training become tokens in the same way, a set of their own below the others (`held_out`),
by the same workers. The manifest of the training tokens is written last: where it is, the held-out tokens are complete.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

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
from data_pipeline.shards.weights import Card
from data_pipeline.tokens.commits import read_commits
from data_pipeline.tokens.plan import HELD_OUT, PlannedSets, TokenPlan, plan_tokens
from data_pipeline.tokens.tokenizing import finish
from data_pipeline.tools.preflight import check_images
from data_pipeline.tools.reusing import plan_reuse


@dataclass(frozen=True)
class TokenizeWork:
    """What a worker does."""

    plan: TokenPlan
    """Of the images that are trained on."""
    tokenizer: str
    """URI of its export."""
    gpus: int
    """GPUs that each worker reserves, 0 or 1."""
    manifest: ImageManifest | None = None
    """Of the images; a worker without it reads it."""
    reading: ReadingConfig = field(default_factory=ReadingConfig)
    """Where a node keeps the index of the images."""
    held_out: TokenPlan | None = None
    """Of the images that are not; its shards are numbered after those of `plan`."""

    @property
    def sets(self) -> PlannedSets:
        """Both."""
        return PlannedSets((self.plan,) if self.held_out is None else (self.plan, self.held_out))

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
        encode, sets = load_encoder(self.plan, self.tokenizer, str(device)), self.sets

        @functools.cache
        def images(which: int) -> ImageShards:
            return ImageShards(sets.plans[which].images, None if which else self.manifest, index_cache=cache)

        images(0)

        def make(number: int, advance: Advance) -> dict[str, Any]:
            which, _ = sets.place(number)
            made = tokenize_shard(sets.plans[which], sets.shard(number), images(which), encode, advance, threads)
            return {"size": made.shard.bytes, "sha256": made.shard.sha256, "software": made.software}

        return make


def tokenize(config: RunConfig, held_out: str | None = None) -> int:
    """Make all token shards that are missing, then the manifest.

    Args:
        config: of the run.
        held_out: URI of images that were held out of training, of which tokens are made, too; None for none.

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
        return _tokenize(plan, manifest, tokenizer, config, _plan_held_out(held_out, config, card, output))
    reuse = plan_reuse(images, card, config.tokens, output, config.data.fit)
    beside = _plan_held_out(held_out, config, card, output)
    plans = reuse.plans if beside is None else (*reuse.plans, beside)
    done = sum(_tokenize(plan, ImageManifest.read(plan.images), tokenizer, config) for plan in plans)
    reuse.finish()
    record_place(config, "tokens")
    return done


def _plan_held_out(images: str | None, config: RunConfig, card: Card, output: str) -> TokenPlan | None:
    """What is to be made of the held-out images; None if there are none."""
    if images is None or not check_images(images).samples:
        return None
    return plan_tokens(images, card, config.tokens, storage.join(output, HELD_OUT), config.data.fit)


class _Missing:
    """What is committed of some sets, and what is still to be made, their shards numbered through."""

    def __init__(self, sets: PlannedSets) -> None:
        self.sets, self.commits = sets, [read_commits(plan) for plan in sets.plans]

    @property
    def missing(self) -> npt.NDArray[np.int64]:
        """Numbers of the shards that are still to be made, ascending."""
        firsts = zip(self.sets.firsts, self.commits, strict=False)
        return np.concatenate([first + commits.missing for first, commits in firsts])

    def images(self, numbers: npt.NDArray[np.int64]) -> int:
        """Images of these shards in all."""
        firsts = self.sets.firsts
        own = [numbers[(numbers >= first) & (numbers < stop)] - first for first, stop in itertools.pairwise(firsts)]
        return sum(commits.images(some) for commits, some in zip(self.commits, own, strict=True))

    def add(self, number: int, **facts: Any) -> None:
        """A worker has committed a shard just now."""
        which, own = self.sets.place(number)
        self.commits[which].add(own, **facts)

    def refresh(self) -> None:
        """Look at storage again."""
        for commits in self.commits:
            commits.refresh()

    def remove_stale(self) -> None:
        """Delete records whose shards are gone."""
        for commits in self.commits:
            commits.remove_stale()

    def finish(self) -> None:
        """Write the manifests, that of the training tokens last."""
        for commits in reversed(self.commits):
            finish(commits.plan, commits)


def _tokenize(
    plan: TokenPlan, manifest: ImageManifest, tokenizer: str, config: RunConfig, held_out: TokenPlan | None = None
) -> int:
    """Make what is missing of a plan for the images of a manifest. Returns the images tokenized by this call."""
    gpus, reading = config.cluster.gpus_per_worker, config.data.reading
    work = TokenizeWork(plan, tokenizer, gpus, manifest, reading, held_out)
    there = _Missing(work.sets)
    left = there.missing
    if len(left):
        with ray_session(config.cluster):
            require_gpus(config.cluster, min(config.tokens.min_workers, len(left)))
            with only_driver(plan.output, "tokenize") as lease:
                there.refresh()  # another driver, whose end this one has waited for, may have made some
                left = there.missing
                if len(left):
                    record_config(config, "tokens")
                    there.remove_stale()
                    _make(work, there, config, lease)
                    there.refresh()
    if not len(left):
        record_place(config, "tokens")
    there.finish()
    clear_scale(plan.output)
    return there.images(left)


def _make(work: TokenizeWork, there: _Missing, config: RunConfig, lease: Lease) -> None:
    sets, left, output = work.sets, there.missing, work.plan.output
    settings = PoolSettings(
        label="tokenize",
        output=output,
        size=PoolSize(config.tokens.min_workers, config.tokens.max_workers),
        needs=WorkerNeeds(config.cluster.cpus_per_worker, config.cluster.gpus_per_worker),
        max_attempts=config.tokens.max_attempts,
        patience=config.tokens.patience_seconds,
        require=lease.require,
    )
    shards = Shards(left, sets.name, lambda number: sets.shard(number).samples)
    total, samples = sets.firsts[-1], sum(plan.samples for plan in sets.plans)
    done, images = total - len(left), samples - there.images(left)

    def on_made(number: int, facts: dict[str, Any]) -> None:
        there.add(number, **facts)

    with PoolProgress("tokenize", output, total, samples, done, images) as progress:
        make_shards(work, shards, settings, progress, on_made)
