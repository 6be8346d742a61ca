"""What can be set of masked generators: the backbone, what is masked in training, and how one samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, cast

from pydantic import Discriminator, Field, Tag, model_validator

from model.config.generators import GeneratorConfig
from model.config.sampling import GuidanceSchedule, OrderOptions
from model.config.section import Section
from model.layout import TokenLayout

MaskSchedule = Literal["arccos", "cosine", "linear", "root"]
"""Share of the tokens that is masked where a part r of the way is behind: (2 / pi) arccos r, cos(pi r / 2), 1 - r,
1 - sqrt r. In training r is a random number of each sample; in sampling it is the steps that are done."""


_Number = TypeVar("_Number")


def masked_share(schedule: MaskSchedule, done: _Number, functions: Any = math) -> _Number:
    """Share of what is masked where `done` of 0 to 1 is behind.

    Args:
        schedule: one of the four.
        done: a number, or a tensor of them.
        functions: the module that has acos, cos and sqrt of it: `math`, or `torch` for a tensor.
    """
    given: Any = done
    shares: dict[MaskSchedule, Callable[[], Any]] = {
        "arccos": lambda: 2 / math.pi * functions.acos(given),
        "cosine": lambda: functions.cos(math.pi / 2 * given),
        "linear": lambda: 1 - given,
        "root": lambda: 1 - functions.sqrt(given),
    }
    return cast("_Number", shares[schedule]())


class _BackboneConfig(Section):
    """What all backbones have."""

    depth: int = Field(24, gt=0, le=1_000)
    """Number of blocks."""
    width: int = Field(768, gt=0, le=65_536)
    """Channels of each position."""
    heads: int = Field(16, gt=0, le=1_024)
    """Attention heads."""
    mlp_ratio: float = Field(4.0, gt=0, le=64)
    """Hidden width of the MLP over `width`."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of what attention and MLP add (and of BERT's embeddings), in training."""
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    """Of attention's weights, in training. Above 0 no fused kernel is used."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        return self


class BertConfig(_BackboneConfig):
    """BERT's encoder, norms after each sum: MaskGIT's, and TiTok's for L-32 and B-64."""

    kind: Literal["bert"] = "bert"
    """Kind of the backbone."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Of the embeddings and of what attention and MLP add, in training."""
    attention_dropout: float = Field(0.1, ge=0, lt=1)
    """Of attention's weights, in training. Above 0 no fused kernel is used."""


class UViTConfig(_BackboneConfig):
    """U-ViT (arXiv 2209.12152), norms before, and long skips from the first half to the last: TiTok's for S-128."""

    kind: Literal["uvit"] = "uvit"
    """Kind of the backbone."""
    depth: int = Field(20, gt=0, le=1_000)
    """Number of blocks beside the middle one: as many before it as behind it."""
    width: int = Field(1024, gt=0, le=65_536)
    """Channels of each position."""

    @model_validator(mode="after")
    def _check_halves(self) -> Self:
        if self.depth % 2:
            raise ValueError(f"depth {self.depth} is odd: as many blocks stand before the middle one as behind it")
        return self


def _kind(value: object) -> str:
    found = value.get("kind", "bert") if isinstance(value, dict) else getattr(value, "kind", None)
    return found if isinstance(found, str) else "bert"


AnyBackboneConfig = Annotated[
    Annotated[BertConfig, Tag("bert")] | Annotated[UViTConfig, Tag("uvit")], Discriminator(_kind)
]


class MaskedOptions(OrderOptions):
    """How masked generators sample (`sampling.order`). The defaults are TiTok-L-32's, but for its noise of 9.5."""

    steps: int = Field(8, gt=0, le=10_000)
    """Passes of the network. More than there are tokens draw one in each, and none in the last ones."""
    mask_schedule: MaskSchedule = "arccos"
    """How many tokens are still masked after each step."""
    choice_temperature: float = Field(4.5, ge=0, le=10_000)
    """Gumbel noise on each token's confidence, by which those are found that stay; it ends at 0 with the last step."""
    noisy_tokens: bool = True
    """Tokens are drawn at that temperature, too, the last ones greedily, as TiTok's; or at temperature 1, as MaskGIT's.
    `sampling.temperature` divides the logits of both."""
    softmax_annealing: bool = True
    """Logits are divided by 1.3 at first and by 0.5 at last, as TiTok's."""
    confidence: Literal["logit", "log-probability"] = "logit"
    """What says how sure a token is: its logit, as TiTok's, or the logarithm of its probability, as MaskGIT's."""

    def counts(self, positions: int) -> list[int]:
        """Of so many positions those that are masked before each step, and 0 at the end.

        Rounded down, but at least one position is drawn in each step while there are two, and one is left to the last.
        """
        counts = [positions]
        for step in range(1, self.steps):
            share = masked_share(self.mask_schedule, step / self.steps)
            wanted = max(1, min(counts[-1] - 1, math.floor(positions * share + 1e-9)))
            counts.append(min(counts[-1], wanted))
        return [*counts, 0]


class MaskedConfig(GeneratorConfig):
    """Predicts masked tokens from all others (MaskGIT, arXiv 2202.04200; over 1-D tokens TiTok, arXiv 2406.07550).

    A position is masked with the tokens of all its folds. There is one more row than classes, for "no class".
    """

    guidance_schedule: ClassVar[GuidanceSchedule] = GuidanceSchedule(kind="linear")
    order_options: ClassVar[type[OrderOptions]] = MaskedOptions

    kind: Literal["masked"] = "masked"
    """Family of the generator."""
    backbone: AnyBackboneConfig = BertConfig()
    """The transformer."""
    mask_schedule: MaskSchedule = "arccos"
    """How many positions are masked in training: of a random number of each sample."""
    unmasked_weight: float = Field(0.1, ge=0, le=1)
    """What a token that is not masked weighs in the loss, against 1 of one that is; 0 leaves them out."""
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    """Share of the target that goes to all codes alike. What is logged of groups and folds is without it."""

    @property
    def needs_step(self) -> bool:
        """The weights of tokens add up over the step."""
        return True

    def check_layout(self, layout: TokenLayout, forcing_width: int | None) -> None:
        """Takes any."""
