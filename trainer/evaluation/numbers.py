"""A number with its name: what it measures, of what, and by what.

In this field a number rarely means what it seems: reference images, crop, network, rounding, label sampling, moving
average or raw weights move a FID by more than the differences that papers report. So each stands beside it:

    measured_by   how: reference images, crop, rounding, network, protocol. Two numbers may be compared only if it is
                  the same, and so is the number of images
    measured_of   what: generator, its weights, sampling, seed, labels, tokenizer, tokens, images. This is what a
                  comparison compares
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

VERSION = 1


@dataclass(frozen=True)
class Number:
    """One number."""

    metric: str
    """fid, sfid, inception_score, precision, recall, frechet_distance, class_accuracy, mse, psnr, …"""
    value: float
    images: int
    """That it is computed from."""
    measured_by: dict[str, Any] = field(default_factory=dict)
    """JSON, by reference, crop, rounding, network, protocol."""
    measured_of: dict[str, Any] = field(default_factory=dict)
    """JSON, by generator, weights, sampling, seed, labels, tokenizer, keep, perturbation, tokens, images."""
    plus_minus: float | None = None
    """One standard error, where it is known; `measured_by.protocol` says how."""

    def to_json(self) -> dict[str, Any]:
        """As in evaluation.json, whose key `numbers` is a list of these."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Any) -> Self:
        """The inverse.

        Raises:
            pydantic.ValidationError: if it is none.
        """
        return cls(**dict(_Number.model_validate(record)))


class _Number(BaseModel):
    model_config = ConfigDict(extra="forbid")

    metric: str = Field(max_length=100, pattern=r"[a-z][a-z0-9_]*")
    value: float
    images: int = Field(ge=0)
    measured_by: dict[str, Any]
    measured_of: dict[str, Any]
    plus_minus: float | None
