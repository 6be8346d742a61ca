"""The config of a target: a short YAML, one section of its own kind, with the fields that all kinds share.

    kind: ray                         # which scheduler; its own keys are documented beside its class
    address: http://head:8265
    nodes: 4
    gpus_per_node: 8
    price_per_hour: 32.5              # of a node
    environment: {NCCL_DEBUG: WARN}   # plain values
    secrets: [WANDB_API_KEY]          # names alone: each node has its own, or a secret store gives them

`extends:` works as in the config of a run: `extends: package:cluster/ray.yaml`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, StringConstraints

from cluster.targets.target import Target
from model.config import Section
from trainer.config.workers import Workers

VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
"""Of an environment variable."""


def _check_value(text: str) -> str:
    if "\0" in text:
        raise ValueError("holds the character NUL, which no environment variable can")
    return text


VariableValue = Annotated[str, StringConstraints(max_length=32_768), AfterValidator(_check_value)]
"""Of an environment variable."""


class TargetSection(Section):
    """What every kind of target has."""

    same_machine: ClassVar[bool] = False
    """Whether its jobs run on this machine, so that relative paths keep their meaning."""

    kind: str
    """Which scheduler."""
    nodes: Workers = 1
    """Nodes of a job: a number, or MIN:MAX for one that may begin with the fewest."""
    cpus_per_node: int | None = Field(None, gt=0, le=4_096)
    """CPUs of each; null for all that a node has."""
    gpus_per_node: int = Field(0, ge=0, le=64)
    """GPUs of each."""
    memory_per_node: float | None = Field(None, gt=0, le=1_000_000)
    """GB (10⁹ bytes) of each node's own memory that a job asks for; null for what the scheduler gives by default."""
    device: str | None = Field(None, max_length=80)
    """Kind of GPU, as `foldtrain plan --device` takes it, for the hours that `submit` shows."""
    price_per_hour: float | None = Field(None, ge=0, le=1_000_000)
    """What a node costs in an hour."""
    currency: str = Field("USD", pattern=r"^[A-Za-z€$£¥]{1,4}$")
    """Of the price."""
    environment: dict[VariableName, VariableValue] = Field({}, max_length=256)
    """Variables of every process of a job. They are readable for all who see the job: nothing secret."""
    secrets: tuple[VariableName, ...] = Field((), max_length=64)
    """Names of variables that hold secrets. Their values never travel: they are taken from where a node has them."""
    grace_seconds: float = Field(120, ge=0, le=86_400)
    """Between a polite stop, in which a job saves a checkpoint and leaves, and the scheduler's kill."""
    python: str = Field("python", min_length=1, max_length=4_095)
    """The interpreter that has foldtrain, on the nodes."""

    @property
    def fewest_nodes(self) -> int:
        """The number of nodes, or the least of them."""
        return self.nodes if isinstance(self.nodes, int) else self.nodes[0]

    @property
    def most_nodes(self) -> int:
        """The number of nodes, or the most of them."""
        return self.nodes if isinstance(self.nodes, int) else self.nodes[1]


@dataclass(frozen=True)
class TargetKind:
    """A kind of target: how its YAML is read, and what makes a target of it."""

    section: type[TargetSection]
    """Its config, with `kind: Literal["..."]`."""
    open: Callable[[str, Any], Target]
    """Given the target's name and its section, the target; nothing is started or asked yet."""
