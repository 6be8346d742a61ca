"""What can be set of a tokenizer's training."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from data_pipeline.storage.places import InputPlace
from model.config import Section
from model.config.losses import AdversarialConfig, AnyPerceptualConfig, PerturbationConfig, SemanticConfig
from model.families import AnyTokenizerConfig
from trainer.config.best_checkpoint import check_best
from trainer.config.distances import ReconstructionDistanceConfig, is_distance
from trainer.config.training import MOST_STEPS, InitExcept, TrainerConfig

_MOVED = {
    "feature": "perceptual: [{{kind: teacher, weight: {0}}}]",
    "semantic_normalize": "semantic: {{normalize: {0}}}",
    "semantic_temperature": "semantic: {{temperature: {0}}}",
}
"""Keys that the section once had, and what says the same."""


class GuideConfig(SemanticConfig):
    """A contrastive loss between the first branch and the features of a network of its own."""

    branches: Literal["last", "first", "all"] | tuple[int, ...] = "first"
    """Which branches are compared: one by name, all, or some by number from 0."""
    teacher: str | None = None
    """A timm model with pretrained weights, with sizes that are not its own as in a URL
    (vit_base_patch16_clip_224.openai?img_size=256). Null: the run's teacher."""


class TokenizerLossConfig(Section):
    """What the tokenizer minimizes, beside its quantizer's own losses. A term that is null or 0 costs nothing."""

    reconstruction: float = Field(1.0, ge=0)
    """Weight of the pixels' error."""
    pixels: Literal["l2", "l1"] = "l2"
    """The pixels' error: the mean of squared differences, or of absolute ones."""
    perceptual: tuple[AnyPerceptualConfig, ...] = Field((), max_length=8)
    """Perceptual distances, each with its weight."""
    semantic: SemanticConfig | None = None
    """Contrastive loss with the run's teacher; null for none."""
    detail: GuideConfig | None = None
    """Contrastive loss of another branch, with a teacher of its own; null for none."""
    adversarial: AdversarialConfig | None = None
    """A discriminator that is trained beside the tokenizer; null for none."""
    perturbation: PerturbationConfig | None = None
    """Replace codes by near ones before they are decoded, which makes the decoder robust; null does not."""

    @model_validator(mode="before")
    @classmethod
    def _say_what_moved(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for key, now in _MOVED.items():
                if key in values:
                    raise ValueError(f"{key}: {values[key]} is now written as {now.format(values[key])}")
            weight = values.get("semantic")
            if isinstance(weight, int | float):
                now = f"{{weight: {weight}}}" if weight else "null"
                raise ValueError(f"semantic: {weight} is now written as semantic: {now}")  # noqa: TRY004 - pydantic's
        return values

    @property
    def needs_teacher(self) -> bool:
        """Whether a term looks through the run's teacher."""
        return bool(self.terms_with_teacher)

    @property
    def terms_with_teacher(self) -> tuple[str, ...]:
        """The terms that look through the run's teacher, by their keys."""
        found = {
            "semantic": self.semantic is not None,
            "detail": self.detail is not None and self.detail.teacher is None,
            "perceptual": any(each.needs_teacher for each in self.perceptual),
            "adversarial.discriminator": self.adversarial is not None and self.adversarial.discriminator.needs_teacher,
        }
        return tuple(name for name, needed in found.items() if needed)

    @property
    def contrasts(self) -> dict[str, SemanticConfig]:
        """The contrastive losses by the names that metrics have."""
        named = {"semantic": self.semantic, "detail": self.detail}
        return {name: config for name, config in named.items() if config is not None}


class ValidationConfig(Section):
    """How a tokenizer is looked at while it trains: on held-out images, with the moving average of its weights."""

    every: int = Field(1000, gt=0, le=MOST_STEPS)
    """Steps between looks. The last step always has one."""
    images: int = Field(1000, gt=0, le=1_000_000)
    """Held-out images that are looked at: the first of their data set, whose shards are in shuffled order."""
    training_images: int = Field(256, ge=0, le=1_000_000)
    """Training images that are looked at in the same way, so that overfitting shows; 0 for none."""
    batch: int = Field(32, gt=0, le=65_536)
    """Images per forward pass. The batches are dealt to the workers in turn, so the numbers stay the same."""
    strip: int = Field(8, ge=0, le=64)
    """Held-out images whose reconstructions are kept as a picture, at each prefix of the tokens; 0 for no picture."""
    distance: ReconstructionDistanceConfig | None = None
    """A small-sample Fréchet distance of reconstructions; null for none. One worker measures it, and the others wait
    for it, not much longer than `distance.most_seconds`."""

    @property
    def distance_every(self) -> int:
        """Steps between distances."""
        return self.every if self.distance is None or self.distance.every is None else self.distance.every

    def every_of(self, metric: str) -> int | None:
        """Steps between the looks that find a number of metrics.jsonl; None if none does."""
        if not is_distance(metric):
            return self.every
        return self.distance_every if self.distance is not None and self.distance.name == metric else None

    @model_validator(mode="after")
    def _check_strip(self) -> Self:
        if self.strip > self.images:
            raise ValueError(f"strip {self.strip} shows more than the {self.images} images that are looked at")
        return self


class TokenizerStageConfig(Section):
    """Train the image tokenizer."""

    model: AnyTokenizerConfig
    """Its architecture."""
    init_from: InputPlace | None = None
    """Start from the weights of such a network, and not from random ones: the URI of a run that trained one, or of its
    export. Of a moving average, if one was kept, that is taken. A start that finds a checkpoint goes on from there."""
    init_except: InitExcept | None = None
    """Parameters that start anew all the same, by their names or the first parts of these, for instance [class_embed]:
    where those that are given have another shape. All others must be there, in the shape that they have here."""
    loss: TokenizerLossConfig = TokenizerLossConfig()
    """What it minimizes."""
    dead_code_steps: int = Field(0, ge=0, le=MOST_STEPS)
    """Steps between restarts of codes that were not used since the last; 0 for never, as in the paper."""
    dead_code_restart: Literal["split", "latent", "cluster"] = "split"
    """What becomes of them: a copy of a code in use, moved a little; a latent of the batch, drawn at random; or, as in
    clustering VQ with `dead_code_steps: 1`, all codes move to the nearest latent the more, the less they are used."""
    dead_code_until: float = Field(0.9, ge=0, le=1)
    """Share of the steps after which no code is restarted, so that new codes have time to settle."""
    horizontal_flip: bool = False
    """Mirror half of the training images."""
    validation: ValidationConfig | None = None
    """Look at held-out images while it trains; null does not. It changes nothing of what is trained."""
    trainer: TrainerConfig
    """How it is optimized."""

    @model_validator(mode="after")
    def _check_best(self) -> Self:
        check_best(self.trainer, self.validation)
        return self

    @model_validator(mode="after")
    def _check_loss(self) -> Self:
        for name in self.loss.contrasts:
            if not self.model.compares:
                raise ValueError(
                    f"loss.{name} is set, but a tokenizer of kind {self.model.kind} has nothing that is compared with "
                    "a teacher: set it to null"
                )
        scales = getattr(self.model, "scales", ())
        if self.loss.perturbation is not None and not (self.model.perturbs and len(scales) == 1):
            raise ValueError(
                f"loss.perturbation is of tokenizers with one scale of codes, and this one of kind {self.model.kind} "
                f"has {list(scales) if scales else 'no grid'}: set it to null"
            )
        if not self.model.paints and (self.loss.perceptual or self.loss.adversarial):
            raise ValueError(
                f"loss.perceptual and .adversarial are of images, and this tokenizer of kind {self.model.kind} learns "
                "codes: leave them out"
            )
        if self.validation is not None and not self.model.decodes:
            raise ValueError(
                "validation looks at images, and this tokenizer has nothing to make any of a proxy's codes: give "
                "model.pixel_decoder, or set validation to null"
            )
        adversarial, steps = self.loss.adversarial, self.trainer.steps
        if adversarial is not None and adversarial.start + adversarial.warmup_steps >= steps:
            raise ValueError(
                f"loss.adversarial: start {adversarial.start} and warmup_steps {adversarial.warmup_steps} leave none "
                f"of the {steps} steps for the discriminator"
            )
        return self
