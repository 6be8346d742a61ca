"""Drawing images from a trained generator.

Image i is a function of the weights, the settings, the seed, its class and i. What chooses its tokens is keyed by
(seed, i): a number for each token, and one from which an order that draws more often goes on. To the bit, it depends on
the shape of what the kernels compute, too, and so:

    CPU   images [k n, (k + 1) n) are computed together for n = `cpu_batch`, and always n of them: those that nobody
          asked for are computed and left out. So an image has the same bits on any number of workers, in whatever
          parts it is asked for, on one kind of CPU with one version of torch.
    GPU   images [k n, (k + 1) n) are computed together for n = `batch`, those that were asked for: the same tokens but
          for ties within rounding, where parts are cut otherwise.

What can be refused is refused by the cards alone: importing this module, and checking them, loads no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import UsageError
from data_pipeline.order.permutations import keyed_bits, keyed_uniform
from data_pipeline.shards import weights
from data_pipeline.shards.weights import Card
from trainer.config import SamplingConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from model.config import GeneratorConfig
    from model.config.sampling import OrderOptions
    from model.layers.linear import PackedWeights
    from model.protocols import Generator, SamplingPlan, Tokenizer
    from trainer.evaluation.samples.recorded import RecordedDrawing


UNCONDITIONAL = "no class"
"""What is drawn is called so where the generator knows no classes; its label is 0."""


def read_cards(generator_uri: str, tokenizer_uri: str) -> dict[str, Card]:
    """The cards of a generator and of the tokenizer on whose tokens it was trained.

    Raises:
        UsageError: if one is missing, or the generator was trained on the tokens of another tokenizer.
    """
    generator, tokenizer = weights.read_card(generator_uri, "generator"), weights.read_card(tokenizer_uri, "tokenizer")
    check_tokenizer(f"at {generator_uri}", generator, tokenizer_uri, tokenizer)
    return {"generator": generator, "tokenizer": tokenizer}


def check_tokenizer(where: str, generator: Card, tokenizer_uri: str, tokenizer: Card) -> None:
    """Refuse a tokenizer on whose tokens a generator was not trained.

    Args:
        where: the generator is, for the error.
        generator: its card.
        tokenizer_uri: where the tokenizer is.
        tokenizer: its card.

    Raises:
        UsageError: if they do not belong together.
    """
    trained_on, found = generator.lineage["tokenizer"], tokenizer.encoder()
    if trained_on != found:
        raise UsageError(
            f"the generator {where} was trained on tokens of tokenizer {trained_on[:16]}, but "
            f"{tokenizer_uri} holds {found[:16]}: train the generator again on its tokens"
        )


def class_names(generator: Card) -> tuple[str, ...]:
    """The classes that a generator was trained on, by label; numbers, if its card does not name them.

    One that learnt no classes has a single one (`UNCONDITIONAL`), so that it is drawn from like any other.

    Its `num_classes` may be larger than the number of classes of its data. Nothing is drawn of the others.

    Raises:
        UsageError: if its card names more than it knows.
    """
    known = int(generator.config["generator"]["num_classes"])
    if not known:
        return (UNCONDITIONAL,)
    if len(generator.classes) > known:
        raise UsageError(
            f"the generator's card.json names {len(generator.classes)} classes, but the network knows {known}: "
            "the file was edited, restore it or train again"
        )
    return generator.classes or tuple(map(str, range(known)))


def asked_classes(generator: Card, config: SamplingConfig) -> tuple[int, ...]:
    """The classes to draw: those of the config, or all that the generator was trained on.

    Raises:
        UsageError: if the config names one that it was not trained on.
    """
    known = len(class_names(generator))
    asked = config.classes if config.classes is not None else tuple(range(known))
    wrong = [label for label in asked if not 0 <= label < known]
    if wrong:
        raise UsageError(f"sampling.classes: {wrong} are not among the generator's classes 0 to {known - 1}")
    return asked


def asked_order(generator: GeneratorConfig, config: SamplingConfig) -> OrderOptions | None:
    """What the config sets of the generator's order alone.

    Raises:
        UsageError: if that order has no such option, or not such a value; it names `sampling.order.<key>`.
    """
    try:
        return config.order_of(generator)
    except ValueError as error:
        raise UsageError(str(error)) from None


def check_order(uri: str, generator: Card, config: SamplingConfig) -> None:
    """Refuse options that the order of a generator does not have, by its card.

    Args:
        uri: of the generator, for errors of its card.
        generator: its card.
        config: how images are drawn.

    Raises:
        UsageError: as `asked_order`.
    """
    from trainer.networks import GeneratorCard

    asked_order(weights.read_config(uri, generator, GeneratorCard).generator, config)


class Prepared:
    """What is made once of two networks, for all batches and whatever the settings."""

    @cached_property
    def packed(self) -> PackedWeights:
        """Their weights, as a CPU's kernels read them."""
        from model.layers.linear import PackedWeights

        return PackedWeights()

    @cached_property
    def recorded(self) -> RecordedDrawing:
        """The kernels of a batch."""
        from trainer.evaluation.samples.recorded import RecordedDrawing

        return RecordedDrawing()


@dataclass(frozen=True)
class Sampler:
    """A generator with the tokenizer whose tokens it was trained on."""

    generator: Generator
    tokenizer: Tokenizer
    cards: dict[str, Card]
    config: SamplingConfig
    seed: int
    prepared: Prepared = field(default_factory=Prepared, repr=False, compare=False)
    """Kept when settings are replaced."""

    @classmethod
    def load(
        cls, generator_uri: str, tokenizer_uri: str, config: SamplingConfig, seed: int, device: torch.device
    ) -> Sampler:
        """Load both.

        Raises:
            UsageError: as `read_cards`.
        """
        from trainer.networks import load_generator

        check_order(generator_uri, read_cards(generator_uri, tokenizer_uri)["generator"], config)
        return cls.beside(*load_generator(generator_uri, config.ema, device), tokenizer_uri, config, seed)

    @classmethod
    def beside(cls, generator: Generator, card: Card, tokenizer_uri: str, config: SamplingConfig, seed: int) -> Sampler:
        """A generator that is in memory, with its tokenizer on the same device.

        Raises:
            UsageError: if it was trained on the tokens of another tokenizer.
        """
        from data_pipeline.shards.tokenizers import load_tokenizer

        device = next(cast("nn.Module", generator).parameters()).device
        tokenizer, tokenizer_card = load_tokenizer(tokenizer_uri, device)
        check_tokenizer("in memory", card, tokenizer_uri, tokenizer_card)
        return cls(generator, tokenizer, {"generator": card, "tokenizer": tokenizer_card}, config, seed)

    def classes(self) -> tuple[int, ...]:
        """The classes to draw.

        Raises:
            UsageError: as `asked_classes`.
        """
        return asked_classes(self.cards["generator"], self.config)

    @property
    def class_names(self) -> tuple[str, ...]:
        """All classes that the generator was trained on, by label."""
        return class_names(self.cards["generator"])

    def draw(self, label_N: Tensor, first: int = 0, kept_BLF: Tensor | None = None) -> Iterator[Tensor]:
        """Images [B, 3, H, W] in [-1, 1], float32, in batches, on the generator's device.

        Args:
            label_N: a class for each; `null_class` of the generator for none.
            first: number of the first of them among all images of the seed.
            kept_BLF: tokens that every image keeps, [1, L, F] of the generator's layout; negative ones are drawn.

        Raises:
            UsageError: if the generator's order has not the options that are set, or keeps no tokens.
        """
        for tokens_BLF in self.draw_tokens(label_N, first, kept_BLF):
            yield self.decode(tokens_BLF)

    def draw_tokens(self, label_N: Tensor, first: int = 0, kept_BLF: Tensor | None = None) -> Iterator[Tensor]:
        """Tokens [B, L, F], int64, of the images that `draw` gives, in its batches."""
        for rows, wanted in self._batches(first, len(label_N)):
            label_B = label_N[(rows - first).clip(0, len(label_N) - 1)]
            yield self._draw_batch(rows, label_B, kept_BLF)[wanted]

    def decode(self, tokens_BLF: Tensor) -> Tensor:
        """Tokens to images [B, 3, H, W] in [-1, 1], float32; on a CPU always `cpu_batch` of them at once."""
        import torch

        at_once = self.config.cpu_batch if self.device.type == "cpu" else max(1, len(tokens_BLF))
        parts = []
        with torch.no_grad(), self._mixed():
            for part_BLF in torch.split(tokens_BLF, at_once):
                missing = at_once - len(part_BLF)
                whole_BLF = torch.cat((part_BLF, part_BLF[-1:].expand(missing, -1, -1))) if missing else part_BLF
                parts.append(self.tokenizer.detokenize(whole_BLF)[: len(part_BLF)].float())
        return torch.cat(parts)

    @property
    def device(self) -> torch.device:
        """Where both are."""
        return next(cast("nn.Module", self.generator).parameters()).device

    def _batches(self, first: int, count: int) -> Iterator[tuple[npt.NDArray[np.int64], slice]]:
        """Numbers of the images that are computed together, and which of them are wanted."""
        is_cpu = self.device.type == "cpu"
        size = self.config.cpu_batch if is_cpu else self.config.batch
        for start in range(first - first % size, first + count, size):
            wanted = slice(max(start, first), min(start + size, first + count))
            rows = np.arange(start, start + size) if is_cpu else np.arange(wanted.start, wanted.stop)
            yield rows, slice(wanted.start - int(rows[0]), wanted.stop - int(rows[0]))

    def _draw_batch(self, rows: npt.NDArray[np.int64], label_B: Tensor, kept_BLF: Tensor | None) -> Tensor:
        """The tokens of some images, with whatever mode of gradients the caller is in left as it was."""
        import torch

        plan = self.plan(rows, label_B, kept_BLF)
        with torch.no_grad():
            if self.config.cuda_graphs:
                tokens_BLF = self.prepared.recorded.draw(self._tokens, plan, (self.config.precision, self.generator))
            else:
                tokens_BLF = self._tokens(plan)
        kept = plan.kept_BLF
        if kept is not None and not bool(((kept < 0) | (kept == tokens_BLF)).all()):
            raise UsageError(f"a {self.generator.config.kind} generator keeps no tokens: sample without a reference")
        return tokens_BLF

    def _tokens(self, plan: SamplingPlan) -> Tensor:
        from model.families import forcing_of

        with self._mixed():
            return self.generator.sample(plan, forcing_of(self.tokenizer))

    def plan(self, rows: npt.NDArray[np.int64], label_B: Tensor, kept_BLF: Tensor | None = None) -> SamplingPlan:
        """What is to be drawn for images of these numbers.

        Raises:
            UsageError: if the generator's order has not the options that are set.
        """
        import torch

        from model.protocols import SamplingPlan

        config, layout, device = self.config, self.generator.layout, self.device
        places = layout.positions * layout.folds
        numbers = (rows[:, None] * places + np.arange(places)).ravel()
        uniform = torch.from_numpy(keyed_uniform(self.seed, "sample", numbers))
        seeds = torch.from_numpy(keyed_bits(self.seed, "sample_again", rows).view(np.int64))
        kept = None if kept_BLF is None else kept_BLF.to(device).expand(len(rows), -1, -1)
        return SamplingPlan(
            condition_B=label_B.to(device),
            uniform_BLF=uniform.view(len(rows), layout.positions, layout.folds).to(device),
            guidance=config.guidance,
            top_k=config.top_k,
            top_p=config.top_p,
            kept_BLF=kept,
            schedule=config.guidance_schedule,
            temperature=config.temperature,
            seed_B=seeds.to(device),
            order=asked_order(self.generator.config, config),
        )

    @contextmanager
    def _mixed(self) -> Iterator[None]:
        """Products in the precision of the config; for bf16 each weight is cast once for all that is drawn."""
        import torch

        from model.layers.precision import cast_once

        with self.prepared.packed.used():
            if self.config.precision != "bf16":
                yield
                return
            networks = cast("nn.Module", self.generator), cast("nn.Module", self.tokenizer)
            with cast_once(*networks), torch.autocast(self.device.type, torch.bfloat16):
                yield
