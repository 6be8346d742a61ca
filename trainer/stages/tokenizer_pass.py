"""A tokenizer's pass over one micro-batch, and what it has to know of the whole step.

    look        of each micro-batch, before the first pass, where a step has several: what is compared, means, and
                for an adaptive adversarial weight the image's losses with their gradients at the last layer
    share       from all of them, over all workers: contrastive losses, terms of means, the weight
    terms       the pass itself: what it makes is compared, judged, and carries the gradients of all that

Where a step has one micro-batch, its pass looks and shares by itself.

Shapes: B samples, C channels, H = W side in pixels, P branches, D width of a teacher's features, W elements of the
tokenizer's last layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from model.layers.random_numbers import split_seed
from model.losses.contrastive import carry_gradients, temperature_at
from model.protocols import Tokenizer, TokenizerOutput
from trainer.config import TokenizerStageConfig
from trainer.engine.batches import Batch, normalized
from trainer.engine.engine import Engine
from trainer.engine.scalars import Terms
from trainer.stages.adversary import PURPOSES, Adversary, Judged
from trainer.stages.contrast import Compared, Sides, carry, compare
from trainer.stages.global_means import OfMeans, carry_means, of_means
from trainer.stages.guides import PERCEPTUAL, Guides
from trainer.stages.image_losses import ImageLosses, Side
from trainer.stages.proxy import PROXY_CODES, proxy_codes

DROPPED = "dropped"
"""Of what is drawn for each sample: whether it leaves contrastive losses, bool."""


@dataclass(frozen=True, kw_only=True)
class TokenizerImages(Batch):
    """Images, and what the tokenizer drew for them."""

    step: int
    """Number of the step, from 0."""
    pixels_BCHW: Tensor
    """uint8."""
    drawn_B: dict[str, Tensor]
    """For each sample (`Draws.of_sample`)."""
    drawn: dict[str, Tensor]
    """For the step (`Draws.of_step`)."""
    judge_seed_B: Tensor
    """What is random of each sample where the discriminator looks follows from these, int64."""
    fires_33: Tensor
    """Which kinds of augmentation are used in the step, by purpose (adversary.py), bool."""


@dataclass(frozen=True)
class ImageSides:
    """What the image's losses are of a micro-batch."""

    similarity: Side
    verdict: Side | None
    """The discriminator's; None before its start."""
    at_last_2W: Tensor | None
    """Gradients of both at the tokenizer's last layer, float32; None if nobody asks for them."""


@dataclass(frozen=True)
class Seen:
    """What is known of a micro-batch before its backward."""

    features: dict[str, Tensor]
    """What teachers see in its images, by term."""
    sides: dict[str, Sides]
    """What contrastive losses compare, by their names."""
    means: Terms
    """Means over its samples (`TokenizerOutput.means`)."""
    image: ImageSides | None
    """None where that is known only in the pass itself."""


@dataclass(frozen=True)
class Ahead:
    """What a micro-batch has to know of the step."""

    seen: Seen
    """Of itself."""
    compared: dict[str, Compared]
    of_means: OfMeans
    weight: Tensor | None
    """Of the adversarial term; None before its start."""


