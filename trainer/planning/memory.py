"""Memory of one rank, part by part, for ZeRO 0 to 3, by what DeepSpeed 0.19.8 allocates for this trainer.

DeepSpeed runs in float32 here (bf16 and fp16 are autocast around the forward pass), so weights, gradients and masters
have four bytes each. What is special:

* Stages 1 to 3 allocate the whole reduce bucket (`trainer.bucket_elements`, unless `trainer.extra` says
  otherwise: 2 GB), however small the network is. On CUDA it is real memory, on a CPU only what is touched is.
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
from trainer.planning.activations import Activations
from trainer.planning.shapes import Weights, count

FP32 = 4
REDUCE_BUCKET = 500_000_000
AUTOCAST = "weights in 16 bits (autocast)"
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
    def of(cls, config: TrainerConfig, world: int) -> Buckets:
        """As the config's DeepSpeed JSON has them."""
        zero: Mapping[str, Any] = deepspeed_config(config, world)["zero_optimization"]
        return cls(
            int(zero.get("reduce_bucket_size", REDUCE_BUCKET)),
            int(zero.get("stage3_param_persistence_threshold", _PERSISTENCE)),
            int(zero.get("stage3_max_reuse_distance", _REUSE)),
            int(zero.get("stage3_prefetch_bucket_size", _PREFETCH)),
            int(zero.get("sub_group_size", _SUB_GROUP)),
            2 if zero["overlap_comm"] and config.zero_stage in {1, 2} else 1,
        )


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
    weights: Weights,
    config: TrainerConfig,
    world: int,
    activations: Activations,
    *,
    frozen: int = 0,
    batch: int = 0,
    touched_only: bool = False,
) -> RankMemory:
    """Predict the peak of one rank.

    Args:
        weights: of what is trained.
        config: how it is trained.
        world: ranks.
        activations: of one sample.
        frozen: bytes of networks that are not trained: a teacher, a quantizer.
        batch: bytes of the rank's share of a global batch, and of what is made of it before the network.
        touched_only: count a buffer as far as it is used, as a CPU's memory does; if not, as far as it is allocated.

    Raises:
        ValueError: if the global batch cannot be cut into equal micro-batches over the ranks.
    """
    micro, accumulation = config.split_over(world)
    buckets = Buckets.of(config, world)
    if touched_only:
        buckets = replace(buckets, reduce=min(buckets.reduce, count(weights)), copies=1)
    states = _states(weights, config, world, buckets)
    passing = _passing(weights, config, activations, micro)
    phases = {
        "forward": _forward(weights, config, buckets, passing),
        "backward": passing | _gradients_so_far(weights, config, world, buckets, accumulation),
        "first gradients": _first_gradients(weights, config, world, buckets, accumulation, passing),
        "reduce": _reducing(weights, config, world, buckets, passing),
        "update": _updating(weights, config, world, buckets),
    }
    moment = max(phases, key=lambda name: sum(phases[name].values()))
    host = {"checkpoint snapshot": snapshot_bytes(count(weights), world, ema=config.ema_decay > 0)}
    if config.offload == "optimizer":
        for name in ("master weights", "AdamW moments"):
            host[name] = states.pop(name)
        # Stages 1 and 2 stage the updated weights on the host, and their gradients are there in any case.
        host["gradients"] = FP32 * _share(weights, world) * (2 if config.zero_stage < 3 else 1)
    parts = states | {"frozen networks": frozen, "batch": batch}
    for name, size in phases[moment].items():
        parts[name] = parts.get(name, 0) + size
    return RankMemory({name: size for name, size in parts.items() if size}, host, moment)


