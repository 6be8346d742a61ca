"""How published files hold their tensors: pure functions on what was loaded from them.

| file | how it holds them |
|---|---|
| VAR's, TiTok's, RAR's, MaskGIT-VQGAN's, and safetensors | a state dict |
| LlamaGen's | a dict with `model`, `module` or `state_dict` |
| ImageFolder's tokenizer | a dict with `ema`, `model`, and what training goes on with (`optimizer`, `discriminator`) |
| ImageFolder's generator | a dict with `trainer`, which holds `var_wo_ddp` and `vae_local` |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DistributedDataParallel and torch.compile put before every name."""
TEACHERS = ("semantic_model.", "detail_model.")
"""What the names of frozen teachers begin with, which ImageFolder's files carry along."""
RAW = ("model", "module", "state_dict")
"""Where the weights as trained are, in dicts that hold more."""
PARTS = {"generator": "var_wo_ddp", "tokenizer": "vae_local"}
"""The networks of a generator's checkpoint."""
_SHOWN = 8
_MOST_NAME = 512


@dataclass(frozen=True)
class Held:
    """The parameters that a file holds, and what else there is in it."""

    tensors: dict[str, Tensor]
    """By their published names, without wrappers."""
    place: str
    """Where they were: "ema", "trainer.vae_local"; empty if the file is a state dict."""
    teachers: int
    """Tensors of frozen teachers, which were left out."""
    beside: tuple[str, ...]
    """What else the file holds, and was left aside."""


def unwrap(
    record: object,
    *,
    weights: Literal["ema", "raw"] = "ema",
    part: Literal["generator", "tokenizer"] = "generator",
) -> Held:
    """The parameters inside a published file.

    Args:
        record: what the file holds.
        weights: the moving average of the weights, where there is one, or the weights themselves.
        part: which network of a file that holds a generator and its tokenizer.

    Raises:
        ValueError: if the record is no known container; its keys are named.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"not a known container of weights: it holds no dict, but {type(record).__name__}")  # noqa: TRY004
    place, inner = _inner(record, weights, part)
    tensors = {name: value for name, value in inner.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors or len(tensors) < len(inner) or any(len(name) > _MOST_NAME for name in tensors):
        raise ValueError(_unknown(inner, tensors, place))
    tensors = _without_wrappers(tensors)
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(TEACHERS)}
    if not own:
        raise ValueError("it holds frozen teachers and nothing else")
    beside = tuple(str(name)[:_MOST_NAME] for name in record if name != place.partition(".")[0]) if place else ()
    return Held(own, place, len(tensors) - len(own), beside)


def _inner(record: Mapping[object, object], weights: str, part: str) -> tuple[str, Mapping[object, object]]:
    """Where the weights are, and they."""
    trainer = record.get("trainer")
    if isinstance(trainer, Mapping):
        found = trainer.get(PARTS[part])
        if not isinstance(found, Mapping):
            raise ValueError(f"its trainer holds no {PARTS[part]}, the {part}, but {_shown(trainer)}")  # noqa: TRY004
        return f"trainer.{PARTS[part]}", found
    for name in ("ema", *RAW) if weights == "ema" else RAW:
        found = record.get(name)
        if isinstance(found, Mapping) and found:
            return name, found
    return "", record


def _without_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same without the prefixes that all names have, however they are nested."""
    while True:
        prefix = next((each for each in WRAPPERS if all(name.startswith(each) for name in tensors)), None)
        if prefix is None:
            return tensors
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}


def _unknown(inner: Mapping[object, object], tensors: Mapping[str, Tensor], place: str) -> str:
    other = {name: value for name, value in inner.items() if name not in tensors}
    where = f" in {place}" if place else ""
    return f"not a known container of weights: keys {_shown(inner)}{where}, of which {_shown(other)} hold no tensor"


def _shown(names: Mapping[object, object]) -> str:
    """The first keys, for a message."""
    first = sorted(str(name)[:64] for name in list(names)[: 8 * _SHOWN])[:_SHOWN]
    return f"{first}" if first else "none"
