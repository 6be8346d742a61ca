"""The two halves of a tokenizer, each with a fingerprint of its own: what encodes, and what decodes.

Tokens follow from the encoding half alone, so a tokenizer with another decoder goes on with the same tokens and with
the generators that were trained on them. Which parameters belong to which half the network says, by the beginnings of
their names (`ENCODES`, `DECODES`, and `NEITHER` for what only training has); a parameter may belong to both. Settings
are told apart in the same way: one that a half names is of that half, one that none names is of both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_pipeline import storage

if TYPE_CHECKING:
    from torch import Tensor

ENCODE, DECODE, NEITHER = "encode", "decode", "neither"
Names = dict[str, tuple[str, ...]]
"""Beginnings of names (`encoder.`, `encoder.drop_path`) by half: ENCODE and DECODE, and NEITHER."""


@dataclass(frozen=True)
class Halves:
    """What a card says of the halves."""

    names: Names
    fingerprints: dict[str, dict[str, str]]
    """By file of weights ("model", "ema"), then by half."""


def halves_of(network: object) -> Names | None:
    """What a network says of its halves; None if it is no tokenizer, or tells none apart."""
    names = {half: getattr(network, attribute, ()) for half, attribute in _ATTRIBUTES.items()}
    return {half: tuple(found) for half, found in names.items()} if names[ENCODE] and names[DECODE] else None


_ATTRIBUTES = {ENCODE: "ENCODES", DECODE: "DECODES", NEITHER: "NEITHER"}


def settings_of(config: Mapping[str, Any], names: Names, half: str) -> dict[str, Any]:
    """The settings that a half follows from."""
    return _selected(config, lambda path: _is_of(path, names, half, unnamed=True))


def half_fingerprint(config: Mapping[str, Any], tensors: Mapping[str, Tensor], names: Names, half: str) -> str:
    """sha256 over the half's settings, and over name, shape, dtype and bytes of each of its parameters and buffers.

    Raises:
        ValueError: if a parameter is said to belong to no half, and not to neither.
    """
    import torch

    digest = hashlib.sha256(storage.canonical_json([half, settings_of(config, names, half)]))
    for name, tensor in sorted(tensors.items()):
        if not any(_names(entry, name) for entries in names.values() for entry in entries):
            raise ValueError(f"{name} belongs to no half of the network: name it in ENCODES, DECODES or NEITHER")
        if _is_of(name, names, half, unnamed=False):
            here = tensor.detach().cpu().contiguous()
            digest.update(storage.canonical_json([name, list(here.shape), str(here.dtype).removeprefix("torch.")]))
            digest.update(here.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def half_fingerprints(config: Mapping[str, Any], tensors: Mapping[str, Tensor], names: Names) -> dict[str, str]:
    """Of both halves.

    Raises:
        ValueError: as `half_fingerprint`.
    """
    return {half: half_fingerprint(config, tensors, names, half) for half in (ENCODE, DECODE)}


def _names(entry: str, path: str) -> bool:
    """Whether an entry names something: itself, or what lies below it."""
    stem = entry.rstrip(".")
    return path == stem or path.startswith(f"{stem}.")


def _is_of(path: str, names: Names, half: str, *, unnamed: bool) -> bool:
    by = {each for each, entries in names.items() if any(_names(entry, path) for entry in entries)}
    return NEITHER not in by and (half in by or (unnamed and not by))


def _selected(value: Mapping[str, Any], keep: Callable[[str], bool], path: str = "") -> dict[str, Any]:
    found = {}
    for key, inner in value.items():
        here = f"{path}.{key}" if path else str(key)
        if isinstance(inner, Mapping):
            below = _selected(inner, keep, here)
            if below or (not inner and keep(here)):
                found[key] = below
        elif keep(here):
            found[key] = inner
    return found
