"""Drawing images from a trained generator.

Image i is a function of the weights, the seed and i: the numbers that choose its tokens are keyed by (seed, i, place),
so it does not matter how many images are drawn at once. What can be refused is refused by the cards alone: importing
this module, and checking them, loads no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from data_pipeline.errors import UsageError
from data_pipeline.order.permutations import keyed_uniform
from data_pipeline.shards import weights
from data_pipeline.shards.weights import Card
from trainer.config import SamplingConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from model.protocols import Generator, Tokenizer


def read_cards(generator_uri: str, tokenizer_uri: str) -> dict[str, Card]:
    """The cards of a generator and of the tokenizer on whose tokens it was trained.

    Raises:
        UsageError: if one is missing, or the generator was trained on the tokens of another tokenizer.
    """
    generator, tokenizer = weights.read_card(generator_uri, "generator"), weights.read_card(tokenizer_uri, "tokenizer")
    trained_on, found = generator.lineage["tokenizer"], tokenizer.encoder()
    if trained_on != found:
        raise UsageError(
            f"the generator at {generator_uri} was trained on tokens of tokenizer {trained_on[:16]}, but "
            f"{tokenizer_uri} holds {found[:16]}: train the generator again on its tokens"
        )
    return {"generator": generator, "tokenizer": tokenizer}


def class_names(generator: Card) -> tuple[str, ...]:
    """The classes that a generator was trained on, by label; numbers, if its card does not name them.

    Its `num_classes` may be larger than the number of classes of its data. Nothing is drawn of the others.

    Raises:
        UsageError: if its card names more than it knows.
    """
    known = int(generator.config["generator"]["num_classes"])
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


@dataclass(frozen=True)
class Sampler:
    """A generator with the tokenizer whose tokens it was trained on."""

    generator: Generator
    tokenizer: Tokenizer
    cards: dict[str, Card]
    config: SamplingConfig
    seed: int

    @classmethod
    def load(
        cls, generator_uri: str, tokenizer_uri: str, config: SamplingConfig, seed: int, device: torch.device
    ) -> Sampler:
        """Load both.

        Raises:
            UsageError: as `read_cards`.
        """
        from data_pipeline.shards.tokenizers import load_tokenizer
        from trainer.networks import load_generator

        read_cards(generator_uri, tokenizer_uri)
        generator, generator_card = load_generator(generator_uri, config.ema, device)
        tokenizer, tokenizer_card = load_tokenizer(tokenizer_uri, device)
        return cls(generator, tokenizer, {"generator": generator_card, "tokenizer": tokenizer_card}, config, seed)

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

    def draw(self, label_N: Tensor) -> Iterator[Tensor]:
        """Images [B, 3, H, W] in [-1, 1] of the given classes, in batches; image i has label_N[i]."""
        import torch

        from model.families import forcing_of
        from model.protocols import SamplingPlan

        layout, forcing = self.generator.layout, forcing_of(self.tokenizer)
        device = next(cast("nn.Module", self.generator).parameters()).device
        places = layout.positions * layout.folds
        with torch.inference_mode():
            for first in range(0, len(label_N), self.config.batch):
                label_B = label_N[first : first + self.config.batch].to(device)
                numbers = np.arange(first * places, (first + len(label_B)) * places, dtype=np.int64)
                uniform = torch.from_numpy(keyed_uniform(self.seed, "sample", numbers))
                uniform_BLF = uniform.view(len(label_B), layout.positions, layout.folds).to(device)
                drawn = SamplingPlan(label_B, uniform_BLF, self.config.guidance, self.config.top_k, self.config.top_p)
                yield self.tokenizer.detokenize(self.generator.sample(drawn, forcing))
