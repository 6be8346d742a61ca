"""A trained tokenizer: images to tokens and back.

    tokenizer = load_tokenizer("runs/quickstart")
    tokens = tokenizer.encode(Image.open("shoe.png"))
    picture = tokenizer.decode(tokens, output="pil")[0]

Shapes: B images, L positions, F folds (tokens at a position), S side of an image in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from data_pipeline.shards import tokenizers
from data_pipeline.shards.weights import Card
from model.config.titok import NO_TOKENS
from model.layers.random_numbers import split_seed
from model.layout import TokenLayout
from model.protocols import Reconstructing
from model.protocols import Tokenizer as Network
from trainer.inference.exports import find_device, find_export
from trainer.inference.given_images import Fit, Given, Output, check_fit, check_output, read_images, write_images

Tokens = npt.NDArray[np.int64]


class Tokenizer:
    """Encodes images as tokens, and decodes tokens as images. `load_tokenizer` makes one.

    Args:
        network: trained and frozen.
        card: what it is.
        uri: of its export.
        device: that it is on.
        fit: how images of other sizes become squares.
    """

    def __init__(self, network: Network, card: Card, uri: str, device: torch.device, fit: Fit) -> None:
        self.network, self.card, self.uri = network, card, uri
        self._device, self._fit = device, fit

    @property
    def layout(self) -> TokenLayout:
        """What the positions and folds of its tokens are."""
        return self.network.layout

    @property
    def has_tokens(self) -> bool:
        """Whether it makes tokens; one with a Gaussian bottleneck only reconstructs images."""
        return self.network.config.has_tokens

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Numbers of leading positions from which images can be decoded, ascending; the last is all."""
        return self.network.prefixes

    @property
    def image_size(self) -> int:
        """Side S of its images, in pixels."""
        return self.network.config.image_size

    @property
    def fingerprint(self) -> str:
        """sha256 of all that its tokens follow from: tokens of tokenizers with another do not mix."""
        return self.card.encoder()

    def encode(self, images: Given, *, batch: int = 64) -> Tokens:
        """The tokens of images.

        Args:
            images: PIL, numpy or torch (see `read_images`), one or several.
            batch: images that are encoded at once.

        Returns:
            int64 [B, L, F]; of a single image, too.

        Raises:
            TypeError, ValueError: if they are no images; it says what is wrong with them.
        """
        image_BCHW = read_images(images, self.image_size, self._fit)
        with torch.inference_mode():
            parts = [self.network.tokenize(part) for part in self._parts(image_BCHW, batch)]
        return torch.cat(parts).cpu().numpy()

    def decode(self, tokens: Any, *, keep: int | None = None, output: Output = "numpy", batch: int = 64) -> Any:
        """The images that tokens stand for.

        Args:
            tokens: whole numbers [B, L, F] or [L, F], of numpy or torch.
            keep: how many leading positions are decoded, one of `prefixes`; None for all.
            output: numpy, pil or torch (see `Output`).
            batch: images that are decoded at once.

        Raises:
            ValueError: if shape or numbers are not those of this tokenizer's tokens.
        """
        check_output(output)
        tokens_BLF = check_tokens(tokens, self.layout)
        if keep is not None and keep not in self.prefixes:
            ends = ", ".join(map(str, self.prefixes))
            raise ValueError(f"keep {keep}: images can be decoded from {ends} positions, or None for all")
        with torch.inference_mode():
            parts = [self.network.detokenize(part, keep) for part in self._parts(tokens_BLF, batch)]
        return write_images(torch.cat(parts), output)

    def reconstruct(
        self,
        images: Given,
        *,
        keep: int | None = None,
        seed: int | None = None,
        first: int = 0,
        output: Output = "numpy",
        batch: int = 64,
    ) -> Any:
        """What is left of images when they have been tokens: `decode` of `encode`, with their arguments.

        A tokenizer with a Gaussian bottleneck has no tokens. It decodes the means of the latents or, with a `seed`,
        draws of them, which follow from the seed and the image's place, counted from `first`.

        Raises:
            ValueError: as `encode` and `decode`; or if a seed is given where nothing is drawn.
        """
        check_output(output)
        if self.has_tokens:
            if seed is not None:
                raise ValueError(f"seed {seed}: nothing is drawn, as this tokenizer has tokens")
            return self.decode(self.encode(images, batch=batch), keep=keep, output=output, batch=batch)
        if keep is not None:
            raise ValueError(f"keep {keep}: {NO_TOKENS}")
        image_BCHW = read_images(images, self.image_size, self._fit)
        seeds_B = split_seed(torch.tensor([seed or 0]), first + len(image_BCHW))[first:, 0]
        network = cast("Reconstructing", self.network)
        with torch.inference_mode():
            pairs = zip(self._parts(image_BCHW, batch), self._parts(seeds_B, batch), strict=True)
            parts = [network.reconstruct(image, None if seed is None else seed_B) for image, seed_B in pairs]
        return write_images(torch.cat(parts), output)

    def _parts(self, rows: Tensor, batch: int) -> Iterator[Tensor]:
        if batch < 1:
            raise ValueError(f"batch {batch}: give 1 or more")
        return (part.to(self._device) for part in torch.split(rows, batch))


