"""What can be set of generators."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from model.config.heads import AnyHeadConfig, IndependentHeadConfig
from model.config.networks import ClassCount
from model.config.sampling import GuidanceSchedule, OrderOptions
from model.config.section import MOST_CLASSES, ShareOfSteps, StepOrShare, known_step
from model.layout import TokenLayout


class GeneratorConfig(ClassCount):
    """What the configs of all generators have. Which kinds there are says model/families.py."""

    num_classes: int | None = Field(None, ge=0, le=MOST_CLASSES)
    """Classes. Null: as many as the data have, which is found when the stage begins, and recorded. More than these
    leave rows unused that are never drawn; fewer are refused. 0: it learns no classes, whatever the data have, and
    draws without one."""
    kind: str
    """Family of the generator: the order in which it predicts tokens, and its network."""
    needs_forcing: ClassVar[bool] = False
    """Whether training needs the tokenizer that made the tokens (its multi-scale sums), and not their ids alone."""
    draws_one_by_one: ClassVar[bool] = False
    """Whether sampling takes a step for each position, all alike but for what came before: a plan traces a few."""
    guidance_schedule: ClassVar[GuidanceSchedule] = GuidanceSchedule(kind="constant")
    """Guidance over the course of sampling, where a plan names none."""
    order_options: ClassVar[type[OrderOptions]] = OrderOptions
    """What can be set of sampling in this order alone."""
    label_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of training samples whose class is hidden, which makes guidance possible."""
    head: AnyHeadConfig = IndependentHeadConfig()
    """How the tokens of one position, a token of each fold, are predicted together."""
    unfold: bool = False
    """Predict the tokens of a position one after the other, as positions of one fold: what folding is compared with."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target that goes to all codes alike. What is logged of groups and folds is without it."""

    @property
    def needs_step(self) -> bool:
        """Whether training needs to know of the whole step, over all workers (`model.protocols.StepTaught`)."""
        return False

    def with_steps(self, total: int) -> Self:
        """The same with a step for each share of the training, which has `total` of them.

        Raises:
            ValueError: if these steps do not go together.
        """
        shares = {name: getattr(self, name) for name in type(self).model_fields}
        found = {name: each.steps(total) for name, each in shares.items() if isinstance(each, ShareOfSteps)}
        return type(self).model_validate(shares | found) if found else self

    def check(self, layout: TokenLayout, forcing_width: int | None) -> None:
        """Refuse tokens that such a generator cannot predict, or cannot predict unfolded (see `check_layout`).

        Raises:
            ValueError: says why, and what to do.
        """
        if not self.unfold:
            self.check_layout(layout, forcing_width)
        elif self.needs_forcing:
            raise ValueError(
                f"generator kind {self.kind} predicts from sums over all folds, so there is nothing to unfold: set "
                "unfold=false, or take a generator kind that reads token ids"
            )
        elif len(set(layout.vocabularies)) > 1:
            raise ValueError(
                f"unfolded tokens are of one fold, which folds of {list(layout.vocabularies)} codes cannot share: "
                "set unfold=false, or take codebooks of one size"
            )
        else:
            self.check_layout(layout.unfolded(), None)

    def check_layout(self, layout: TokenLayout, forcing_width: int | None) -> None:
        """Refuse tokens that such a generator cannot predict.

        Args:
            layout: of the tokens, as the network sees them.
            forcing_width: channels of the multi-scale sums of their tokenizer; None if it gives none.

        Raises:
            ValueError: says why, and what to do.
        """
        raise NotImplementedError(f"{type(self).__name__} has to say which layouts it can predict")


