"""A trained generator: classes to images.

    generator = load_generator("runs/quickstart")
    pictures = generator.sample(["Sneaker", "Bag"], seed=1, output="pil")
    pictures[0].save("sneaker.png")

Shapes: B images, S side of an image in pixels.
"""

from __future__ import annotations

import difflib
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from data_pipeline.shards.manifest import first_problem
from data_pipeline.shards.weights import Card
from trainer.config import SamplingConfig
from trainer.evaluation.sampler import Sampler
from trainer.inference.exports import find_device, find_export, find_tokenizer
from trainer.inference.given_images import Output, check_output, write_images
from trainer.inference.tokenizer import Tokenizer

Class = int | str
"""The number of a class (its label), or its name."""


class Generator:
    """Draws images of classes. `load_generator` makes one.

    Args:
        sampler: the generator, with the tokenizer whose tokens it speaks.
        uri: of its export.
    """

    def __init__(self, sampler: Sampler, uri: str) -> None:
        self._sampler, self.uri = sampler, uri

    @property
    def card(self) -> Card:
        """What it is."""
        return self._sampler.cards["generator"]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that it was trained on, by number."""
        return self._sampler.class_names

    @property
    def image_size(self) -> int:
        """Side S of its images, in pixels."""
        return self._sampler.tokenizer.config.image_size

    def sample(
        self,
        classes: Class | Sequence[Class],
        *,
        seed: int = 0,
        guidance: float = 2.0,
        top_k: int = 0,
        top_p: float = 1.0,
        output: Output = "numpy",
        batch: int = 100,
    ) -> Any:
        """An image of each class that is named, in this order; a class may be named often.

        Image i is a function of the weights, the seed, its class and i: not of the others, nor of `batch`.

        Args:
            classes: numbers or names of classes, one or several.
            seed: another one gives other images.
            guidance: classifier-free guidance at the last scale; 0 for none.
            top_k: draw from the k likeliest tokens; 0 for all.
            top_p: draw from the likeliest tokens that hold this much probability.
            output: numpy, pil or torch (see `Output`).
            batch: images that are drawn at once.

        Raises:
            ValueError: if there is no such class, or a number is out of its range; it names it.
        """
        check_output(output)
        several: list[Class] = [classes] if np.ndim(classes) == 0 else list(classes)  # type: ignore[arg-type, list-item]
        if not several:
            raise ValueError("no classes to draw: name at least one")
        labels = torch.tensor([self._label(each) for each in several])
        settings = {"guidance": guidance, "top_k": top_k, "top_p": top_p, "batch": batch}
        try:
            config = SamplingConfig.model_validate(settings)
        except ValidationError as error:
            raise ValueError(f"sample: {first_problem(error)}") from None
        own = self._sampler
        sampler = Sampler(own.generator, own.tokenizer, own.cards, config, seed)
        return write_images(torch.cat(list(sampler.draw(labels))), output)

    def _label(self, asked: Class) -> int:
        names = self.class_names
        if isinstance(asked, str):
            if asked in names:
                return names.index(asked)
            near = difflib.get_close_matches(asked, names, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else f"the first of its {len(names)} are {', '.join(names[:5])}"
            raise ValueError(f"the generator has no class {asked!r}: {hint}")
        number = operator.index(asked)  # of numpy and torch, too
        if not 0 <= number < len(names):
            raise ValueError(f"the generator has no class {number}: they are 0 to {len(names) - 1}")
        return number


def load_generator(
    uri: str, *, tokenizer: str | Tokenizer | None = None, device: str = "cpu", ema: bool = True
) -> Generator:
    """A trained generator, with the tokenizer on whose tokens it was trained.

    Args:
        uri: of a run, of its generator's folder or of an export: a folder, or s3://…, gs://…
        tokenizer: the tokenizer, or its URI; None for the one of the same run, or that its config names.
        device: of torch, for instance cpu or cuda.
        ema: use the moving average of the weights, where the run kept one.

    Raises:
        UsageError: if one of them is missing, unfinished or damaged, or they do not belong together; it names the file.
        ValueError: if there is no such device.
    """
    export, where = find_export(uri, "generator"), find_device(device)
    if tokenizer is None:
        spoken = find_tokenizer(export)
    else:
        spoken = tokenizer.uri if isinstance(tokenizer, Tokenizer) else find_export(tokenizer, "tokenizer")
    return Generator(Sampler.load(export, spoken, SamplingConfig(ema=ema), 0, where), export)
