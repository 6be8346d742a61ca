"""Frozen networks inside others: on the same device, but no part of their parameters and state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from torch import Tensor, nn


class FrozenHolder(nn.Module):
    """A module that works with another one, which it neither trains, saves nor switches to training.

    Args:
        frozen: the other one.
        shared: others have it, too, so it is not moved with this module: it is where it should be.
    """

    def __init__(self, frozen: nn.Module, *, shared: bool = False) -> None:
        super().__init__()
        self._frozen = (frozen.eval().requires_grad_(False),)  # in a tuple, so that it is no child
        self._shared = shared

    @property
    def frozen(self) -> nn.Module:
        """The other one."""
        return self._frozen[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What moves this module to another device."""
        if not self._shared:
            apply: Any = self.frozen._apply
            apply(fn, recurse)
        apply = super()._apply
        apply(fn, recurse)
        return self
