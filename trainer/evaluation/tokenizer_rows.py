"""A tokenizer as something that is measured, by name: workers load it, and measure images with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_pipeline.errors import UsageError
from data_pipeline.shards.weights import Card
from model.config.losses import PerceptualConfig
from trainer.config.evaluation import Rounding
from trainer.evaluation.measures import ImageMeasure
from trainer.evaluation.network_rows import Slot, open_slots
from trainer.evaluation.perturbed_tokens import TokenPerturbation
from trainer.evaluation.tokenizer_numbers import Columns

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
    """Of the tokens before they are decoded; None decodes the images' own."""

    @classmethod
    def of(
        cls,
        uri: str,
        card: Card,
        rounding: Rounding,
        slots: tuple[Slot, ...],
        perceptual: tuple[PerceptualConfig, ...] = (),
        perturbation: TokenPerturbation | None = None,
    ) -> TokenizerRows:
        """Of an export with this card."""
        fingerprints = {"encoder": card.encoder(), "decoder": card.decoder()}
        return cls(uri, fingerprints, rounding, slots, perceptual, perturbation)

    def identity(self) -> dict[str, Any]:
        """The tokenizer, and what looks at its reconstructions."""
        return {
            "kind": "tokenizer",
            "tokenizer": self.tokenizer,
            "rounding": self.rounding,
            "networks": {slot.name: slot.identity for slot in self.slots},
            "perceptual": [each.model_dump(mode="json") for each in self.perceptual],
            "perturbation": None if self.perturbation is None else self.perturbation.to_json(),
        }

    def open(self, device: torch.device) -> ImageMeasure:
        """Load it.

        Raises:
            UsageError: if it is another by now.
        """
        from data_pipeline.shards.tokenizers import load_tokenizer
        from trainer.evaluation.tokenizer_measure import TokenizerMeasure, perceptual_networks

        tokenizer, card = load_tokenizer(self.uri, device)
        if {"encoder": card.encoder(), "decoder": card.decoder()} != self.tokenizer:
            raise UsageError(f"the tokenizer at {self.uri} was trained again meanwhile: start the evaluation again")
        networks = open_slots(self.slots, device)
        perceptual = perceptual_networks(self.perceptual, device)
        perturbed = None if self.perturbation is None else self.perturbation.of(tokenizer)
        return TokenizerMeasure(tokenizer, device, self.rounding, networks, perceptual, perturbed)


def columns_of(tokenizer: Tokenizer, measure: TokenizerRows | None = None) -> Columns:
    """What the columns of its rows are.

    Args:
        tokenizer: the network.
        measure: whose perceptual networks are among the columns.
    """
    from trainer.evaluation.tokenizer_measure import measured_prefixes, perceptual_identities

    config = tokenizer.config
    named = perceptual_identities(measure.perceptual) if measure else {}
    layout = tokenizer.layout if config.has_tokens else None
    return Columns(measured_prefixes(tokenizer), layout, config.fold_names if layout else (), named)
