"""What can be set of sampling: guidance over the course of it, and what single orders have beside that.

All guidance is one formula, l = c + g (c - u), of the logits with the class (c) and without (u); g = 0 is no guidance.
What papers and codes call it is converted by name (`guidance_of`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from pydantic import Field

from model.config.section import Section


class GuidanceSchedule(Section):
    """Which share of the guidance acts at which part of the way."""

    kind: Literal["constant", "linear", "cosine"] = "linear"
    """constant: all of it, always. linear: as much as is done. cosine: half of 1 - cos(pi * done ** power)."""
    power: float = Field(1.0, ge=0, le=100)
    """Of `cosine`: a larger one guides later. 0 guides always, as published (0 ** 0 is 1)."""

    def share(self, done: float) -> float:
        """Share of the guidance, where `done` of 0 to 1 is the part of the way that is behind."""
        if self.kind == "constant":
            return 1.0
        if self.kind == "linear":
            return done
        return 0.5 * (1 - math.cos(math.pi * done**self.power))


class OrderOptions(Section):
    """What can be set of sampling in one order (`sampling.order`). Most orders have nothing."""


_FORMS: dict[str, Callable[[float], float]] = {
    "var": lambda scale: scale,
    "imagefolder": lambda scale: scale,
    "muse": lambda scale: scale,
    "maskgit-linear": lambda scale: scale,
    "llamagen": lambda scale: scale - 1,
    "rar": lambda scale: scale - 1,
    "titok-cosine": lambda scale: scale - 1,
}


def guidance_of(form: str, scale: float) -> float:
    """A published guidance scale as the g of this module.

    Args:
        form: whose scale it is. var, imagefolder, muse and maskgit-linear (TiTok's constant and linear modes) write
            c + s (c - u); llamagen, rar and titok-cosine (TiTok's power-cosine mode) write u + s (c - u).
        scale: the published number.

    Raises:
        ValueError: if nobody is known by that name.
    """
    if form not in _FORMS:
        raise ValueError(f"no form of guidance is called {form}: there are {', '.join(_FORMS)}")
    return _FORMS[form](scale)
