"""Trained generators, and what they need of tokenizers, put together again from their exports."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from pydantic import BaseModel, ConfigDict

from data_pipeline.errors import CorruptShardError
from data_pipeline.shards import weights
from data_pipeline.shards.manifest import StoredLayout
from data_pipeline.shards.tokenizers import tokenizer_config
from data_pipeline.shards.weights import Card
from model.families import AnyGeneratorConfig, build_forcing, build_generator, tokenizer_families

if TYPE_CHECKING:
    import torch
    from torch import nn

    from model.protocols import Generator, TeacherForcing


class GeneratorCard(BaseModel):
    """The config of a generator's card."""

    model_config = ConfigDict(extra="forbid")

    generator: AnyGeneratorConfig
    """Its own."""
    layout: StoredLayout
    """Of the tokens that it predicts."""
    forcing_width: int | None
    """Channels of the multi-scale sums that it was trained with; None if it needs none."""


def load_forcing(uri: str, device: torch.device) -> TeacherForcing | None:
    """The part of a tokenizer that a generator's training may need; None if it has none."""
    card, state = weights.read_weights(uri, "tokenizer")
    config = tokenizer_config(uri, card)
    family = tokenizer_families()[config.kind]
    if family.forcing is None:
        return None
    prefix = family.forcing_prefix
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    network = _frozen(weights.restore(uri, own, lambda: _module(build_forcing(config))), device)
    return cast("TeacherForcing", network)


def load_generator(uri: str, ema: bool, device: torch.device) -> tuple[Generator, Card]:
    """The generator, frozen, and its card."""
    card, state = weights.read_weights(uri, "generator", ema)
    config = weights.read_config(uri, card, GeneratorCard)
    try:
        config.generator.check(config.layout, config.forcing_width)
    except ValueError as error:
        raise CorruptShardError(f"{uri}/card.json: {error}") from None
    made = (config.generator, config.layout, config.forcing_width)
    network = _frozen(weights.restore(uri, state, lambda: _module(build_generator(*made))), device)
    return cast("Generator", network), card


def _module(network: object) -> nn.Module:
    """Our Protocols' objects are modules, which a Protocol cannot say."""
    return cast("nn.Module", network)


def _frozen(network: nn.Module, device: torch.device) -> nn.Module:
    return network.to(device).eval().requires_grad_(False)
