"""What is measured of a tokenizer, image by image: errors of reconstructions, their features, tokens, pooled latents.

    mse, psnr, ssim     [B, K]     of each prefix of the tokens: of more than 12, of 12
    lpips, …            [B]        of the full reconstruction, one for each perceptual network, by its name
    NETWORK.OUTPUT      [B, D]     what networks say of the full reconstruction, rounded to bytes
    keepN.NETWORK.features  [B, D] the same of the first N positions, where prefixes are asked for
    tokens              [B, L, F]  that were decoded, in the smallest unsigned integers
    branch_0, …         [B, C]     means over positions of the quantized latents of each branch
    replaced            [B]        share of the tokens that a perturbation has replaced by others

Errors are those of the decoder's values in [-1, 1], not of bytes; features those of bytes, as networks see images.

Shapes: B images, K prefixes, L positions, F folds, P branches, C channels of a code, D features, H height, W width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from data_pipeline.errors import UsageError
from data_pipeline.images.transforms import Pixels, to_model
from model.config.losses import PerceptualConfig
from model.families import build_perceptual
from model.protocols import Perceptual, Pooled, Reconstructing, Tokenizer
from trainer.evaluation.images import to_bytes
from trainer.evaluation.measures import Rows
from trainer.evaluation.networks.network_rows import FEATURES, row_name
from trainer.evaluation.quality import psnr, squared_error, ssim

if TYPE_CHECKING:
    from trainer.config.evaluation import Rounding

MOST_PREFIXES = 12
"""Prefixes of the tokens that are measured; of more, so many at even distances."""
QUALITIES = ("mse", "psnr", "ssim")

Features = Callable[[Tensor], Mapping[str, Tensor]]
"""A network: images, uint8 [B, 3, H, W] -> arrays by name, each with a row for each image."""
Replace = Callable[[Tensor, npt.NDArray[np.int64]], Tensor]
"""Tokens [B, L, F] and the numbers of their images [B] -> the tokens that are decoded."""


@dataclass(frozen=True)
class TokenizerMeasure:
    """An `ImageMeasure` (measures.py) of a tokenizer.

    Raises:
        UsageError: if the tokenizer makes no images; or it has no tokens, and they are to be replaced.
    """

    tokenizer: Tokenizer
    device: torch.device
    rounding: Rounding = "nearest"
    networks: Mapping[str, Features] = field(default_factory=dict)
    """By the name that their rows begin with."""
    perceptual: Mapping[str, Perceptual] = field(default_factory=dict)
    """By the name of their row."""
    perturbation: Replace | None = None
    """What replaces tokens before they are decoded (perturbed_tokens.py); None decodes the image's own."""
    of_prefixes: bool = False
    """Whether networks look at what each prefix of the tokens gives, too."""

    def __post_init__(self) -> None:
        config = self.tokenizer.config
        if not config.decodes:
            raise UsageError("the tokenizer predicts codes of a proxy, and has nothing to paint them: measure stage 2")
        if self.perturbation is not None and not config.has_tokens:
            raise UsageError("the tokenizer has a Gaussian bottleneck, and no tokens that could be perturbed")

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Numbers of leading positions that columns of errors are of; the last is all."""
        return measured_prefixes(self.tokenizer)

    def __call__(self, pixels_BHWC: Pixels, label_B: npt.NDArray[np.int64], first: int) -> Rows:  # noqa: ARG002
        """Rows of a batch.

        Args:
            pixels_BHWC: uint8.
            label_B: not looked at.
            first: number of the first image, by which a perturbation is keyed.
        """
        image_BCHW = torch.from_numpy(to_model(pixels_BHWC)).to(self.device)
        rows: Rows = {}
        with torch.inference_mode():
            if self.tokenizer.config.has_tokens:
                made = self._decoded(image_BCHW, first, rows)
            else:
                made = iter([cast("Reconstructing", self.tokenizer).reconstruct(image_BCHW)])
            columns = []
            for keep, made_BCHW in zip(self.prefixes, made, strict=True):
                if self.of_prefixes and keep != self.prefixes[-1]:
                    rows |= self._features(made_BCHW, keep)
                error_B = squared_error(made_BCHW, image_BCHW)
                columns.append([error_B, psnr(error_B), ssim(made_BCHW, image_BCHW)])
            for name, each in zip(QUALITIES, zip(*columns, strict=True), strict=True):
                rows[name] = _row(torch.stack(each, dim=1))
            for name, distance in self.perceptual.items():
                rows[name] = _row(distance(made_BCHW, image_BCHW))
            return rows | self._features(made_BCHW)

    def _decoded(self, image_BCHW: Tensor, first: int, rows: Rows) -> Iterator[Tensor]:
        """What each prefix gives; rows of the tokens go to `rows`."""
        layout = self.tokenizer.layout
        tokens_BLF = self.tokenizer.tokenize(image_BCHW)
        if self.perturbation is not None:
            own_BLF = tokens_BLF
            tokens_BLF = self.perturbation(own_BLF, np.arange(first, first + len(own_BLF), dtype=np.int64))
            rows["replaced"] = _row((tokens_BLF != own_BLF).float().mean((1, 2)))
        smallest = np.min_scalar_type(max(layout.vocabularies) - 1)
        rows["tokens"] = tokens_BLF.cpu().numpy().astype(smallest)
        if isinstance(self.tokenizer, Pooled):
            for branch, pooled_BC in enumerate(self.tokenizer.pooled(tokens_BLF).unbind(1)):
                rows[f"branch_{branch}"] = _row(pooled_BC)
        for keep in self.prefixes:
            yield self.tokenizer.detokenize(tokens_BLF, keep)

    def _features(self, made_BCHW: Tensor, keep: int | None = None) -> Rows:
        """All outputs of each network; of a prefix the features alone."""
        if not self.networks:
            return {}
        pixels_BHWC = to_bytes(made_BCHW, self.rounding)
        pixels_BCHW = torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2).contiguous().to(self.device)
        return {
            row_name(slot, name, keep): _row(values)
            for slot, network in self.networks.items()
            for name, values in network(pixels_BCHW).items()
            if keep is None or name == FEATURES
        }


def reconstructing(tokenizer: Tokenizer, device: torch.device) -> Callable[[Pixels], npt.NDArray[np.float32]]:
    """There and back: images uint8 [B, H, W, 3] -> what is left of them, float32 in [-1, 1], of the same shape."""

    @torch.inference_mode()
    def reconstruct(pixels_BHWC: Pixels) -> npt.NDArray[np.float32]:
        image_BCHW = torch.from_numpy(to_model(pixels_BHWC)).to(device)
        if tokenizer.config.has_tokens:
            made_BCHW = tokenizer.detokenize(tokenizer.tokenize(image_BCHW))
        else:
            made_BCHW = cast("Reconstructing", tokenizer).reconstruct(image_BCHW)
        return _row(made_BCHW.permute(0, 2, 3, 1))

    return reconstruct


def measured_prefixes(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Prefixes of a tokenizer that are measured: at most 12, at even distances; the last, which is all, is one."""
    return spread(tokenizer.prefixes) if tokenizer.config.has_tokens else tokenizer.prefixes[-1:]


