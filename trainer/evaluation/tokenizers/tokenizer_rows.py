"""A tokenizer as something that is measured, by name: workers load it, and measure images with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_pipeline.errors import UsageError
from data_pipeline.shards.weights import Card
from model.config.losses import PerceptualConfig
from trainer.config.evaluation import Rounding
from trainer.evaluation.measures import ImageMeasure
from trainer.evaluation.networks.network_rows import Slot, open_slots
from trainer.evaluation.tokenizers.perturbed_tokens import TokenPerturbation
from trainer.evaluation.tokenizers.tokenizer_numbers import Columns

if TYPE_CHECKING:
    import torch

    from model.protocols import Tokenizer


@dataclass(frozen=True)
class TokenizerRows:
    """Rows of the reconstructions of a tokenizer (tokenizer_measure.py)."""

    uri: str
    """Of its export."""
    tokenizer: dict[str, str]
    """Fingerprints of what encodes and what decodes."""
    rounding: Rounding = "nearest"
    slots: tuple[Slot, ...] = ()
    """Networks that look at reconstructions."""
    perceptual: tuple[PerceptualConfig, ...] = ()
    perturbation: TokenPerturbation | None = None
    """What replaces tokens before they are decoded; None decodes the image's own."""
    of_prefixes: bool = False
    """Whether networks look at what each prefix of the tokens gives, too."""

    @classmethod
    def of(
        cls,
        uri: str,
        card: Card,
        rounding: Rounding,
        slots: tuple[Slot, ...],
        perceptual: tuple[PerceptualConfig, ...] = (),
        perturbation: TokenPerturbation | None = None,
        of_prefixes: bool = False,
    ) -> TokenizerRows:
        """Of an export with this card."""
        halves = {"encoder": card.encoder(), "decoder": card.decoder()}
        return cls(uri, halves, rounding, slots, perceptual, perturbation, of_prefixes)

    def identity(self) -> dict[str, Any]:
        """The tokenizer, and what looks at its reconstructions."""
        return {
            "kind": "tokenizer",
            "tokenizer": self.tokenizer,
            "rounding": self.rounding,
            "networks": {slot.name: slot.identity for slot in self.slots},
            "perceptual": [each.model_dump(mode="json") for each in self.perceptual],
            "perturbation": None if self.perturbation is None else self.perturbation.to_json(),
            "of_prefixes": self.of_prefixes,
        }

    def open(self, device: torch.device) -> ImageMeasure:
        """Load it.

        Raises:
            UsageError: if it is another by now, or its tokens cannot be perturbed so.
        """
        from trainer.evaluation.tokenizers.tokenizer_measure import TokenizerMeasure, perceptual_networks

        tokenizer = _load(self.uri, self.tokenizer, device)
        networks = open_slots(self.slots, device)
        perceptual = perceptual_networks(self.perceptual, device)
        replace = None if self.perturbation is None else self.perturbation.of(tokenizer)
        return TokenizerMeasure(tokenizer, device, self.rounding, networks, perceptual, replace, self.of_prefixes)


@dataclass(frozen=True)
class ProbeRows:
    """Rows that linear probes of a tokenizer's branches are trained and judged on (linear_probe.py)."""

    uri: str
    """Of its export."""
    tokenizer: dict[str, str]
    """Fingerprints of what encodes and what decodes."""
    pixels: bool = True
    """Whether pixels are rows, too."""

    @classmethod
    def of(cls, uri: str, card: Card, *, pixels: bool = True) -> ProbeRows:
        """Of an export with this card."""
        return cls(uri, {"encoder": card.encoder(), "decoder": card.decoder()}, pixels)

    def identity(self) -> dict[str, Any]:
        """The tokenizer, and what is kept of images."""
        return {"kind": "probe", "tokenizer": self.tokenizer, "pixels": self.pixels}

    def open(self, device: torch.device) -> ImageMeasure:
        """Load it.

        Raises:
            UsageError: if it is another by now, or has nothing to probe.
        """
        from trainer.evaluation.tokenizers.linear_probe import ProbeMeasure

        return ProbeMeasure(_load(self.uri, self.tokenizer, device), device, self.pixels)


def _load(uri: str, fingerprints: dict[str, str], device: torch.device) -> Tokenizer:
    """The tokenizer of an export.

    Raises:
        UsageError: if it is another than it was.
    """
    from data_pipeline.shards.tokenizers import load_tokenizer

    tokenizer, card = load_tokenizer(uri, device)
    if {"encoder": card.encoder(), "decoder": card.decoder()} != fingerprints:
        raise UsageError(f"the tokenizer at {uri} was trained again meanwhile: start the evaluation again")
    return tokenizer


def columns_of(tokenizer: Tokenizer, perceptual: tuple[PerceptualConfig, ...] = ()) -> Columns:
    """What the columns of `TokenizerRows` are.

    Args:
        tokenizer: the network.
        perceptual: whose distances are among them.
    """
    from trainer.evaluation.tokenizers.tokenizer_measure import measured_prefixes, perceptual_identities

    config = tokenizer.config
    layout = tokenizer.layout if config.has_tokens else None
    folds = config.fold_names if layout else ()
    return Columns(measured_prefixes(tokenizer), layout, folds, perceptual_identities(perceptual))
