"""Drawing images from a trained generator.

Image i is a function of the weights, the seed and i: the numbers that choose its tokens are keyed by (seed, i, place),
so it does not matter how many images are drawn at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data_pipeline.errors import UsageError
from data_pipeline.order import keyed_uniform
from data_pipeline.weights import Card
from model.generator import FoldedGenerator
from model.sampling import generate
from model.tokenizer import ImageFolderTokenizer
from trainer.config import SamplingConfig
from trainer.networks import load_generator, load_tokenizer


@dataclass(frozen=True)
class Sampler:
    """A generator with the tokenizer whose tokens it was trained on."""

    generator: FoldedGenerator
    tokenizer: ImageFolderTokenizer
    cards: dict[str, Card]
    config: SamplingConfig
    seed: int

    @classmethod
    def load(
        cls, generator_uri: str, tokenizer_uri: str, config: SamplingConfig, seed: int, device: torch.device
    ) -> Sampler:
        """Load both.

        Raises:
            UsageError: if the generator was trained on the tokens of another tokenizer.
        """
        generator, generator_card = load_generator(generator_uri, config.ema, device)
        tokenizer, tokenizer_card = load_tokenizer(tokenizer_uri, device)
        trained_on = generator_card.lineage["tokenizer"]
        if trained_on != tokenizer_card.fingerprint():
            raise UsageError(
                f"the generator at {generator_uri} was trained on tokens of tokenizer {trained_on[:16]}, but "
                f"{tokenizer_uri} holds {tokenizer_card.fingerprint()[:16]}: train the generator again on its tokens"
            )
        return cls(generator, tokenizer, {"generator": generator_card, "tokenizer": tokenizer_card}, config, seed)

    def classes(self) -> tuple[int, ...]:
        """The classes to draw.

        Raises:
            UsageError: if the config names one that the generator does not know.
        """
        known = self.generator.null_class
        asked = self.config.classes if self.config.classes is not None else tuple(range(known))
        wrong = [c for c in asked if not 0 <= c < known]
        if wrong:
            raise UsageError(f"sampling.classes: {wrong} are not among the generator's classes 0 to {known - 1}")
        return asked

    def draw(self, label_N: Tensor) -> Iterator[Tensor]:
        """Images [B, 3, H, W] in [-1, 1] of the given classes, in batches; image i has label_N[i]."""
        layout = self.generator.layout
        device = next(self.generator.parameters()).device
        places = layout.positions * layout.folds
        with torch.inference_mode():
            for first in range(0, len(label_N), self.config.batch):
                label_B = label_N[first : first + self.config.batch].to(device)
                numbers = np.arange(first * places, (first + len(label_B)) * places, dtype=np.int64)
                uniform = torch.from_numpy(keyed_uniform(self.seed, "sample", numbers))
                uniform_BLF = uniform.view(len(label_B), layout.positions, layout.folds).to(device)
                guidance, top_k, top_p = self.config.guidance, self.config.top_k, self.config.top_p
                tokens_BLF = generate(
                    self.generator, self.tokenizer.quantizer, label_B, uniform_BLF, guidance, top_k, top_p
                )
                yield self.tokenizer.reconstruct(tokens_BLF)