class NextTokenConfig(GeneratorConfig):
    """Position after position, row by row where they are a grid (LlamaGen, arXiv 2406.06525), with F tokens each.

    A transformer of language models: RMSNorm, SwiGLU, no biases, rotary positions; the class is its first input. It has
    one more row than classes, for "no class".
    """

    draws_one_by_one: ClassVar[bool] = True

    kind: Literal["next-token"] = "next-token"
    """Family of the generator."""
    depth: int = Field(12, gt=0, le=1_000)
    """Number of blocks."""
    width: int = Field(768, gt=0, le=65_536)
    """Channels of each position."""
    heads: int = Field(12, gt=0, le=1_024)
    """Attention heads."""
    mlp_width: int | None = Field(None, gt=0, le=1_000_000)
    """Hidden channels of the MLP; null for 8/3 of `width`, up to a multiple of 256."""
    rotary: Literal["grid", "line", "none"] = "grid"
    """What turns queries and keys: row and column of a square grid of positions, as published; the place in the
    sequence; nothing. Latents without a place in the image (TiTok) want line or none."""
    learned_positions: bool = False
    """A learned vector for each position is added to its input."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Of what attention and MLP add. Not together with `drop_path`, as published."""
    token_dropout: float = Field(0.1, ge=0, lt=1)
    """Of the sequence's inputs, the class included."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Stochastic depth of the last block; grows linearly from 0 at the first."""

    @property
    def hidden(self) -> int:
        """Hidden channels of the MLP."""
        return self.mlp_width or 256 * -(-int(8 * self.width / 3) // 256)

    @model_validator(mode="after")
    def _check(self) -> Self:
        step = {"grid": 4, "line": 2, "none": 1}[self.rotary]
        if self.width % self.heads or (self.width // self.heads) % step:
            raise ValueError(
                f"width {self.width} over heads {self.heads} has to be a multiple of {step}: rotary is {self.rotary}"
            )
        if self.drop_path and self.dropout:
            raise ValueError("drop_path takes the place of dropout, as published: set one of them to 0")
        if self.rotary == "none" and not self.learned_positions:
            raise ValueError("without rotary positions no position is told from another: set learned_positions")
        return self

    def check_layout(self, layout: TokenLayout, forcing_width: int | None) -> None:  # noqa: ARG002 - reads ids alone
        """Takes all tokens; rotary positions of a grid need a square one.

        Raises:
            ValueError: if the positions are none.
        """
        cells = layout.folded().positions
        if self.rotary == "grid" and (len(layout.groups) > 1 or math.isqrt(cells) ** 2 != cells):
            raise ValueError(
                f"generator kind next-token turns by rows and columns, and these tokens are {layout}, not one square "
                "grid: set generator.model.rotary=line, or rotary=none and learned_positions=true"
            )


class NextScaleConfig(GeneratorConfig):
    """The folded next-scale transformer (specs of VAR, arXiv 2404.02905, with F tokens per position).

    It has one more row than classes, for "no class".
    """

    needs_forcing: ClassVar[bool] = True
    guidance_schedule: ClassVar[GuidanceSchedule] = GuidanceSchedule(kind="linear")

    kind: Literal["next-scale"] = "next-scale"
    """Family of the generator."""
    depth: int = Field(16, gt=0, le=1_000)
    """Number of blocks."""
    width: int = Field(1024, gt=0, le=65_536)
    """Channels of each position."""
    heads: int = Field(16, gt=0, le=1_024)
    """Attention heads."""
    mlp_ratio: float = Field(4.0, gt=0, le=64)
    """Hidden width of the MLP over `width`."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Stochastic depth of the last block; grows linearly from 0 at the first."""
    shared_adaln: bool = False
    """One AdaLN projection for all blocks, with an offset per block."""
    qk_norm: bool = True
    """Normalise queries and keys to length one, with a learned temperature per head."""
    adaln_gamma_init: float = Field(1e-3, gt=0)
    """Factor on the initial weights of the AdaLN gates."""
    input_mask: float = Field(0.0, ge=0, le=1)
    """Largest share of the inputs behind the first scale that a learned vector takes the place of, in training. Each
    step draws its share evenly below that, and the largest falls linearly to 0 at `input_mask_until`."""
    input_mask_until: StepOrShare | None = None
    """Step from which no input is masked, or a share of the training; as published `{share: 1}`."""

    @property
    def needs_step(self) -> bool:
        """How many inputs are masked is a matter of the step."""
        return self.input_mask > 0

    def largest_input_mask(self, step: int) -> float:
        """Share of the inputs that a step (from 0) masks at most."""
        until = known_step(self.input_mask_until or 0)
        return self.input_mask * (1 - step / until) if step < until else 0.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        if self.input_mask and self.input_mask_until is None:
            raise ValueError("input_mask falls to 0 at input_mask_until: give that step, as published {share: 1}")
        return self

    def check_layout(self, layout: TokenLayout, forcing_width: int | None) -> None:
        """Needs several scales, and sums of them.

        Raises:
            ValueError: says what is missing.
        """
        if forcing_width is None:
            raise ValueError(
                "generator kind next-scale predicts a scale from the sum of the scales before it, and the tokenizer of "
                "these tokens gives none: take a generator kind that reads token ids, or a multi-scale tokenizer"
            )
        if len(layout.groups) == 1 and layout.positions > 1:
            raise ValueError(
                f"generator kind next-scale draws the positions of a scale in one step, and these tokens are one scale "
                f"of {layout.positions} positions: none could see another. Give the tokenizer several scales "
                "(tokenizer.model.scales), or take a generator kind that predicts positions one after another"
            )
