"""What all parts of the config share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MOST_CLASSES = 1_000_000
Sides = Annotated[tuple[Annotated[int, Field(gt=0, le=512)], ...], Field(min_length=1, max_length=64)]
Widths = Annotated[tuple[Annotated[int, Field(gt=0, le=65_536)], ...], Field(min_length=1, max_length=16)]

LOCAL_FILE = "a file on the disk of every worker"
"""Marks the type of a field that is such a path, for what makes paths absolute."""
WeightsFile = Annotated[str, LOCAL_FILE]
"""A local path, or a file: URI."""


class Section(BaseModel):
    """A part of the config: every field is typed, bounded and documented, and an unknown key is an error."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )
