"""Who is told what of a run, without asking for it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from model.config import Section

AlertKind = Literal["stalled", "nan", "spike", "slow", "goodput", "worse", "node-lost", "finished", "failed"]
"""What can be told of."""


def _check_reference(text: str) -> str:
    kind, _, name = text.partition(":")
    if kind not in {"env", "file"} or not name or "://" in text:
        raise ValueError(
            "a webhook's address lets whoever knows it write there, and a config is kept beside the run: give "
            "env:NAME of a variable, or file:PATH of a file, that holds it"
        )
    return text


SecretReference = Annotated[str, StringConstraints(max_length=4_096), AfterValidator(_check_reference)]
"""Where a secret is found: `env:NAME` or `file:PATH`."""
Argument = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$", max_length=4_096)]


class AlertConfig(Section):
    """One receiver, and what it is told: a webhook, or a command.

    Each thing is told once: again only after it was over. A receiver that is away, slow or hanging holds nothing up.
    """

    on: tuple[AlertKind, ...] = Field(min_length=1)
    """What is told. `finished` and `failed` are of every stage; the others, of training, need its records."""
    webhook: SecretReference | None = None
    """Where a POST goes, as `env:NAME` or `file:PATH`: JSON with `text`, which chat systems show, and with `alert`,
    `run`, `stage`, `step`, `link` and `time`."""
    command: tuple[Argument, ...] | None = Field(None, min_length=1, max_length=64)
    """A program and its arguments, run without a shell on the node of the command, with the text on its stdin."""
    link: str | None = Field(None, max_length=2_048)
    """Shown with the text: where more is to be seen; {run} stands for the run's URI. null shows that URI."""
    samples_per_second: float | None = Field(None, gt=0)
    """For `slow`: less than this is too few."""
    goodput: float | None = Field(None, gt=0, le=1)
    """For `goodput`: a smaller share of the time so far that was training is too small."""
    records: int = Field(3, gt=0, le=10_000)
    """Records in a row (`trainer.log_every`) that have to be below, for `slow` and `goodput`."""
    goodput_after: float = Field(900, ge=0, le=10_000_000)
    """Seconds of a start that `goodput` lets pass: a start has none at first."""
    metric: str | None = Field(None, max_length=200)
    """For `worse`: a number of metrics.jsonl, for instance validation_loss or validation_frechet_distance_500."""
    mode: Literal["min", "max"] = "min"
    """For `worse`: whether small values of it are good, or large ones."""
    worse_by: float = Field(0.1, gt=0, le=1_000)
    """For `worse`: the share of its best value of this start by which it has to be worse than that."""
    stalled_seconds: float | None = Field(None, gt=0, le=10_000_000)
    """For `stalled`: seconds without a record; null for five minutes, or ten times the usual gap where that is more.
    Until the first record of a start half an hour, at least, is let pass."""
    timeout_seconds: float = Field(10, gt=0, le=600)
    """For a receiver's answer, or for the command."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.webhook is None) == (self.command is None):
            raise ValueError("give a webhook or a command, one of them")
        for kind, key in (("slow", "samples_per_second"), ("goodput", "goodput"), ("worse", "metric")):
            if (kind in self.on) != (getattr(self, key) is not None):
                raise ValueError(f"{kind} in `on` and {key} belong together: give both, or none")
        return self