def spread(prefixes: Sequence[int], most: int = MOST_PREFIXES) -> tuple[int, ...]:
    """At most so many prefixes, at even distances; the last, which is all, is one of them."""
    chosen = np.unique(np.linspace(len(prefixes) - 1, 0, min(most, len(prefixes))).round().astype(int))
    return tuple(prefixes[place] for place in chosen)


def perceptual_networks(configs: Sequence[PerceptualConfig], device: torch.device) -> dict[str, Perceptual]:
    """Those of a loss (`tokenizer.loss.perceptual`) that need no teacher, by the name of their row.

    Raises:
        ValueError: if a file is not given, not there, or not what it should be; it says which, and where to get it.
    """
    found: dict[str, Perceptual] = {}
    for name, config in _by_row(configs).items():
        network = build_perceptual(config)
        cast("nn.Module", network).to(device).eval().requires_grad_(False)
        found[name] = network
    return found


def perceptual_identities(configs: Sequence[PerceptualConfig]) -> dict[str, dict[str, Any]]:
    """What each of them is, as JSON, by the name of its row."""
    return {name: config.model_dump(mode="json") for name, config in _by_row(configs).items()}


def _by_row(configs: Sequence[PerceptualConfig]) -> dict[str, PerceptualConfig]:
    """By their kind; a second of a kind is lpips_2."""
    found: dict[str, PerceptualConfig] = {}
    kinds: Counter[str] = Counter()
    for config in configs:
        if not config.needs_teacher:
            kinds[config.kind] += 1
            number = f"_{kinds[config.kind]}" if kinds[config.kind] > 1 else ""
            found[config.kind.replace("-", "_") + number] = config
    return found


def _row(values: Tensor) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = values.float().cpu().numpy()
    return found
