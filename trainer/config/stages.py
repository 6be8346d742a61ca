"""What can be set of classifiers and generators in training, and of what is drawn and judged."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from data_pipeline.storage.places import InputPlace
from data_pipeline.text.json_records import first_problem
from model.config import MOST_CLASSES, ClassifierConfig, GeneratorConfig, Section
from model.config.sampling import GuidanceSchedule, OrderOptions
from model.families import AnyGeneratorConfig
from trainer.config.best_checkpoint import check_best
from trainer.config.distances import SampleDistanceConfig, is_distance
from trainer.config.training import LONGEST_WAIT, MOST_STEPS, InitExcept, TrainerConfig

_MOST_ROWS = 64
"""Of a picture."""

ChosenClasses = Annotated[tuple[Annotated[int, Field(ge=0, lt=MOST_CLASSES)], ...], Field(min_length=1)]


class ClassifierStageConfig(Section):
    """Train a small classifier on the real images."""

    model: ClassifierConfig = ClassifierConfig()
    """Its sizes."""
    init_from: InputPlace | None = None
    """Start from the weights of such a network, and not from random ones: the URI of a run that trained one, or of its
    export. Of a moving average, if one was kept, that is taken. A start that finds a checkpoint goes on from there."""
    init_except: InitExcept | None = None
    """Parameters that start anew all the same, by their names or the first parts of these, for instance [class_embed]:
    where those that are given have another shape. All others must be there, in the shape that they have here."""
    trainer: TrainerConfig
    """How it is optimized."""


class TeacherConfig(ClassifierStageConfig):
    """The frozen network whose features regularize the semantic branch, and measure Fréchet distances."""

    timm: str | None = None
    """A timm model with pretrained weights, in place of one that `train-teacher` trains."""
    image_size: int | None = Field(None, gt=0, le=8_192)
    """Side of the images that the timm model sees, in pixels. Null: the size of its own pretraining. ImageFolder's sees
    256; at 518, DINOv2's own size, an image costs 303 GFLOP in place of 46."""
    patch_size: int | None = Field(None, gt=0, le=8_192)
    """Side of the timm model's patches, to which timm resamples its weights (ImageFolder: 16). Null: its own."""

    @model_validator(mode="after")
    def _check_timm(self) -> Self:
        if self.timm is None and (self.image_size or self.patch_size):
            raise ValueError("image_size and patch_size are a timm model's; model.image_size is the trained teacher's")
        return self

    @property
    def network(self) -> str | None:
        """The timm model with its sizes, as lineage names it; None of a teacher that is trained."""
        sizes = {"img_size": self.image_size, "patch_size": self.patch_size}
        given = "&".join(f"{key}={size}" for key, size in sizes.items() if size)
        return f"{self.timm}?{given}" if self.timm and given else self.timm


class SamplingConfig(Section):
    """How images are drawn from the generator."""

    samples_per_class: int = Field(10, gt=0, le=1_000_000)
    """Images of each class."""
    classes: ChosenClasses | None = None
    """Classes to draw, by label; null for all that the data had."""
    guidance: float = Field(2.0, ge=0, le=10_000)
    """Classifier-free guidance g of c + g (c - u), the logits with the class and without; 0 for none. What published
    codes call a scale may be g + 1."""
    guidance_schedule: GuidanceSchedule | None = None
    """How much of the guidance acts at which part of the way; null for the order's own."""
    temperature: float = Field(1.0, gt=0, le=10_000)
    """What logits are divided by, after guidance; below 1 draws likelier tokens."""
    top_k: int = Field(0, ge=0, le=1_000_000)
    """Draw from the k likeliest tokens; 0 for all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw from the likeliest tokens that hold this much probability, of those that `top_k` leaves."""
    order: dict[str, Any] = Field({}, max_length=64)
    """What can be set of the generator's order alone, such as the steps of a masked one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of matrix products, of the generator and of the tokenizer's decoder."""
    batch: int = Field(100, gt=0, le=1_000_000)
    """Images drawn at once on a GPU, where another number changes the last bits of what networks compute."""
    cpu_batch: int = Field(16, gt=0, le=10_000)
    """Images drawn at once on a CPU: always so many, so that an image has the same bits however many are asked for.
    Take 1 to draw single images of a large network sooner."""
    cuda_graphs: bool = False
    """On a GPU, record what a batch of tokens launches, and launch it at once for the batches after it. It takes the
    memory of drawing a batch once more. Nothing changes on a CPU."""
    ema: bool = True
    """Use the moving average of the weights, if the run kept one."""

    def record(self, *left_out: str) -> dict[str, Any]:
        """As JSON, for records of what was drawn: without these, and without what changes its speed alone."""
        return self.model_dump(mode="json", exclude={"cuda_graphs", *left_out})

    def order_of(self, generator: GeneratorConfig) -> OrderOptions | None:
        """What is set of the order of a generator; None if nothing is.

        Raises:
            ValueError: if its order has no such option, or not such a value; it names `sampling.order.<key>`.
        """
        if not self.order:
            return None
        known = tuple(generator.order_options.model_fields)
        for key in self.order:
            if key not in known:
                there = f"it has {', '.join(known)}" if known else "it has no options: leave that out"
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
                hint = f"did you mean {near[0]}?" if near else there
                raise ValueError(f"sampling.order.{key} is no option of a {generator.kind} generator: {hint}")
        try:
            return generator.order_options.model_validate(self.order)
        except ValidationError as error:
            raise ValueError(f"sampling.order.{first_problem(error)}") from None


