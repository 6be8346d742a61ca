"""Batches as typed data: what a stage's `batch` makes on the host and its `step` gets on the device.

A stage's batch is a frozen dataclass below `Batch`. The shape suffix of a field says how it is cut: what begins with B
has a row per sample, everything else (a mean over the global batch) belongs to each micro-batch whole. Tensors travel
to the device, numpy arrays stay on the host, images travel as bytes and become numbers there (`normalized`). A field
may be a dict of tensors, which are all cut alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor

from data_pipeline.order.permutations import Positions
from data_pipeline.text.counted import counted

_ROWS = re.compile(r"_B[A-Z0-9]*")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's samples of an optimizer step, or of a micro-batch of it."""

    index_B: Positions | None = None
    """Numbers of the samples in the data set, for the ledger; None if they are drawn from none."""
    seed_B: Tensor | None = None
    """What the network draws at random for each sample follows from these (model.layers.random_numbers), int64."""

    def split(self, parts: int) -> list[Self]:
        """Equal micro-batches, in order.

        Raises:
            ValueError: if the samples cannot be cut evenly.
        """
        if parts == 1:
            return [self]
        pieces = {name: _cut(value, parts) for name, value in self._held() if _ROWS.search(name)}
        return [replace(self, **{name: cuts[i] for name, cuts in pieces.items()}) for i in range(parts)]

    def pin(self) -> Self:
        """The same in page-locked memory, from which a GPU copies beside its work."""
        return self._each(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device) -> Self:
        """The same on a device. From pinned memory this does not wait for the copy."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    @property
    def tokens(self) -> int:
        """Tokens that the network is to predict, for rates; 0 for batches of none."""
        return 0

    def _held(self) -> list[tuple[str, Any]]:
        return [(each.name, value) for each in fields(self) if (value := getattr(self, each.name)) is not None]

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        moved: dict[str, Any] = {}
        for name, value in self._held():
            if isinstance(value, Tensor):
                moved[name] = change(value)
            elif isinstance(value, dict):
                moved[name] = {key: change(tensor) for key, tensor in value.items()}
        return replace(self, **moved)


def _cut(rows: Any, parts: int) -> list[Any]:
    if isinstance(rows, dict):
        cuts = {name: _cut(value, parts) for name, value in rows.items()}
        return [{name: pieces[number] for name, pieces in cuts.items()} for number in range(parts)]
    if len(rows) % parts:
        raise ValueError(f"{counted(len(rows), 'sample')} cannot be cut into {parts} equal micro-batches")
    return cast("list[Any]", rows.chunk(parts) if isinstance(rows, Tensor) else np.split(rows, parts))


def normalized(pixels_BCHW: Tensor) -> Tensor:
    """Bytes to float32 in [-1, 1], on their device: bit for bit what data_pipeline.images.transforms.to_model gives."""
    # A divisor on the host would be turned into a factor by a GPU, which rounds otherwise.
    half = torch.full((), 127.5, dtype=torch.float32, device=pixels_BCHW.device)
    return pixels_BCHW.float().div_(half).sub_(1)