def check_tokens(tokens: Any, layout: TokenLayout) -> Tensor:
    """Tokens that a user gives, as int64 [B, L, F] on the CPU.

    Raises:
        ValueError: if shape or numbers are not those of the layout.
    """
    numbers = tokens.detach().cpu().numpy() if isinstance(tokens, Tensor) else np.asarray(tokens)
    if numbers.dtype.kind not in "iu":
        raise ValueError(f"tokens of {numbers.dtype}: give whole numbers")
    given = torch.from_numpy(numbers.astype(np.int64))
    shape = (layout.positions, layout.folds)
    if given.ndim not in {2, 3} or given.shape[-2:] != shape or not given.numel():
        wanted = f"[B, {shape[0]}, {shape[1]}] or [{shape[0]}, {shape[1]}]"
        raise ValueError(f"tokens of shape {list(given.shape)}: this network's are {wanted}")
    codes_F = torch.tensor(layout.vocabularies)
    if bool(((given < 0) | (given >= codes_F)).any()):
        least, most = int(given.min()), int(given.max())
        raise ValueError(f"tokens from {least} to {most}: the codes are 0 to {int(codes_F.max()) - 1}")
    return given if given.ndim == 3 else given[None]


def load_tokenizer(uri: str, *, device: str = "cpu", fit: Fit = "crop") -> Tokenizer:
    """A trained tokenizer, with the moving average of its weights where the run kept one.

    Args:
        uri: of a run, of its tokenizer's folder or of an export: a folder, or s3://…, gs://…
        device: of torch, for instance cpu or cuda.
        fit: how images of other sizes become squares: `data.fit` of the run, crop or pad.

    Raises:
        UsageError: if there is no finished tokenizer, or it is damaged; it names the file.
        ValueError: if there is no such device or fit.
    """
    check_fit(fit)
    export, where = find_export(uri, "tokenizer"), find_device(device)
    network, card = tokenizers.load_tokenizer(export, where)
    return Tokenizer(network, card, export, where, fit)


def of_network(network: Network, card: Card, uri: str, device: str, fit: Fit = "crop") -> Tokenizer:
    """A tokenizer that is in memory already.

    Args:
        network: of it.
        card: what it is.
        uri: of its export.
        device: of torch.
        fit: how images of other sizes become squares.

    Raises:
        ValueError: if there is no such device.
    """
    where = find_device(device)
    frozen = cast("nn.Module", network).to(where).eval().requires_grad_(False)
    return Tokenizer(cast("Network", frozen), card, uri, where, fit)
