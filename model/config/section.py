"""What all parts of the config share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST_CLASSES = 1_000_000
Sides = Annotated[tuple[Annotated[int, Field(gt=0, le=512)], ...], Field(min_length=1, max_length=64)]
Widths = Annotated[tuple[Annotated[int, Field(gt=0, le=65_536)], ...], Field(min_length=1, max_length=16)]

LOCAL_FILE = "a file on the disk of every worker"
"""Marks the type of a field that is such a path, for what makes paths absolute."""
WeightsFile = Annotated[str, LOCAL_FILE]
"""A local path, or a file: URI."""


MOST_STEPS = 10**9
_Steps = Annotated[int, Field(ge=0, le=MOST_STEPS)]


class Section(BaseModel):
    """A part of the config: every field is typed, bounded and documented, and an unknown key is an error.

    A section that is given in part keeps the defaults of its place: `encoder: {widths: [32, 64]}` of a family whose
    encoder has no attention by default has none, whatever the encoder of another family has.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )

    @model_validator(mode="before")
    @classmethod
    def _keep_defaults_of_places(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        defaults = {name: field.default for name, field in cls.model_fields.items() if name in values}
        return values | {name: _completed(values[name], default) for name, default in defaults.items()}


def _completed(given: Any, default: Any) -> Any:
    """A section as it is given, with what the default of its place sets, unless it is of another kind."""
    if not isinstance(given, dict) or not isinstance(default, Section):
        return given
    kind = getattr(default, "kind", None)
    if given.get("kind", kind) != kind:
        return given
    set_there = {name: getattr(default, name) for name in default.model_fields_set}
    return set_there | {name: _completed(value, set_there.get(name)) for name, value in given.items()}


class ShareOfSteps(Section):
    """A part of the training, whatever its length: `{share: 0.5}` is half of `trainer.steps`."""

    share: float = Field(ge=0, le=1)
    """Of the steps."""

    def steps(self, total: int) -> int:
        """The nearest number of steps."""
        return round(self.share * total)


StepOrShare = _Steps | ShareOfSteps
"""A step, or a part of all steps."""


def known_step(step: int | ShareOfSteps) -> int:
    """The step, where it is one.

    Raises:
        ValueError: if it is a part of a training whose length nobody has said.
    """
    if not isinstance(step, ShareOfSteps):
        return step
    raise ValueError(f"a share of {step.share:g} of all steps is no step yet: see GeneratorConfig.with_steps")
