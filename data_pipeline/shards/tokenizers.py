"""Finished tokenizers, put together again from their exports: of whatever kind their cards say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from pydantic import TypeAdapter

from data_pipeline.shards import weights
from data_pipeline.shards.weights import Card
from model.config import TokenizerConfig
from model.families import AnyTokenizerConfig, build_tokenizer, tokenizer_families

if TYPE_CHECKING:
    import torch
    from torch import nn

    from model.protocols import Tokenizer

_ANY: TypeAdapter[TokenizerConfig] = TypeAdapter(AnyTokenizerConfig)


def tokenizer_config(uri: str, card: Card) -> TokenizerConfig:
    """The config of a tokenizer from its card; whatever it says, nothing is loaded from a hub for it.

    Raises:
        UsageError: if it is none; it names the card and the field.
    """
    return weights.read_config(uri, card, _ANY).without_pretraining()


def recorded_config(config: dict[str, Any]) -> TokenizerConfig:
    """A tokenizer's config as token manifests record it: without the settings that only training has.

    Raises:
        ValidationError: if it is none of ours.
    """
    kind = config.get("kind", next(iter(tokenizer_families())))
    family = tokenizer_families().get(kind) if isinstance(kind, str) else None
    return _ANY.validate_python((family.config.untrained if family else {}) | config)


def load_tokenizer(uri: str, device: torch.device | str) -> tuple[Tokenizer, Card]:
    """A tokenizer with its moving-average weights, in float32, frozen, and its card.

    Raises:
        UsageError: if there is none, it is of no kind that is installed, or its config cannot be.
        CorruptShardError: if its weights are not those that were committed.
    """
    import torch

    card, state = weights.read_weights(uri, "tokenizer")
    config = tokenizer_config(uri, card)
    network = weights.restore(uri, state, lambda: cast("nn.Module", build_tokenizer(config)))
    return cast("Tokenizer", network.to(device, torch.float32).eval().requires_grad_(False)), card