def _share(weights: Weights, world: int) -> int:
    return -(-count(weights) // world)


def _states(weights: Weights, config: TrainerConfig, world: int, buckets: Buckets) -> dict[str, int]:
    """What a rank holds from the first step to the last."""
    whole, share = FP32 * count(weights), FP32 * _share(weights, world)
    ema = share if config.ema_decay > 0 else 0
    if config.zero_stage == 0:
        return {"weights": whole, "AdamW moments": 2 * whole, "moving average": ema}
    states = {"weights": whole, "master weights": share, "AdamW moments": 2 * share, "moving average": ema}
    if config.zero_stage == 3:
        small = FP32 * sum(weight.numel for weight in weights if weight.numel < buckets.persistence)
        states |= {"weights": share + small, "gradients": share, "reduce bucket": FP32 * buckets.reduce}
    return states


def _passing(weights: Weights, config: TrainerConfig, activations: Activations, micro: int) -> dict[str, int]:
    """What the begin of backward holds of one micro-batch."""
    parts = {
        "activations": micro * (activations.blocks + activations.rest),
        "output, its softmax and gradient": 3 * _most_output(micro, activations),
        "block that is computed again": micro * activations.recomputed,
    }
    if config.half:
        parts[AUTOCAST] = 2 * sum(weight.numel for weight in weights if weight.multiplied)
    return parts


def _gathered(weights: Weights, buckets: Buckets) -> int:
    """Bytes of weights that ZeRO 3 has whole at the begin of backward."""
    large = sum(weight.numel for weight in weights if weight.numel >= buckets.persistence)
    largest = max(weight.numel for weight in weights)
    return FP32 * min(large, buckets.reuse // 2 + buckets.prefetch + largest)


def _forward(weights: Weights, config: TrainerConfig, buckets: Buckets, passing: dict[str, int]) -> dict[str, int]:
    """The last block: only in stage 3 it holds more than the begin of backward."""
    if config.zero_stage < 3:
        return {}
    gathered = _gathered(weights, buckets)
    ahead = min(gathered, 2 * FP32 * buckets.prefetch)
    kept = {name: size for name, size in passing.items() if not name.startswith("output")}
    return kept | {"gathered weights": gathered, "weights gathered ahead": ahead}


def _gradients_so_far(
    weights: Weights, config: TrainerConfig, world: int, buckets: Buckets, accumulation: int
) -> dict[str, int]:
    """Gradients of earlier micro-batches, and buffers, while the last micro-batch begins its backward pass."""
    earlier = accumulation > 1
    if config.zero_stage == 3:
        return {"gathered weights": _gathered(weights, buckets)}
    if config.zero_stage == 2:
        return {"gradients": earlier * FP32 * _share(weights, world)}
    return {"gradients": earlier * FP32 * count(weights)}


def _first_gradients(
    weights: Weights, config: TrainerConfig, world: int, buckets: Buckets, accumulation: int, passing: dict[str, int]
) -> dict[str, int]:
    """Right after the last layer's backward: its gradient is there, the output's is gone."""
    parts = {name: size for name, size in passing.items() if not name.startswith(("output", "block that"))}
    parts |= _gradients_so_far(weights, config, world, buckets, accumulation)
    parts["gradients"] = parts.get("gradients", 0) + FP32 * max(weight.numel for weight in weights)
    return parts | ({"reduce bucket": FP32 * buckets.reduce * buckets.copies} if config.zero_stage in {1, 2} else {})


def _reducing(
    weights: Weights, config: TrainerConfig, world: int, buckets: Buckets, passing: dict[str, int]
) -> dict[str, int]:
    """The reduction of gradients: after backward in stages 0 and 1, in the course of it in stages 2 and 3."""
    total, share = count(weights), _share(weights, world)
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


def _updating(weights: Weights, config: TrainerConfig, world: int, buckets: Buckets) -> dict[str, int]:
    """The optimizer's step: gradients, and in stages 1 to 3 their flat copy."""
    share = _share(weights, world)
    if config.zero_stage == 0:
        return {"gradients": FP32 * count(weights)}
    flat = {"gradients, flattened": FP32 * min(share, buckets.sub_group)}
    return flat if config.zero_stage == 3 else flat | {"gradients": FP32 * share}


def _most_output(micro: int, activations: Activations) -> int:
    whole = micro * activations.output
    return whole if activations.most_output is None else min(whole, activations.most_output)
