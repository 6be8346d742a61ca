"""What a step does besides its micro-batches, by stated assumptions: the optimizer's update, and communication.

Update: one pass over this rank's share of gradients for their norm, one for clipping where that is on, AdamW as one
kernel (reads weight, gradient and two moments, writes weight and moments), one pass for the moving average. ZeRO 1 and
2 copy their gradients into a flat buffer first.

Communication, in bytes that each rank sends (and receives) over a ring of w ranks, P parameters, (w - 1) / w left out:

    ZeRO 0    gradients, twice (all-reduce)
    ZeRO 1    gradients once, weights once (4 P)
    ZeRO 2    gradients once per micro-batch, weights once
    ZeRO 3    gradients once and weights twice per micro-batch

Gradients have four bytes, or two if `communication_data_type` of the DeepSpeed settings says so. With `overlap_comm`
what reduces gradients hides behind the backward pass as far as that is long enough; weights never hide.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.config import TrainerConfig
from trainer.engine.settings import deepspeed_config
from trainer.planning.operation import Kernel

FP32 = 4
_HALVES = {"fp16", "bf16", "bfp16"}


@dataclass(frozen=True)
class Traffic:
    """Bytes that a rank sends in a step."""

    gradients: float
    weights: float
    overlaps: bool
    """Whether gradients travel while backward goes on."""


def update_kernels(parameters: int, trainer: TrainerConfig, world: int) -> list[Kernel]:
    """The optimizer's kernels on one rank; none where its state is in the host's memory."""
    share = parameters if trainer.zero_stage == 0 else -(-parameters // world)
    passes = {"norm of gradients": (1, 0)}
    if trainer.zero_stage in {1, 2}:
        passes = {"gradients, flattened": (1, 1)} | passes
    if trainer.offload == "none":
        passes |= {"gradient clipping": (1, 1)} if trainer.gradient_clipping else {}
        passes |= {"adamw": (4, 3)}
        passes |= {"moving average": (2, 1)} if trainer.ema_decay else {}
    return [
        Kernel("update", name, "float32", 0, 0, (reads + writes) * FP32 * share)
        for name, (reads, writes) in passes.items()
    ]


def step_traffic(parameters: int, trainer: TrainerConfig, world: int) -> Traffic:
    """What a rank of `world` ranks sends in one optimizer step.

    Raises:
        ValueError: if the global batch cannot be cut into equal micro-batches over the ranks.
    """
    settings = deepspeed_config(trainer, world)
    _, accumulation = trainer.split_over(world)
    element = 2 if settings.get("communication_data_type") in _HALVES else FP32
    around = (world - 1) / world
    gradients = {0: 2, 1: 1, 2: accumulation, 3: accumulation}[trainer.zero_stage] * element * parameters * around
    weights = {0: 0, 1: 1, 2: 1, 3: 2 * accumulation}[trainer.zero_stage] * FP32 * parameters * around
    return Traffic(gradients, weights, bool(settings["zero_optimization"].get("overlap_comm")))
