"""What would make a stage fit into a device's memory: the settings that cost least time come first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trainer.config import TrainerConfig
from trainer.planning.activations import Attention
from trainer.planning.workload import Workload

MARGIN = 0.92
"""Share of a device's memory that may be planned for; the rest is for fragmentation and what is not counted."""
BASE_BYTES = 1_500_000_000
"""CUDA's context, kernels and NCCL's buffers, about."""
_BUCKET = 50_000_000


@dataclass(frozen=True)
class Remedy:
    """Settings that would make it fit."""

    settings: dict[str, Any]
    """Of the trainer."""
    bytes: int
    """What a rank would need then."""
    why: str
    """What it does, and costs."""


def needed(workload: Workload, trainer: TrainerConfig, world: int, attention: Attention) -> int:
    """Bytes on the device, with the base."""
    return workload.memory(trainer, world, attention).device_bytes + BASE_BYTES


def cheapest_remedy(workload: Workload, world: int, attention: Attention, limit: float) -> Remedy | None:
    """The first of the settings below, added to one another in their order, with which it fits; None if none helps."""
    for settings, why in _attempts(workload.trainer, world):
        trainer = TrainerConfig.model_validate(workload.trainer.model_dump() | settings)
        size = needed(workload, trainer, world, attention)
        if size <= MARGIN * limit:
            return Remedy(settings, size, why)
    return None


def _attempts(trainer: TrainerConfig, world: int) -> Iterator[tuple[dict[str, Any], str]]:
    settings: dict[str, Any] = {}
    zero = trainer.extra.get("zero_optimization", {})
    if trainer.zero_stage and "reduce_bucket_size" not in zero:
        settings["extra"] = trainer.extra | {"zero_optimization": zero | {"reduce_bucket_size": _BUCKET}}
        yield dict(settings), "a smaller reduce bucket, which costs next to nothing"
    if trainer.zero_stage < 2:
        settings |= {"zero_stage": 2}
        settings["extra"] = trainer.extra | {"zero_optimization": zero | {"reduce_bucket_size": _BUCKET}}
        yield dict(settings), "gradients and optimizer state shared out over the ranks"
    micro, _ = trainer.split_over(world)
    smaller = [size for size in range(micro - 1, 0, -1) if micro % size == 0]
    for size in smaller:
        yield settings | {"micro_batch": size}, "smaller micro-batches, accumulated: the same result, somewhat slower"
    if not trainer.activation_checkpointing:
        for size in (micro, *smaller):
            checkpointed = (
                settings | {"activation_checkpointing": True} | ({"micro_batch": size} if size < micro else {})
            )
            yield checkpointed, "blocks computed twice: about a third more time"
        settings |= {"activation_checkpointing": True}
    settings |= {"micro_batch": 1} if micro > 1 else {}
    if trainer.offload == "none":
        yield settings | {"zero_stage": max(2, trainer.zero_stage), "offload": "optimizer"}, "the optimizer on the host"
    shared = {"stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": _BUCKET // 5}
    extra = trainer.extra | {"zero_optimization": zero | {"reduce_bucket_size": _BUCKET} | shared}
    yield settings | {"zero_stage": 3, "extra": extra}, "weights shared out, too, and gathered for each layer"
