"""What a generator is told about a sample: one column of a token shard, of a kind that the manifest names.

    class   int32 [samples], the label: an index into the manifest's `classes`

A new kind (an embedding, a text) is an entry in KINDS; a kind that is not there is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict

from data_pipeline.errors import CorruptShardError


@dataclass(frozen=True)
class ConditionKind:
    """How the column of a kind is stored."""

    dtype: str
    """Of an element, as numpy spells it."""
    dimensions: int
    """Of the column, with that of the samples."""


KINDS = {"class": ConditionKind("<i4", 1)}
"""The kinds by name."""


def _known(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"conditions of kind {kind[:64]!r} are not supported, only of kind {', '.join(KINDS)}")
    return kind


class Condition(BaseModel):
    """What the condition column of a token data set holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Annotated[str, AfterValidator(_known)] = "class"
    """One of KINDS."""


CLASS = Condition(kind="class")
"""A class per sample."""


def check_condition(array: npt.NDArray[Any], kind: str = "class") -> None:
    """A column is stored as its kind asks for.

    Raises:
        ValueError: if not; it says what it holds.
    """
    needed = KINDS[kind]
    if array.dtype != np.dtype(needed.dtype) or array.ndim != needed.dimensions:
        raise ValueError(f"its member condition holds {array.dtype} in {array.ndim} dimensions")


def check_classes(path: str, condition: npt.NDArray[np.int32], classes: int, remedy: str) -> None:
    """Each condition of a shard, of kind class, names a class.

    Raises:
        CorruptShardError: if one does not; it names the shard and what to do (`remedy`).
    """
    if len(condition) and (condition.min() < 0 or condition.max() >= classes):
        bad = condition[(condition < 0) | (condition >= classes)][0]
        raise CorruptShardError(f"{path} holds the class {bad}, but there are {classes} classes; {remedy}")
