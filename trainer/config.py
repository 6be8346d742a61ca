"""What can be set of training, sampling and evaluation."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from model.config import ClassifierConfig, GeneratorConfig, Section, TokenizerConfig


class TrainerConfig(Section):
    """How a stage is optimized. `global_batch` is the primary number: what each worker holds follows from it."""

    steps: int = Field(gt=0)
    """Optimizer steps in all."""
    global_batch: int = Field(gt=0)
    """Samples per optimizer step, over all workers."""
    micro_batch: int | None = Field(None, gt=0)
    """Samples per worker and forward pass; null takes the worker's whole share. Accumulation follows from it."""
    learning_rate: float = Field(1e-3, gt=0)
    """Highest learning rate."""
    final_learning_rate: float = Field(0.0, ge=0)
    """Learning rate of the last step, as a share of the highest."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear warm-up from near zero; a cosine follows."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decay, of matrices only: biases, norms, embeddings of positions and gains are left alone."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the two moments."""
    gradient_clipping: float = Field(0.0, ge=0)
    """Largest global norm of the gradient; 0 for no clipping."""
    ema_decay: float = Field(0.0, ge=0, lt=1)
    """Decay of the moving average of the weights; 0 keeps none."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of forward and backward. Master weights are fp32 in any case."""
    zero_stage: Literal[1, 2] = 2
    """What DeepSpeed ZeRO shards over the workers: optimizer states (1), or gradients too (2)."""
    checkpoint_every: int = Field(1000, gt=0)
    """Steps between checkpoints. The last step always has one."""
    keep_checkpoints: int = Field(2, gt=0)
    """Complete checkpoints that are kept; older ones are removed."""
    log_every: int = Field(50, gt=0)
    """Steps between records in metrics.jsonl."""
    max_skipped_steps: int = Field(20, gt=0)
    """Optimizer steps that may be skipped in a row (gradients that are not finite) before the run stops."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} leaves none of the {self.steps} steps for training")
        return self

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
            raise ValueError(f"each worker's share of {share} samples is no multiple of trainer.micro_batch {micro}")
        return micro, share // micro


class ClassifierStageConfig(Section):
    """Train a small classifier on the real images."""

    model: ClassifierConfig = ClassifierConfig()
    """Its sizes."""
    trainer: TrainerConfig
    """How it is optimized."""


class TeacherConfig(ClassifierStageConfig):
    """The frozen network whose features regularize the semantic branch, and measure Fréchet distances."""

    timm: str | None = None
    """A timm model with pretrained weights, in place of one that `train-teacher` trains."""


class TokenizerLossConfig(Section):
    """Weights of the terms of the tokenizer's loss."""

    reconstruction: float = Field(1.0, ge=0)
    """Mean squared error of pixels."""
    feature: float = Field(0.0, ge=0)
    """Mean squared error of the teacher's features (a perceptual term)."""
    semantic: float = Field(0.1, ge=0)
    """Contrastive loss between the teacher's features and the last branch, over the global batch."""
    semantic_normalize: bool = False
    """Normalise both sides of the contrastive loss to length one; the published models do not."""
    semantic_temperature: float = Field(1.0, gt=0)
    """Factor on the contrastive logits (1 in the published models)."""


class TokenizerStageConfig(Section):
    """Train the image tokenizer."""

    model: TokenizerConfig
    """Its architecture."""
    loss: TokenizerLossConfig = TokenizerLossConfig()
    """What it minimizes."""
    dead_code_steps: int = Field(0, ge=0)
    """Steps between restarts of codes that were not used since the last; 0 for never, as in the paper. None in the
    last tenth of the steps, so that new codes have time to settle."""
    horizontal_flip: bool = False
    """Mirror half of the training images."""
    trainer: TrainerConfig
    """How it is optimized."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dead_code_steps and self.trainer.checkpoint_every % self.dead_code_steps:
            raise ValueError(
                f"trainer.checkpoint_every {self.trainer.checkpoint_every} is no multiple of dead_code_steps "
                f"{self.dead_code_steps}: counts of use are not part of a checkpoint, they start anew at each restart"
            )
        return self


class GeneratorStageConfig(Section):
    """Train the generator on token shards."""

    model: GeneratorConfig
    """Its architecture."""
    trainer: TrainerConfig
    """How it is optimized."""


class SamplingConfig(Section):
    """How images are drawn from the generator."""

    samples_per_class: int = Field(10, gt=0)
    """Images of each class."""
    classes: tuple[int, ...] | None = None
    """Classes to draw; null for all."""
    guidance: float = Field(2.0, ge=0)
    """Classifier-free guidance at the last scale; it grows linearly with the scale from 0 at the first."""
    top_k: int = Field(0, ge=0)
    """Draw from the k likeliest tokens; 0 for all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw from the likeliest tokens that hold this much probability."""
    batch: int = Field(100, gt=0)
    """Images drawn at once."""
    ema: bool = True
    """Use the moving average of the weights, if the run kept one."""


class EvaluationConfig(Section):
    """How a tokenizer and a generator are judged."""

    samples: int = Field(1000, gt=0)
    """Generated images, spread evenly over the classes."""
    judge: ClassifierStageConfig | None = None
    """A classifier, trained on the real images only, that says which class a sample is. Null leaves that out."""
