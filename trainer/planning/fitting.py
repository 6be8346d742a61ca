"""Whether a stage fits into a device's memory and its host's, and what would make it: what costs least time first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trainer.config import TrainerConfig
from trainer.planning.memory import RankMemory
from trainer.planning.workload import Workload

MARGIN = 0.92
"""Share of a device's memory that may be planned for; the rest is for fragmentation and what is not counted."""
BASE_BYTES = 1_500_000_000
"""CUDA's context, kernels and NCCL's buffers, about."""
PROCESS_BYTES = 3_000_000_000
"""Of a rank's process in its host's memory, about: libraries, batches on their way, CUDA's own share."""
_BUCKET = 10_000_000


@dataclass(frozen=True)
class Remedy:
    """Settings that would make it fit."""

    settings: dict[str, Any]
    """Of the trainer."""
    bytes: int
    """What a rank would need then."""
    why: str
    """What it does, and costs."""


@dataclass(frozen=True)
class HostFit:
    """Whether the memory of a node suffices for all of its ranks."""

    limit: float | None
    """Bytes of a node; None if unknown."""
    needed: int
    """Bytes of all ranks of a node, with their processes."""
    fits: bool | None
    remedy: Remedy | None = None
    """What would make it fit, if it does not."""


def on_device(memory: RankMemory) -> int:
    """Bytes of a rank on its device, with the base."""
    return memory.device_bytes + BASE_BYTES


def on_host(memory: RankMemory, device: str | None) -> int:
    """Bytes of a rank in its host's memory, with its process. On a CPU all of it is there."""
    return memory.host_bytes + PROCESS_BYTES + (0 if device else memory.device_bytes)


def fit_host(
    workload: Workload, ranks_per_node: int, device: str | None, limit: float | None, room: float | None
) -> HostFit:
    """Hold the ranks of a node against its memory.

    Args:
        workload: what is trained.
        ranks_per_node: of them on one node.
        device: name of the ranks' devices; None for CPUs.
        limit: bytes of a node; None if unknown.
        room: bytes of a device; None if unknown.
    """
    size = ranks_per_node * on_host(workload.memory(workload.trainer), device)
    if limit is None or size <= MARGIN * limit:
        return HostFit(limit, size, None if limit is None else True)
    if workload.trainer.offload == "none" or device is None:
        return HostFit(limit, size, fits=False)
    settings = {"offload": "none"}
    kept = workload.memory(workload.trainer.model_copy(update=settings))
    smaller = ranks_per_node * on_host(kept, device)
    fits = smaller <= MARGIN * limit and (room is None or on_device(kept) <= MARGIN * room)
    remedy = Remedy(settings, smaller, "the optimizer on the devices, which is faster, too") if fits else None
    return HostFit(limit, size, fits=False, remedy=remedy)


def cheapest_remedy(workload: Workload, limit: float, host_limit: float | None = None) -> Remedy | None:
    """The first of the settings below, added to one another in their order, with which it fits; None if none helps.

    Args:
        workload: what is trained.
        limit: bytes of a device.
        host_limit: bytes of its host for each rank; None if unknown.
    """
    for settings, why in _attempts(workload.trainer, workload.world):
        trainer = TrainerConfig.model_validate(workload.trainer.model_dump() | settings)
        memory = workload.memory(trainer)
        if host_limit is not None and memory.host_bytes + PROCESS_BYTES > MARGIN * host_limit:
            continue
        if on_device(memory) <= MARGIN * limit:
            return Remedy(settings, on_device(memory), why)
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
    shared = {"stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": _BUCKET}
    extra = trainer.extra | {"zero_optimization": zero | {"reduce_bucket_size": _BUCKET} | shared}
    yield settings | {"zero_stage": 3, "extra": extra}, "weights shared out, too, and gathered for each layer"