class PicturesConfig(SamplingConfig):
    """What is drawn while a generator trains: the same images, by seed and class, every so many steps."""

    every: int | None = Field(None, gt=0, le=MOST_STEPS)
    """Steps between pictures. The last step always has one. Null: as often as held-out tokens are looked at."""
    samples_per_class: int = Field(4, gt=0, le=64)
    """Images of each class, side by side."""
    most_seconds: float | None = Field(60.0, gt=0, le=LONGEST_WAIT)
    """After so long no further batch is begun, as the other workers wait: what is not drawn is left grey, and the event
    says how many images that are. Null: all are drawn, however long it takes."""
    most_classes: int = Field(10, gt=0, le=64)
    """Classes that are drawn where `classes` is null: so many, at even distances. A picture has a row for each."""

    @model_validator(mode="after")
    def _check_rows(self) -> Self:
        if self.classes is not None and len(self.classes) > _MOST_ROWS:
            raise ValueError(f"{len(self.classes)} classes are more rows than a picture has: name at most {_MOST_ROWS}")
        if not self.ema:
            raise ValueError("ema is false, but the moving average is looked at, where one is kept: leave that out")
        return self


class GeneratorValidationConfig(Section):
    """How a generator is looked at while it trains, with the moving average of its weights, if it keeps one."""

    every: int = Field(1000, gt=0, le=MOST_STEPS)
    """Steps between looks at held-out tokens. The last step always has one."""
    samples: int = Field(1000, ge=0, le=1_000_000)
    """Held-out images whose tokens are looked at, the first of their set, whose shards are in shuffled order; one view
    of each, the next view for the next image. 0 for none: then none have to be held out, and pictures are all."""
    training_samples: int | None = Field(None, ge=0, le=1_000_000)
    """Training images that are looked at in the same way, so that overfitting shows. Null: as many as `samples`."""
    batch: int = Field(64, gt=0, le=65_536)
    """Images per forward pass. The batches are dealt to the workers in turn, so the numbers stay the same."""
    pictures: PicturesConfig | None = None
    """Images that are drawn, for which the run needs the tokenizer of the tokens; null for none. One worker draws them,
    and the others wait for it, not much longer than `pictures.most_seconds`: the event `validation` says how long."""
    distance: SampleDistanceConfig | None = None
    """A small-sample Fréchet distance of samples from held-out images, for which the run needs the tokenizer of the
    tokens, too; null for none. One worker measures it, and the others wait for it, not much longer than
    `distance.most_seconds`."""

    @property
    def trained_on(self) -> int:
        """Training images that are looked at."""
        return self.samples if self.training_samples is None else self.training_samples

    @property
    def pictures_every(self) -> int:
        """Steps between pictures."""
        return self.every if self.pictures is None or self.pictures.every is None else self.pictures.every

    @property
    def distance_every(self) -> int:
        """Steps between distances."""
        return self.every if self.distance is None or self.distance.every is None else self.distance.every

    def every_of(self, metric: str) -> int | None:
        """Steps between the looks that find a number of metrics.jsonl; None if none does."""
        if not is_distance(metric):
            return self.every if self.samples else None
        return self.distance_every if self.distance is not None and self.distance.name == metric else None

    @model_validator(mode="after")
    def _check_anything(self) -> Self:
        if not (self.samples or self.trained_on or self.pictures or self.distance):
            raise ValueError(
                "samples is 0, and pictures and distance are null, so nothing is looked at: set validation to null"
            )
        return self


class GeneratorStageConfig(Section):
    """Train the generator on token shards."""

    model: AnyGeneratorConfig
    """Its architecture."""
    init_from: InputPlace | None = None
    """Start from the weights of such a network, and not from random ones: the URI of a run that trained one, or of its
    export. Of a moving average, if one was kept, that is taken. A start that finds a checkpoint goes on from there."""
    init_except: InitExcept | None = None
    """Parameters that start anew all the same, by their names or the first parts of these, for instance [class_embed]:
    where those that are given have another shape. All others must be there, in the shape that they have here."""
    validation: GeneratorValidationConfig | None = None
    """Look at held-out tokens, and draw pictures, while it trains; null does not. What is trained stays the same."""
    trainer: TrainerConfig
    """How it is optimized."""

    @property
    def network(self) -> GeneratorConfig:
        """`model` with a step of `trainer.steps` for each share of the training."""
        return self.model.with_steps(self.trainer.steps)

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        _ = self.network
        return self

    @model_validator(mode="after")
    def _check_best(self) -> Self:
        check_best(self.trainer, self.validation)
        return self
