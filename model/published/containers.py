"""How published files hold their tensors: pure functions on what was loaded from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DistributedDataParallel and torch.compile put before every name."""


def unwrap(
    record: Mapping[str, object],
    *,
    weights: Literal["ema", "raw"] = "ema",
    part: Literal["generator", "tokenizer"] = "generator",
) -> dict[str, Tensor]:
    """The state dict inside a published file.

    Known containers: a plain state dict (VAR, and safetensors); ImageFolder's tokenizer, a dict with `model` and `ema`;
    ImageFolder's generator, a dict with `trainer`, which holds `var_wo_ddp` and `vae_local`.

    Args:
        record: what the file holds.
        weights: the moving average of the weights, where there is one, or the weights themselves.
        part: which network of a file that holds a generator and its tokenizer.

    Raises:
        ValueError: if the record is none of these; its keys are named.
    """
    inner = _inner(record, weights, part)
    tensors = {name: value for name, value in inner.items() if isinstance(value, Tensor)}
    if not tensors or len(tensors) < len(inner):
        other = [name for name, value in inner.items() if not isinstance(value, Tensor)]
        raise ValueError(
            f"not a known container of weights: keys {sorted(record)[:8]}, "
            f"of which {other[:8] or 'none'} hold no tensor"
        )
    for prefix in WRAPPERS:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _inner(record: Mapping[str, object], weights: str, part: str) -> Mapping[str, object]:
    trainer = record.get("trainer")
    if isinstance(trainer, Mapping):
        found = trainer.get("var_wo_ddp" if part == "generator" else "vae_local")
        return found if isinstance(found, Mapping) else record
    for name in ("ema", "model") if weights == "ema" else ("model",):
        found = record.get(name)
        if isinstance(found, Mapping):
            return found
    return record