class TokenizerPass:
    """The losses of a tokenizer, of one micro-batch or, where they need it, of the step.

    Args:
        config: of the stage.
        network: the tokenizer.
        guides: teachers.
        images: losses of images.
        adversary: the discriminator; None without one.
        proxy: the frozen tokenizer whose codes are learnt; None without one.
    """

    def __init__(
        self,
        config: TokenizerStageConfig,
        network: Tokenizer,
        guides: Guides,
        images: ImageLosses,
        adversary: Adversary | None,
        proxy: Tokenizer | None = None,
    ) -> None:
        self._config, self._network, self._guides = config, network, guides
        self._images, self._adversary, self._proxy = images, adversary, proxy
        self._contrasts = config.loss.contrasts

    # ------------------------------------------------------------------------------------------------------- looking

    @property
    def has_to_look(self) -> bool:
        """Whether several micro-batches have to be looked at before their passes, as far as the encoder goes."""
        quantizers = cast("nn.Module", self._network).modules()
        return bool(self._contrasts) or any(getattr(each, "soft", None) is not None for each in quantizers)

    def look(self, batch: TokenizerImages) -> Seen:
        """A preview that ends where the decoder begins."""
        return self._begin(batch, None, decode=False)[1]

    def look_at_images(self, batch: TokenizerImages, critic: Engine) -> Seen:
        """A preview with the image's losses, and gradients at the last layer alone."""
        output, seen = self._begin(batch, None, decode=True)
        image = self._image_sides(batch, output, seen, critic)
        return Seen(seen.features, seen.sides, seen.means, image)

    def _begin(
        self, batch: TokenizerImages, features: dict[str, Tensor] | None, *, decode: bool
    ) -> tuple[TokenizerOutput, Seen]:
        """What a look and a pass begin with alike, so that ZeRO 3 can fetch ahead."""
        image_BCHW = normalized(batch.pixels_BCHW)
        if features is None:
            features = self._guides.look(image_BCHW)
        teacher = {name: self._network.project_teacher(features[name]) for name in self._contrasts}
        drawn = batch.drawn_B | batch.drawn
        if self._proxy is not None:
            drawn[PROXY_CODES] = proxy_codes(self._proxy, image_BCHW)
        output = self._network(image_BCHW, drawn, batch.seed_B, decode=decode)
        sides = {}
        for name, teacher_BC in teacher.items():
            assert output.branch_BPC is not None  # the tokenizer compares, or this stage was refused
            branches = list(self._contrasts[name].branch_numbers(output.branch_BPC.shape[1]))
            student_BPC = torch.stack([output.branch_BPC[:, branch] for branch in branches], dim=1)
            sides[name] = Sides(student_BPC, teacher_BC, batch.drawn_B.get(DROPPED))
        return output, Seen(features, sides, output.means, None)

    def _image_sides(
        self, batch: TokenizerImages, output: TokenizerOutput, seen: Seen, critic: Engine | None
    ) -> ImageSides:
        made_BCHW = output.reconstruction_BCHW
        image_BCHW = normalized(batch.pixels_BCHW)
        similarity = self._images.similarity(made_BCHW, image_BCHW, seen.features.get(PERCEPTUAL))
        if self._adversary is None or critic is None:
            return ImageSides(similarity, None, None)
        verdict = self._adversary.verdict(judged_of(batch, made_BCHW), batch.step, critic)
        if not self._adversary.config.adaptive:
            return ImageSides(similarity, verdict, None)
        last = cast("nn.Module", self._network).get_parameter(self._network.last_layer)
        rows = []
        for side in (similarity, verdict):
            (gradient,) = torch.autograd.grad(
                made_BCHW, last, side.gradient_BCHW.to(made_BCHW.dtype), retain_graph=True
            )
            rows.append(gradient.float().flatten())
        return ImageSides(similarity, verdict, torch.stack(rows))

    # ------------------------------------------------------------------------------------------------------- sharing

    def share(self, seen: Sequence[Seen], step: int, *, against: bool) -> list[Ahead]:
        """What all micro-batches of all workers come to (a collective).

        Args:
            seen: of each micro-batch of this rank.
            step: number of the step.
            against: whether the discriminator has started.
        """
        compared: dict[str, list[Compared]] = {}
        for name, config in self._contrasts.items():
            progress = step / self._config.trainer.steps
            factor = temperature_at(progress, config.temperature, config.final_temperature, config.temperature_stairs)
            compared[name] = compare([each.sides[name] for each in seen], factor, normalize=config.normalize)
        found = of_means([each.means for each in seen], self._network.losses_of_means)
        weight = None
        if self._adversary is not None and against:
            known = [each.image.at_last_2W for each in seen if each.image is not None]
            weight = self._adversary.weigh([rows for rows in known if rows is not None])
        return [
            Ahead(each, {name: parts[at] for name, parts in compared.items()}, found, weight)
            for at, each in enumerate(seen)
        ]

    # ------------------------------------------------------------------------------------------------------ the pass

    def terms(
        self, batch: TokenizerImages, ahead: Ahead | None = None, critic: Engine | None = None
    ) -> tuple[Terms, TokenizerOutput]:
        """All terms of the loss, and the loss; and what the tokenizer made.

        Args:
            batch: a micro-batch.
            ahead: what it has to know of the step; None for the only one of this rank's step (a collective then).
            critic: the discriminator's engine, frozen; None before its start.
        """
        output, seen = self._begin(batch, None if ahead is None else ahead.seen.features, decode=True)
        image = ahead.seen.image if ahead is not None else None
        if image is None and self._config.model.paints:
            image = self._image_sides(batch, output, seen, critic)
        if ahead is None:
            alone = Seen(seen.features, seen.sides, seen.means, image)
            (ahead,) = self.share([alone], batch.step, against=critic is not None)
        terms, losses = dict(output.losses), list(output.losses.values())
        for name, config in self._contrasts.items():
            terms[name] = carry(seen.sides[name], ahead.compared[name])
            losses.append(config.weight * terms[name])
        if ahead.of_means.terms:
            terms |= ahead.of_means.terms
            losses.append(carry_means(output.means, ahead.of_means))
        of_image: Terms = {}
        if image is not None:
            of_image, loss = self._of_image(output.reconstruction_BCHW, image, ahead.weight)
            losses.insert(0, loss)
        return of_image | terms | {"loss": torch.stack(losses).sum()}, output

    def _of_image(self, made_BCHW: Tensor, image: ImageSides, weight: Tensor | None) -> tuple[Terms, Tensor]:
        """The terms of the image, and their weighted sum with its gradient to the reconstruction."""
        terms, loss, gradient_BCHW = dict(image.similarity.terms), image.similarity.loss, image.similarity.gradient_BCHW
        if image.verdict is not None:
            assert weight is not None
            terms |= image.verdict.terms | {"adversarial_weight": weight}
            loss = loss + weight * image.verdict.loss
            gradient_BCHW = gradient_BCHW + weight * image.verdict.gradient_BCHW
        return terms, carry_gradients(loss, (made_BCHW, gradient_BCHW))


def judged_of(batch: TokenizerImages, made_BCHW: Tensor) -> Judged:
    """What the discriminator sees of a micro-batch, and what was made of it."""
    seed_3B = split_seed(batch.judge_seed_B, PURPOSES)
    return Judged(normalized(batch.pixels_BCHW), made_BCHW, seed_3B, batch.fires_33)
