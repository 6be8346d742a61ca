"""Memory of one rank, part by part, for ZeRO 0 to 3, by what DeepSpeed 0.19.8 allocates for this trainer.

DeepSpeed runs in float32 here (bf16 and fp16 are autocast around the forward pass), so weights, gradients and masters
have four bytes each. What is special:

* Stages 1 to 3 allocate the whole reduce bucket: `trainer.bucket_elements` and no more than the network has, unless
  `trainer.extra` says otherwise. On CUDA it is real memory, on a CPU only what is touched is.
* Stages 1 and 2 flatten a bucket that holds parts of several ranks: a copy of it for a moment.
* Stage 3 keeps a second copy of the partitioned weights as masters, and gradients in a buffer of their own. Gathered
  weights stay until backward if they are used again within `stage3_max_reuse_distance` elements (10^9), so a network
  below 500 million parameters is whole on every rank in the middle of a step. What is gathered ahead of its use
  (`stage3_prefetch_bucket_size`, 50 million elements at once) is there twice until its last layer is reached, while the
  next is on its way.

The peak is that of the largest of five moments: the end of forward, the begin of backward (the output's gradient), the
first gradients of weights (when stages 1 and 2 allocate the bucket), the reduction of gradients, the update.
Measured beside predicted: `python benchmarks/memory.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from trainer.config import TrainerConfig
from trainer.engine.settings import deepspeed_config

FP32 = 4
REDUCE_BUCKET = 500_000_000
AUTOCAST = "weights in 16 bits (autocast)"
PASSING = "activations that pass"
_ZERO0_BUCKET = 500_000_000  # elements that DeepSpeed's engine flattens at once for stage 0
_PERSISTENCE, _REUSE, _PREFETCH, _SUB_GROUP = 100_000, 1_000_000_000, 50_000_000, 1_000_000_000


@dataclass(frozen=True)
class Buckets:
    """Sizes of DeepSpeed's buffers, in elements."""

    reduce: int = REDUCE_BUCKET
    persistence: int = _PERSISTENCE
    reuse: int = _REUSE
    prefetch: int = _PREFETCH
    sub_group: int = _SUB_GROUP
    copies: int = 1
    """Of the reduce bucket: one is filled while the other travels."""

    @classmethod
    def of(cls, config: TrainerConfig, world: int, elements: int) -> Buckets:
        """As the DeepSpeed JSON of a network with so many elements has them."""
        zero: Mapping[str, Any] = deepspeed_config(config, world, elements)["zero_optimization"]
        return cls(
            int(zero.get("reduce_bucket_size", REDUCE_BUCKET)),
            int(zero.get("stage3_param_persistence_threshold", _PERSISTENCE)),
            int(zero.get("stage3_max_reuse_distance", _REUSE)),
            int(zero.get("stage3_prefetch_bucket_size", _PREFETCH)),
            int(zero.get("sub_group_size", _SUB_GROUP)),
            2 if zero["overlap_comm"] and config.zero_stage in {1, 2} else 1,
        )


@dataclass(frozen=True)
class Held:
    """Bytes of a micro-batch: without weights and their gradients, and without weights in 16 bits where not said."""

    kept: int
    """At the end of forward."""
    forward_peak: int
    """The most during forward."""
    backward_peak: int
    """The most during backward."""
    first_gradient: int
    """When the first gradient of a matrix is there."""
    casts: int
    """Weights in 16 bits, kept by autocast and by backward; they do not grow with the samples."""

    @property
    def peak(self) -> int:
        """The most at any time."""
        return max(self.kept, self.forward_peak, self.backward_peak)


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank."""

    device: dict[str, int]
    """Parts of the peak, by name; they add up to it."""
    host: dict[str, int]
    """Parts in the host's memory, if training is on another device."""
    moment: str
    """When the peak is: "forward", "backward", "first gradients", "reduce" or "update"."""

    @property
    def device_bytes(self) -> int:
        """The peak on the device."""
        return sum(self.device.values())

    @property
    def host_bytes(self) -> int:
        """In the host's memory."""
        return sum(self.host.values())


