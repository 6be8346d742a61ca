"""Number formats: what autocast makes of a layer, and how to be without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


def compute_dtype(weight: Tensor) -> torch.dtype:
    """The dtype in which a layer with this weight computes: autocast's where that is on, else the weight's own."""
    kind = weight.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return weight.dtype


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """What is computed inside keeps the dtypes that it is given. Meta tensors know no autocast."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


@contextmanager
def cast_once(*networks: nn.Module) -> Iterator[None]:
    """Within it, and within one `torch.autocast`, each weight is cast for the first product alone.

    Autocast keeps only what it makes of weights that ask for gradients. Those of a network that only samples ask for
    none, and would be cast again for each token: four times the bytes that the product itself reads.

    Args:
        networks: whose weights are used; without gradients, as `torch.no_grad` has it.
    """
    frozen = [weight for network in networks for weight in network.parameters() if not weight.requires_grad]
    try:
        for weight in frozen:
            weight.requires_grad = True
        yield
    finally:
        for weight in frozen:
            weight.requires_grad = False
