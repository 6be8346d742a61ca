"""What was measured of a tokenizer on held-out images, as its card has it: so that whoever uses it can ask for more.

It says how good the tokenizer is, and nothing of what it is: no fingerprint follows from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from data_pipeline.text.names import Count

Share = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[float, Field(allow_inf_nan=False)]
_MOST_GROUPS, _MOST_FOLDS = 4096, 256
_QUALITIES = ("mse", "psnr", "ssim")


class MeasuredCodes(BaseModel):
    """How a branch's codes are used."""

    model_config = ConfigDict(extra="forbid")

    use: Annotated[tuple[Share, ...], Field(max_length=_MOST_GROUPS, min_length=1)]
    """Of each scale: codes that are used, as a share of the codebook."""
    attainable: Annotated[tuple[Share, ...], Field(max_length=_MOST_GROUPS, min_length=1)]
    """Of each scale: the largest share that so few tokens could use."""
    perplexity: Annotated[tuple[Number, ...], Field(max_length=_MOST_GROUPS, min_length=1)]
    """Of each scale: codes that would be as uncertain if all were used equally."""
    dead: Share
    """Codes that no scale uses, as a share of the codebook."""


class Measured(BaseModel):
    """Of all positions, means over held-out images."""

    model_config = ConfigDict(extra="forbid")

    step: Count | None
    """After which it was measured; None if it was not while it trained."""
    images: Count
    """How many."""
    mse: Number
    """Squared error; pixels in [-1, 1]."""
    psnr: Number
    """In dB."""
    ssim: Number
    codes: Annotated[
        dict[Annotated[str, StringConstraints(max_length=200)], MeasuredCodes], Field(max_length=_MOST_FOLDS)
    ]
    """By branch."""


def measured_of(look: Mapping[str, Any]) -> Measured | None:
    """From the event of a look at held-out images (trainer/stages/validation.py); None where a number is missing.

    Args:
        look: with a list for each quality, by prefixes, of which the last has all positions.
    """
    try:
        qualities = {name: look[name][-1] for name in _QUALITIES}
        found = {"step": look["step"], "images": look["images"], "codes": look["codes"]}
        return Measured.model_validate(found | qualities)
    except (KeyError, TypeError, IndexError, ValidationError):
        return None