def snapshot_bytes(parameters: int, world: int, *, ema: bool) -> int:
    """What a rank copies for a checkpoint: its share of masters, two moments, and the moving average."""
    return FP32 * (3 + ema) * -(-parameters // world)


def rank_memory(
    weights: tuple[int, ...],
    config: TrainerConfig,
    world: int,
    held: Held,
    *,
    frozen: int = 0,
    batch: int = 0,
    touched_only: bool = False,
) -> RankMemory:
    """Predict the peak of one rank.

    Args:
        weights: elements of each parameter that is trained.
        config: how it is trained.
        world: ranks.
        held: of one micro-batch.
        frozen: bytes of networks that are not trained: a teacher, a quantizer.
        batch: bytes of the rank's share of a global batch, and of what is made of it before the network.
        touched_only: count a buffer as far as it is used, as a CPU's memory does; if not, as far as it is allocated.

    Raises:
        ValueError: if the global batch cannot be cut into equal micro-batches over the ranks.
    """
    _, accumulation = config.split_over(world)
    buckets = Buckets.of(config, world, sum(weights))
    if touched_only:
        buckets = replace(buckets, reduce=min(buckets.reduce, sum(weights)), copies=1)
    states = _states(weights, config, world, buckets)
    passing = _passing(held)
    phases = {
        "forward": _forward(weights, config, buckets, passing),
        "backward": passing | _gradients_so_far(weights, config, world, buckets, accumulation),
        "first gradients": _first_gradients(weights, config, world, buckets, accumulation, held),
        "reduce": _reducing(weights, config, world, buckets, passing),
        "update": _updating(weights, config, world, buckets),
    }
    moment = max(phases, key=lambda name: sum(phases[name].values()))
    host = {"checkpoint snapshot": snapshot_bytes(sum(weights), world, ema=config.ema_decay > 0)}
    if config.offload == "optimizer":
        for name in ("master weights", "AdamW moments"):
            host[name] = states.pop(name)
        # Stages 1 and 2 stage the updated weights on the host, and their gradients are there in any case.
        host["gradients"] = FP32 * _share(weights, world) * (2 if config.zero_stage < 3 else 1)
    parts = states | {"frozen networks": frozen, "batch": batch}
    for name, size in phases[moment].items():
        parts[name] = parts.get(name, 0) + size
    return RankMemory({name: size for name, size in parts.items() if size}, host, moment)


def _share(weights: tuple[int, ...], world: int) -> int:
    return -(-sum(weights) // world)


def _states(weights: tuple[int, ...], config: TrainerConfig, world: int, buckets: Buckets) -> dict[str, int]:
    """What a rank holds from the first step to the last."""
    whole, share = FP32 * sum(weights), FP32 * _share(weights, world)
    ema = share if config.ema_decay > 0 else 0
    if config.zero_stage == 0:
        return {"weights": whole, "AdamW moments": 2 * whole, "moving average": ema}
    states = {"weights": whole, "master weights": share, "AdamW moments": 2 * share, "moving average": ema}
    if config.zero_stage == 3:
        small = FP32 * sum(weight for weight in weights if weight < buckets.persistence)
        states |= {"weights": share + small, "gradients": share, "reduce bucket": FP32 * buckets.reduce}
    return states


def _passing(held: Held) -> dict[str, int]:
    """What the begin of backward holds of one micro-batch."""
    return {"activations": held.kept, PASSING: held.peak - held.kept, AUTOCAST: held.casts}


def _gathered(weights: tuple[int, ...], buckets: Buckets) -> int:
    """Bytes of weights that ZeRO 3 has whole at the begin of backward."""
    large = sum(weight for weight in weights if weight >= buckets.persistence)
    largest = max(weights)
    return FP32 * min(large, buckets.reuse // 2 + buckets.prefetch + largest)


def _forward(
    weights: tuple[int, ...], config: TrainerConfig, buckets: Buckets, passing: dict[str, int]
) -> dict[str, int]:
    """The end of the network and the loss: only in stage 3, which gathers weights, it holds more than backward."""
    if config.zero_stage < 3:
        return {}
    gathered = _gathered(weights, buckets)
    ahead = min(gathered, 2 * FP32 * buckets.prefetch)
    return passing | {"gathered weights": gathered, "weights gathered ahead": ahead}


def _gradients_so_far(
    weights: tuple[int, ...], config: TrainerConfig, world: int, buckets: Buckets, accumulation: int
) -> dict[str, int]:
    """Gradients of earlier micro-batches, and buffers, while the last micro-batch begins its backward pass."""
    earlier = accumulation > 1
    if config.zero_stage == 3:
        return {"gathered weights": _gathered(weights, buckets)}
    if config.zero_stage == 2:
        return {"gradients": earlier * FP32 * _share(weights, world)}
    return {"gradients": earlier * FP32 * sum(weights)}


def _first_gradients(
    weights: tuple[int, ...], config: TrainerConfig, world: int, buckets: Buckets, accumulation: int, held: Held
) -> dict[str, int]:
    """Right after the last layer's backward: its gradient is there, the output's is gone."""
    parts = {"activations": held.first_gradient, AUTOCAST: held.casts}
    parts |= _gradients_so_far(weights, config, world, buckets, accumulation)
    parts["gradients"] = parts.get("gradients", 0) + FP32 * max(weights)
    return parts | ({"reduce bucket": FP32 * buckets.reduce * buckets.copies} if config.zero_stage in {1, 2} else {})


def _reducing(
    weights: tuple[int, ...], config: TrainerConfig, world: int, buckets: Buckets, passing: dict[str, int]
) -> dict[str, int]:
    """The reduction of gradients: after backward in stages 0 and 1, in the course of it in stages 2 and 3."""
    total, share = sum(weights), _share(weights, world)
    if config.zero_stage == 0:
        return {"gradients": FP32 * total, "gradients, flattened": FP32 * min(total, _ZERO0_BUCKET)}
    full = min(total, buckets.reduce)
    bucket = {"reduce bucket": FP32 * buckets.reduce * buckets.copies, "bucket, flattened": FP32 * full}
    if config.zero_stage == 1:
        return bucket | {"gradients": FP32 * (total - full + (share if full < total else 0))}
    left = 1 - full / total  # of backward, when the first bucket is full
    kept = {name: int(left * passing[name]) for name in ("activations", AUTOCAST) if name in passing}
    if config.zero_stage == 2:
        return bucket | kept | {"gradients": FP32 * share}
    gathered = int(left * _gathered(weights, buckets))
    return kept | {"bucket, flattened": FP32 * full, "gathered weights": gathered}


def _updating(weights: tuple[int, ...], config: TrainerConfig, world: int, buckets: Buckets) -> dict[str, int]:
    """The optimizer's step: gradients, and in stages 1 to 3 their flat copy."""
    share = _share(weights, world)
    if config.zero_stage == 0:
        return {"gradients": FP32 * sum(weights)}
    flat = {"gradients, flattened": FP32 * min(share, buckets.sub_group)}
    return flat if config.zero_stage == 3 else flat | {"gradients": FP32 * share}
