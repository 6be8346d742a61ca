"""A trained generator: classes to images.

    generator = Generator.load("runs/quickstart")
    pictures = generator.sample(["Sneaker", "Bag"], seed=1, output="pil")
    pictures[0].save("sneaker.png")
    tokens = generator.tokens(["Sneaker", "Bag"], seed=1)
    pictures = generator.images(tokens, output="pil")

Shapes: B images, S side of an image in pixels.
"""

from __future__ import annotations

import difflib
import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from data_pipeline.shards.weights import Card
from data_pipeline.text.json_records import first_problem
from model.config.sampling import GuidanceSchedule
from model.layout import TokenLayout
from trainer.config import SamplingConfig
from trainer.evaluation.samples.sampler import Sampler, asked_order
from trainer.inference.exports import find_device, find_export, find_tokenizer
from trainer.inference.given_images import Given, Output, check_output, read_images, write_images
from trainer.inference.kept_tokens import kept_places, kept_tokens
from trainer.inference.tokenizer import Tokenizer, Tokens, check_tokens

Class = int | str | None
"""The number of a class (its label), or its name; None for no class."""


class Settings(TypedDict, total=False):
    """How images are drawn: `sampling` of the config, with its defaults."""

    guidance: float
    """Classifier-free guidance g of c + g (c - u); 0 for none. By default 2."""
    guidance_schedule: GuidanceSchedule | Mapping[str, Any] | None
    """How much of it acts when, for instance {"kind": "cosine", "power": 3}; None for the order's own."""
    temperature: float
    """What logits are divided by; below 1 draws likelier tokens."""
    top_k: int
    """Draw from the k likeliest tokens; 0 for all."""
    top_p: float
    """Draw from the likeliest tokens that hold this much probability."""
    order: Mapping[str, Any]
    """What can be set of the generator's order alone, such as {"steps": 8} of a masked one."""
    precision: Literal["fp32", "bf16"]
    """Number format of matrix products."""
    batch: int
    """Images that are drawn at once on a GPU."""
    cpu_batch: int
    """Images that are drawn at once on a CPU; to the bit, an image depends on it."""
    cuda_graphs: bool
    """On a GPU, launch what a batch needs at once."""


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

    @property
    def layout(self) -> TokenLayout:
        """What the positions and folds of its tokens are."""
        return self._sampler.generator.layout

    @classmethod
    def load(
        cls, uri: str, *, tokenizer: str | Tokenizer | None = None, device: str = "cpu", ema: bool = True
    ) -> Generator:
        """As `load_generator`."""
        return load_generator(uri, tokenizer=tokenizer, device=device, ema=ema)

    def sample(
        self,
        classes: Class | Sequence[Class],
        *,
        seed: int = 0,
        first: int = 0,
        reference: Given | None = None,
        keep: str | None = None,
        output: Output = "numpy",
        **settings: Unpack[Settings],
    ) -> Any:
        """An image of each class that is named, in this order; a class may be named often.

        Image i is a function of the weights, the settings, the seed, its class and i: not of the others, nor of how
        many are asked for at once.

        Args:
            classes: numbers or names of classes, one or several; None among them is an image of no class.
            seed: another one gives other images.
            first: number i of the first image.
            reference: an image whose tokens are kept in part: PIL, numpy or torch.
            keep: what is kept of it: a branch's name, scales:N, latents:N, or mask:FILE.
            output: numpy, pil or torch (see `Output`).
            settings: how they are drawn (see `Settings`).

        Raises:
            ValueError: if there is no such class, or a number is out of its range; it names it.
            UsageError: if the generator's order has no such option, or `keep` means nothing for its tokens.
        """
        check_output(output)
        sampler, label_N = self._asked(classes, seed, first, settings)
        return write_images(torch.cat(list(sampler.draw(label_N, first, self._kept(reference, keep)))), output)

    def tokens(
        self,
        classes: Class | Sequence[Class],
        *,
        seed: int = 0,
        first: int = 0,
        reference: Given | None = None,
        keep: str | None = None,
        **settings: Unpack[Settings],
    ) -> Tokens:
        """The tokens of the images that `sample` gives, int64 [B, positions, folds]. Arguments and errors as there."""
        sampler, label_N = self._asked(classes, seed, first, settings)
        kept = self._kept(reference, keep)
        return torch.cat(list(sampler.draw_tokens(label_N, first, kept))).cpu().numpy()

    def images(self, tokens: Any, *, output: Output = "numpy") -> Any:
        """The images that tokens stand for, decoded by the tokenizer on whose tokens it was trained.

        Args:
            tokens: whole numbers [B, positions, folds] or [positions, folds], of numpy or torch.
            output: numpy, pil or torch (see `Output`).

        Raises:
            ValueError: if shape or numbers are not those of this generator's tokens.
        """
        check_output(output)
        tokens_BLF = check_tokens(tokens, self.layout).to(self._sampler.device)
        return write_images(self._sampler.decode(tokens_BLF), output)

    def _kept(self, reference: Given | None, keep: str | None) -> Tensor | None:
        """The tokens of a reference where they are kept, and -1 elsewhere, [1, L, F]."""
        if (reference is None) != (keep is None):
            raise ValueError("reference is an image, and keep what is kept of it: give both, or neither")
        if reference is None or keep is None:
            return None
        tokenizer = self._sampler.tokenizer
        image = read_images(reference, tokenizer.config.image_size, "crop")
        if len(image) != 1:
            raise ValueError(f"reference: {len(image)} images: give one")
        kept_LF = kept_tokens(tokenizer, image, kept_places(tokenizer.config, keep))
        return torch.from_numpy(kept_LF)[None]

    def _asked(
        self, classes: Class | Sequence[Class], seed: int, first: int, settings: Settings
    ) -> tuple[Sampler, Tensor]:
        """What draws with these settings, and the labels of these classes."""
        several: list[Class] = [classes] if np.ndim(classes) == 0 else list(classes)  # type: ignore[arg-type, list-item]
        if not several:
            raise ValueError("no classes to draw: name at least one")
        if first < 0:
            raise ValueError(f"first {first}: images are numbered from 0")
        label_N = torch.tensor([self._label(each) for each in several])
        try:
            config = SamplingConfig.model_validate({"ema": self._sampler.config.ema, **settings})
        except ValidationError as error:
            raise ValueError(f"sample: {first_problem(error)}") from None
        sampler = replace(self._sampler, config=config, seed=seed)
        asked_order(sampler.generator.config, config)
        return sampler, label_N

    def _label(self, asked: Class) -> int:
        names = self.class_names
        if asked is None:
            return self._sampler.generator.null_class
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
