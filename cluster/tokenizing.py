"""Tokenize on Ray Data: one item per planned shard, a pool of actors that hold the tokenizer.

No image passes through Ray: an actor reads its shard's images from storage and commits the tokens there. What is
committed decides what is left, so a driver or an actor may die at any instant. `foldtrain scale` writes control.json;
actors then hand back what they have not begun, and the pool is started again at the new size.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any

from cluster.config import RunConfig
from cluster.progress import ProgressLine
from cluster.ray_session import ray_session
from cluster.scale import read_scale
from cluster.terminal import duration
from data_pipeline import storage, weights
from data_pipeline.preflight import check_images
from data_pipeline.tokenizing import PlannedShard, TokenPlan, finish, missing, plan_tokens


@dataclass
class _Pool:
    """How many actors tokenize."""

    fewest: int
    most: int

    @classmethod
    def wanted(cls, output: str, config: RunConfig) -> _Pool:
        """What control.json asks for, or else the config."""
        asked = read_scale(output)
        return cls(asked, asked) if asked else cls(config.tokens.min_workers, max(config.tokens.max_workers, 1))


class ShardTokenizer:
    """An actor of the pool. Maps a planned shard to what became of it."""

    def __init__(self, plan: TokenPlan, tokenizer: str, pool_size: int, threads: int) -> None:
        import torch

        from data_pipeline.image_shards import ImageShards
        from data_pipeline.tokenizing import load_encoder

        torch.set_num_threads(threads)
        self._plan, self._pool_size = plan, pool_size
        self._images = ImageShards(plan.images)
        self._encode = load_encoder(plan, tokenizer, "cuda" if torch.cuda.is_available() else "cpu")

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Tokenize a shard, or hand it back (no images) if the pool is to have another size."""
        from data_pipeline.tokenizing import tokenize_shard

        asked = read_scale(self._plan.output)
        if asked is not None and asked != self._pool_size:
            return {"name": row["name"], "images": 0}
        shard = PlannedShard(row["name"], row["start"], row["stop"])
        tokenize_shard(self._plan, shard, self._images, self._encode)
        return {"name": row["name"], "images": shard.stop - shard.start}


@dataclass
class _Progress:
    """Shards and images done, on the terminal and in progress.json."""

    plan: TokenPlan
    done: int
    images: int = 0
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.line = ProgressLine("tokenize", "shards")

    def add(self, row: dict[str, Any], workers: int) -> None:
        """Count what an actor did, and show it."""
        if row["images"]:
            self.done += 1
            self.images += row["images"]
        rate = self.images / max(1e-9, time.monotonic() - self.started)
        left = sum(s.stop - s.start for s in self.plan.shards) * (1 - self.done / len(self.plan.shards))
        eta = left / rate if rate else 0.0
        self.line.update(
            self.done, len(self.plan.shards), f"{rate:.0f} images/s  ETA {duration(eta)}  {workers} workers"
        )
        record = {"time": time.time(), "shards_done": self.done, "shards": len(self.plan.shards), "workers": workers}
        record |= {"images_per_second": rate, "eta_seconds": eta}
        storage.write_json(storage.join(self.plan.output, "progress.json"), record)


def tokenize(config: RunConfig) -> int:
    """Make all token shards that are missing, then the manifest.

    Returns:
        Images tokenized by this call.

    Raises:
        UsageError: if images or tokenizer are not there, or the output holds other tokens.
    """
    images = storage.absolute(storage.join(config.folder("images"), "train"))
    tokenizer = storage.absolute(storage.join(config.folder("tokenizer"), "export"))
    output = storage.absolute(config.folder("tokens"))
    check_images(images)
    plan = plan_tokens(images, weights.read_card(tokenizer, "tokenizer"), config.tokens, output, config.data.fit)
    left = missing(plan)
    progress = _Progress(plan, done=len(plan.shards) - len(left))
    if left:
        with ray_session(config.cluster):
            while left:
                _run_pool(plan, tokenizer, left, config, progress)
                left = missing(plan)
    finish(plan)
    progress.line.close()
    return progress.images


def _run_pool(
    plan: TokenPlan, tokenizer: str, left: list[PlannedShard], config: RunConfig, progress: _Progress
) -> None:
    """One pool of actors, until the shards are done or another size is asked for."""
    import ray.data

    pool = _Pool.wanted(plan.output, config)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    items = [{"name": shard.name, "start": shard.start, "stop": shard.stop} for shard in left]
    results = ray.data.from_items(items, override_num_blocks=len(items)).map(
        ShardTokenizer,  # type: ignore[arg-type] # Ray Data takes a class whose instances are called
        fn_constructor_kwargs={
            "plan": plan,
            "tokenizer": tokenizer,
            "pool_size": pool.most,
            "threads": max(1, int(config.cluster.cpus_per_worker)),
        },
        compute=ray.data.ActorPoolStrategy(
            min_size=min(pool.fewest, len(items)),
            max_size=min(pool.most, len(items)),
            max_tasks_in_flight_per_actor=1,
        ),
        num_cpus=config.cluster.cpus_per_worker,
        num_gpus=config.cluster.gpus_per_worker or None,
    )
    for row in results.iter_rows():
        progress.add(row, min(pool.most, len(items)))
