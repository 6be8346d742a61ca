"""What can be set of the terms of a tokenizer's loss, and which perceptual distances there are.

A distance of somebody else's joins by an entry point of the group "foldtrain.perceptual", whose object is a
`PerceptualFamily`, in a module that imports nothing of foldtrain but this one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from model.config.discriminators import AnyDiscriminatorConfig, PatchConfig
from model.config.registered import choice_of, joined, kind_of
from model.config.section import Section, WeightsFile

GROUP = "foldtrain.perceptual"
"""Of the entry points by which installed packages add perceptual distances."""
_MOST_STEPS = 10**9
_Share = Annotated[float, Field(ge=0, lt=1)]


class PerceptualConfig(Section):
    """What the configs of all perceptual distances have."""

    kind: str
    """Kind of the distance."""
    weight: float = Field(1.0, ge=0)
    """Of the distance's mean over images, in the loss."""

    @property
    def needs_teacher(self) -> bool:
        """Whether it compares features of the run's teacher."""
        return False


class _PublishedConfig(PerceptualConfig):
    verify: bool = True
    """Refuse files that are not the published ones by their hash. Shapes and names are checked in any case."""


class LpipsConfig(_PublishedConfig):
    """LPIPS over VGG16 (arXiv 1801.03924), in evaluation mode."""

    kind: Literal["lpips"] = "lpips"
    """Kind of the distance."""
    file: WeightsFile | None = None
    """torchvision's weights of VGG16, vgg16-397923af.pth: a local path or file: URI that every worker reads."""
    heads: WeightsFile | None = None
    """Weights of the distance, version 0.1, vgg.pth, as taming-transformers and the package lpips have it."""


class ShiftTolerantConfig(_PublishedConfig):
    """ST-LPIPS (arXiv 2207.13686): another network, with blurred pooling, that small shifts do not disturb."""

    kind: Literal["st-lpips"] = "st-lpips"
    """Kind of the distance."""
    file: WeightsFile | None = None
    """vgg_shift_tolerant.pth of the package stlpips-pytorch: a local path or file: URI that every worker reads."""


class ConvNextConfig(_PublishedConfig):
    """Squared error of the 1000 logits of ConvNeXt-Small, of both images at 224 pixels (TiTok)."""

    kind: Literal["convnext"] = "convnext"
    """Kind of the distance."""
    file: WeightsFile | None = None
    """torchvision's weights, convnext_small-0c510722.pth: a local path or file: URI that every worker reads."""


class TeacherDistanceConfig(PerceptualConfig):
    """Squared error of the features of the run's own teacher: a distance without a published file."""

    kind: Literal["teacher"] = "teacher"
    """Kind of the distance."""

    @property
    def needs_teacher(self) -> bool:
        """Whether it compares features of the run's teacher."""
        return True


@dataclass(frozen=True)
class PerceptualFamily:
    """Perceptual distances of one kind."""

    config: type[PerceptualConfig]
    """What can be set of them. The default of its `kind` is the family's name."""
    network: str
    """"module:function" that makes a `Perceptual` with its weights, from a config and the teacher."""


_OWN = (
    PerceptualFamily(LpipsConfig, network="model.losses.lpips:load_lpips"),
    PerceptualFamily(ShiftTolerantConfig, network="model.losses.lpips:load_shift_tolerant"),
    PerceptualFamily(ConvNextConfig, network="model.losses.logit_distance:load_convnext"),
    PerceptualFamily(TeacherDistanceConfig, network="model.losses.teacher_distance:teacher_distance"),
)
"""The first is what a config without a kind means."""


@cache
def perceptual_families() -> dict[str, PerceptualFamily]:
    """Perceptual distances by kind: foldtrain's own, then those of installed packages.

    Raises:
        ValueError: as `joined`.
    """
    return {kind_of(family): family for family in joined(_OWN, GROUP, (PerceptualFamily,))}


if TYPE_CHECKING:
    AnyPerceptualConfig = PerceptualConfig
else:
    AnyPerceptualConfig = choice_of(family.config for family in perceptual_families().values())


class SemanticConfig(Section):
    """A contrastive loss between branches of the latent and a teacher's features, over the whole global batch."""

    weight: float = Field(0.1, ge=0)
    """Of the loss, for each branch."""
    branches: Literal["last", "first", "all"] | Annotated[tuple[int, ...], Field(min_length=1, max_length=16)] = "last"
    """Which branches are compared: one by name, all, or some by number from 0. As published: the last."""
    feature: Literal["class", "patch"] = "class"
    """What of the teacher: its class token (or pooled feature), or the mean of its patches."""
    normalize: bool = False
    """Bring both sides to length one. The published ImageFolder models with vector quantization do not."""
    temperature: float = Field(1.0, gt=0)
    """Factor on the logits, at the first step."""
    final_temperature: float | None = Field(None, gt=0)
    """Factor at the end, which is reached on a line; null keeps the first. Published with `normalize`: 1 to 100."""
    temperature_stairs: int | None = Field(None, gt=0, le=_MOST_STEPS)
    """The factor stays the same for such a part of the run: the number of epochs, as published. Null: for a step."""

    def branch_numbers(self, branches: int) -> tuple[int, ...]:
        """The branches that are compared, of so many.

        Raises:
            ValueError: if there is no such branch.
        """
        named = {"last": (branches - 1,), "first": (0,), "all": tuple(range(branches))}
        numbers = named[self.branches] if isinstance(self.branches, str) else self.branches
        wrong = [number for number in numbers if not 0 <= number < branches]
        if wrong or len(set(numbers)) < len(numbers):
            raise ValueError(f"branches {list(numbers)}: the tokenizer has branches 0 to {branches - 1}, each once")
        return numbers


