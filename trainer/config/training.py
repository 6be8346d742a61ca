"""What can be set of how a stage is optimized, saved and watched."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from data_pipeline.text.counted import counted
from model.config import Section

MOST_STEPS, MOST_SAMPLES_A_STEP = 10**9, 2**24
"""Of a stage: their product, the number of samples that it sees, has to fit into 64 bits."""
LONGEST_WAIT = 10**7
"""Seconds of a setting that waits: longer than any job lives, shorter than what an operating system can count."""

InitExcept = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=200)], ...], Field(min_length=1, max_length=1_000)
]
"""Names of parameters, or their first parts up to a dot."""

Share = Annotated[float, Field(ge=0, lt=1)]


def _check_finite(value: Any) -> Any:
    """What has no type of its own is finite, too: JSON has no infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no finite number")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_finite(item)
    return value


class KeepBest(Section):
    """Which checkpoint is the best."""

    metric: str
    """A number of metrics.jsonl, for instance loss: of the last record at or before the checkpoint."""
    mode: Literal["min", "max"] = "min"
    """Whether small values are good, or large ones."""


class SpikeConfig(Section):
    """What to do when the loss jumps. See trainer/rollback/spikes.py for what counts as a spike."""

    window: int = Field(128, ge=8, le=1_000_000)
    """Applied steps whose losses say what is usual."""
    sigmas: float = Field(6.0, gt=0)
    """A loss so many robust standard deviations above the window's median is out of the ordinary."""
    steps: int = Field(1, gt=0, le=MOST_STEPS)
    """Steps in a row that have to be out of the ordinary to make a spike."""
    action: Literal["record", "rollback"] = "record"
    """`record` only says so in events.jsonl; `rollback` goes back to the last good checkpoint, too, and skips the
    data."""
    skip_steps: int = Field(64, gt=0, le=MOST_STEPS)
    """Steps that a rollback skips: the ones that end with the spike. Their samples are not consumed."""
    max_rollbacks: int = Field(3, gt=0, le=1_000_000)
    """Rollbacks in all, after which the next spike stops the run."""

    @model_validator(mode="after")
    def _check_spike(self) -> Self:
        if self.skip_steps < self.steps:
            raise ValueError(f"skip_steps {self.skip_steps} does not cover the {self.steps} steps of a spike")
        return self

    @property
    def rollback_distance(self) -> int:
        """Steps from a good checkpoint to the end of a spike, at least: see trainer/rollback/spikes.py."""
        return max(self.skip_steps, self.window // 2 + self.steps)


class TrackingConfig(Section):
    """Who else is shown the records of metrics.jsonl. None of them can hold up a run."""

    wandb: Literal["auto", "off"] = "auto"
    """Weights & Biases: `auto` as WANDB_MODE says, offline beside the run without it."""
    tensorboard: bool = False
    """TensorBoard event files in `tensorboard/` of each stage."""
    prometheus_port: int | None = Field(None, gt=0, lt=65536)
    """Port on the first worker's node for Prometheus; null for none. metrics.prom is written in any case."""
    prometheus_host: str | None = None
    """Address at which that port is opened: whoever reaches it reads the metrics. null is 127.0.0.1 where all workers
    are on one machine, and 0.0.0.0, all interfaces of that node, where they are not."""


class TrainerConfig(Section):
    """How a stage is optimized. `global_batch` is the primary number: what each worker holds follows from it."""

    steps: int = Field(gt=0, le=MOST_STEPS)
    """Optimizer steps in all."""
    global_batch: int = Field(gt=0, le=MOST_SAMPLES_A_STEP)
    """Samples per optimizer step, over all workers."""
    micro_batch: int | None = Field(None, gt=0, le=MOST_SAMPLES_A_STEP)
    """Samples per worker and forward pass; null takes the worker's whole share. Accumulation follows from it. The
    result stays, but with a semantic loss the tokenizer's encoder runs once more where a step has several."""
    learning_rate: float = Field(1e-3, gt=0, le=1_000)
    """Highest learning rate."""
    final_learning_rate: float = Field(0.0, ge=0, le=1)
    """Learning rate of the last step, as a share of the highest."""
    warmup_steps: int = Field(0, ge=0, le=MOST_STEPS)
    """Steps of linear warm-up."""
    warmup_rate: float | None = Field(None, ge=0, le=1)
    """Where the warm-up begins, as a share of the highest rate; null: near zero (lin0: at 0.005, as VAR)."""
    schedule: Literal["cosine", "lin0", "stairs"] = "cosine"
    """What follows the warm-up: a cosine; VAR's lin0, the highest rate for a twentieth of the rest, then a line; or
    stairs, a cosine over all steps, warm-up included, that moves every `stair_steps` only: ImageFolder's, once an
    epoch."""
    stair_steps: int | None = Field(None, gt=0, le=MOST_STEPS)
    """Steps of a stair, for `schedule: stairs`: those of an epoch, as published."""
    weight_decay: float = Field(0.0, ge=0, le=1_000)
    """AdamW's decay, of matrices only: biases, norms, embeddings of positions and gains are left alone."""
    final_weight_decay: float | None = Field(None, ge=0, le=1_000)
    """Decay of the last step, which all steps approach along half a cosine from `weight_decay` on, as VAR's; null keeps
    it as it is. Of the exported network alone: a discriminator's is constant."""
    betas: tuple[Share, Share] = (0.9, 0.95)
    """AdamW's decay rates of the two moments."""
    gradient_clipping: float = Field(0.0, ge=0)
    """Largest global norm of the gradient; 0 for no clipping."""
    ema_decay: float = Field(0.0, ge=0, lt=1)
    """Decay of the moving average of the weights; 0 keeps none."""
    ema_warmup: bool = False
    """The average begins as a copy of the weights after the first update, and at update n its decay is n / (9 + n) as
    long as that is less than `ema_decay`, as TiTok's."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of forward and backward. Master weights are fp32 in any case. fp16 is for devices without bf16: its
    range is small, so the loss is scaled, and steps that overflow are skipped."""
    initial_loss_scale: float = Field(65536.0, ge=1, le=2**40)
    """Factor on the loss at the first step, in fp16. It halves with every skipped step."""
    loss_scale_window: int = Field(1000, gt=0, le=MOST_STEPS)
    """Applied steps in a row after which the factor doubles, in fp16."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """What DeepSpeed ZeRO shards over the workers: nothing (0), optimizer states (1), gradients too (2), weights too
    (3)."""
    bucket_elements: int = Field(50_000_000, gt=0, le=2**40)
    """Elements of gradients (ZeRO 1 to 3) or weights (1 and 2) that travel between workers at once. Smaller than the
    model, so that what is ready travels while the rest of backward computes. A network with fewer, such as a
    discriminator, has a bucket of its own size."""
    overlap_communication: bool = True
    """Reduce gradients beside the rest of backward, with ZeRO stage 1 to 3 on GPUs. With 1 and 2 this takes a second
    bucket of memory."""
    communication: Literal["fp32", "bf16"] = "fp32"
    """Number format in which gradients are summed over the workers. bf16 halves what travels, and rounds each sum to 8
    bits of mantissa; what is accumulated on a worker stays fp32."""
    offload: Literal["none", "optimizer"] = "none"
    """What is kept in the host's memory: `optimizer` moves master weights and moments there. Not with ZeRO stage 0."""
    activation_checkpointing: bool = False
    """Compute the transformer blocks a second time in backward instead of keeping what is inside them: less memory,
    about a third more time."""
    compile: bool = False
    """Compile the transformer blocks with torch.compile, which needs a C++ compiler on every node. Not with ZeRO stage
    3, which torch cannot trace, and not with activation_checkpointing."""
    extra: Annotated[dict[str, Any], AfterValidator(_check_finite)] = Field(default_factory=dict)
    """Settings of DeepSpeed that are added to its JSON; the keys that follow from this config are refused."""
    checkpoint_every: int = Field(1000, gt=0, le=MOST_STEPS)
    """Steps between checkpoints. The last step always has one."""
    checkpoint_minutes: float | None = Field(None, gt=0, le=1_000_000)
    """Minutes after which a checkpoint is written even if fewer steps were done; null for steps alone."""
    keep_checkpoints: int = Field(2, gt=0, le=1_000_000)
    """Complete checkpoints that are kept, the newest; older ones are removed, except those of the next two settings and
    those whose folder has a file named KEEP."""
    keep_every: int | None = Field(None, gt=0, le=MOST_STEPS)
    """Checkpoints at multiples of this step are kept for ever; null for none."""
    keep_best: KeepBest | None = None
    """Keep the checkpoint with the best value of a metric, too."""
    max_failed_checkpoints: int = Field(3, gt=0, le=1_000_000)
    """Checkpoints in a row that may fail to reach storage before the run stops. Each is tried for as long as storage is
    waited for."""
    checkpoint_wait_seconds: float = Field(900.0, gt=0, le=LONGEST_WAIT)
    """Seconds for which a checkpoint that is due waits for the one before. Then it counts as failed, and training goes
    on."""
    log_every: int = Field(50, gt=0, le=MOST_STEPS)
    """Steps between records in metrics.jsonl."""
    max_skipped_steps: int = Field(20, gt=0, le=MOST_STEPS)
    """Optimizer steps that may be skipped in a row (gradients that are not finite) before the run stops."""
    spikes: SpikeConfig | None = None
    """Watch the loss for spikes; null does not."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} leaves none of the {self.steps} steps for training")
        if (self.schedule == "stairs") != (self.stair_steps is not None):
            raise ValueError(f"stair_steps {self.stair_steps} and schedule {self.schedule}: set both, or neither")
        if self.ema_warmup and not self.ema_decay:
            raise ValueError("ema_warmup is of a moving average, and ema_decay is 0: set ema_decay above 0")
        if self.compile and (self.zero_stage == 3 or self.activation_checkpointing):
            raise ValueError("compile works with zero_stage 0 to 2 and without activation_checkpointing")
        if self.offload != "none" and self.zero_stage == 0:
            raise ValueError(f"offload {self.offload} needs zero_stage 1, 2 or 3: stage 0 shards nothing to move")
        self._check_rollbacks()
        return self

    def _check_rollbacks(self) -> None:
        """A rollback needs a checkpoint that is old enough, and still there."""
        if self.spikes is None or self.spikes.action != "rollback" or self.keep_every:
            return
        distance, oldest = self.spikes.rollback_distance, self.keep_checkpoints * self.checkpoint_every
        if oldest < distance:
            raise ValueError(
                f"spikes.action rollback needs a checkpoint at least {distance} steps back (skip_steps, and half of "
                f"window plus steps), but the oldest of {self.keep_checkpoints} is {oldest} back at most: set "
                f"keep_checkpoints to {-(-distance // self.checkpoint_every) + 1}, or a larger checkpoint_every"
            )

    @property
    def half(self) -> bool:
        """Whether matrix products are in a format of 16 bits."""
        return self.precision != "fp32"

    def split_over(self, workers: int) -> tuple[int, int]:
        """Samples per micro-batch, and micro-batches per optimizer step, of each worker.

        Raises:
            ValueError: if the global batch cannot be cut into equal micro-batches over the workers.
        """
        share, rest = divmod(self.global_batch, workers)
        if rest:
            raise ValueError(f"trainer.global_batch {self.global_batch} is no multiple of the {workers} workers")
        micro = min(self.micro_batch or share, share)
        if share % micro:
            samples = counted(share, "sample")
            raise ValueError(f"each worker's share of {samples} is no multiple of trainer.micro_batch {micro}")
        return micro, share // micro