class LecamConfig(Section):
    """LeCam regularization (arXiv 2104.03310): logits are drawn to moving averages of the other side's."""

    weight: float = Field(1e-3, ge=0)
    """In the discriminator's loss."""
    decay: _Share = 0.999
    """Of the averages, a step of the discriminator."""
    of: Literal["samples", "means"] = "samples"
    """`samples`: squared distance of each logit, as ImageFolder; `means`: of the means over the global batch, as
    TiTok."""
    update: Literal["before", "after"] = "before"
    """Whether the averages take the step's means in before they are used (ImageFolder) or after (TiTok)."""


class AugmentConfig(Section):
    """Differentiable augmentation (arXiv 2006.10738) of what the discriminator sees, real and made."""

    probability: float = Field(1.0, ge=0, le=1)
    """Of a step to use each of translation, colour and cutout; their strength is drawn for each image."""
    translation: float = Field(0.125, ge=0, lt=1)
    """Largest shift, as a share of the side; zeros come in."""
    colour: bool = True
    """Brightness up to 0.5 off, saturation from 0 to 2 times, contrast from 0.5 to 1.5 times."""
    cutout: float = Field(0.2, ge=0, lt=1)
    """Side of a square of zeros, as a share of the image's."""
    blur_steps: int = Field(0, ge=0, le=_MOST_STEPS)
    """Steps from the discriminator's first over which a Gaussian blur fades away; 0 for none."""


class PerturbationConfig(Section):
    """Latent perturbation (RobustTok): codes of some images are replaced by near ones before they are decoded."""

    tokens: float = Field(1.0, ge=0, le=1)
    """Share of the tokens of such an image that are replaced, at the begin (alpha)."""
    images: float = Field(0.1, ge=0, le=1)
    """Share of the images (beta)."""
    neighbours: int = Field(100, gt=0, le=2**20)
    """Nearest codes to draw from, the code itself among them, at the begin (delta)."""
    anneal_from: float = Field(0.2, ge=0, le=1)
    """Share of the run after which both become smaller on a line. Published: from epoch 40 of 200 to 120."""
    anneal_to: float = Field(0.6, ge=0, le=1)
    """Share of the run at which they are at the end."""
    final: float = Field(0.5, ge=0, le=1)
    """What is left of both at the end."""

    @model_validator(mode="after")
    def _check_annealing(self) -> Self:
        if self.anneal_to < self.anneal_from:
            raise ValueError(f"anneal_to {self.anneal_to} is before anneal_from {self.anneal_from}")
        return self


class AdversarialConfig(Section):
    """A discriminator that is trained beside the tokenizer, and how."""

    discriminator: AnyDiscriminatorConfig = PatchConfig()
    """Which."""
    weight: float = Field(0.5, ge=0)
    """Of the adversarial term in the tokenizer's loss."""
    start: int = Field(0, ge=0, le=_MOST_STEPS)
    """First step at which it counts, and the discriminator is trained. Before it, it costs nothing."""
    adaptive: bool = False
    """Multiply the weight by the ratio of the gradients that reconstruction and discriminator have at the last
    layer."""
    most: float = Field(1e4, gt=0)
    """Largest such ratio."""
    loss: Literal["hinge", "non-saturating"] = "hinge"
    """Of the discriminator and the tokenizer."""
    penalty: float = Field(0.0, ge=0)
    """Weight of the squared gradient of real images' logits to their pixels (R1); 0 for none. MaskGIT: 10."""
    lecam: LecamConfig | None = None
    """Regularization of the discriminator; null for none."""
    augment: AugmentConfig | None = None
    """Augmentation of what it sees; null for none."""
    learning_rate: float | None = Field(None, gt=0, le=1_000)
    """Highest learning rate of the discriminator; null: the tokenizer's."""
    final_learning_rate: float = Field(0.0, ge=0, le=1)
    """At the last step, as a share of the highest."""
    warmup_steps: int = Field(0, ge=0, le=_MOST_STEPS)
    """Steps of linear warm-up, from `start` on."""
    warmup_rate: float | None = Field(None, ge=0, le=1)
    """Where the warm-up begins, as a share of the highest rate; null: near zero (lin0: at 0.005)."""
    schedule: Literal["cosine", "lin0", "stairs"] = "cosine"
    """What follows the warm-up, up to the last step, as `trainer.schedule`; it counts from `start`."""
    stair_steps: int | None = Field(None, gt=0, le=_MOST_STEPS)
    """Steps of a stair, for `schedule: stairs`."""
    betas: tuple[_Share, _Share] | None = None
    """AdamW's decay rates of the two moments; null: the tokenizer's."""
    weight_decay: float | None = Field(None, ge=0, le=1_000)
    """AdamW's decay, of matrices; null: the tokenizer's."""
    gradient_clipping: float | None = Field(None, ge=0)
    """Largest global norm of the discriminator's gradient; 0 for no clipping; null: the tokenizer's."""

    @model_validator(mode="after")
    def _check_penalty(self) -> Self:
        if self.penalty and not self.discriminator.penalizes:
            raise ValueError(
                f"penalty {self.penalty}: a discriminator of kind {self.discriminator.kind} has no second derivative; "
                "set it to 0, or take another kind"
            )
        return self

    @model_validator(mode="after")
    def _check_stairs(self) -> Self:
        if (self.schedule == "stairs") != (self.stair_steps is not None):
            raise ValueError(f"stair_steps {self.stair_steps} and schedule {self.schedule}: set both, or neither")
        return self
