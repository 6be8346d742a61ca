"""The config of a Slurm target, and the part of it that a job's own processes get."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from cluster.targets.config import TargetSection
from data_pipeline.errors import FoldtrainError
from data_pipeline.text.printable import printable

_LONGEST_VALUE = 1_000

OURS = frozenset(
    {
        *("array", "chdir", "clusters", "cpus-per-task", "dependency", "export", "export-file", "get-user-env", "gpus"),
        *("gpus-per-node", "gpus-per-task", "gres", "job-name", "mem", "mem-per-cpu", "mem-per-gpu", "nodes", "ntasks"),
        *("ntasks-per-node", "open-mode", "output", "error", "input", "parsable", "requeue", "no-requeue", "signal"),
        *("test-only", "time", "wait", "wrap", "partition", "account", "qos", "constraint", "reservation"),
    }
)
"""Options of sbatch that follow from other keys, or that a job could not do without."""


def _one_line(text: str) -> str:
    if text != printable(text):
        raise ValueError("holds a line break or another control character, which no line of #SBATCH can")
    return text


Words = Annotated[str, StringConstraints(min_length=1, max_length=_LONGEST_VALUE), AfterValidator(_one_line)]
"""The value of an option of sbatch."""
OptionName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,63}$")]
ShellLine = Annotated[str, StringConstraints(min_length=1, max_length=10_000), AfterValidator(_one_line)]


class SlurmConfig(TargetSection):
    """A cluster under Slurm. `submit` runs where sbatch does; the nodes share nothing but the run's URI.

    `nodes: MIN:MAX` asks for the fewest; further ones join the running job (`foldtrain scale`).
    """

    kind: Literal["slurm"] = "slurm"
    """Slurm."""
    partition: Words | None = None
    """As `sbatch --partition` takes it; null for the cluster's default, here and below."""
    account: Words | None = None
    """Who is charged."""
    qos: Words | None = None
    """Quality of service."""
    time: Words | None = None
    """The limit of an allocation, as sbatch takes it: 8:00:00, 2-00:00:00. A job that reaches it saves a checkpoint
    `grace_seconds` before, and goes on in the next allocation."""
    constraint: Words | None = None
    """Features that the nodes must have."""
    reservation: Words | None = None
    """A reservation to use."""
    gpu_type: Words | None = None
    """Kind of GPU as Slurm names it, such as a100; null for any."""
    cluster: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] | None = None
    """Which of several clusters (`sbatch --clusters`)."""
    options: dict[OptionName, Words | bool | int] = Field({}, max_length=64)
    """Further long options of sbatch, without their dashes: `{mail-type: END, exclude: n7}`; true for one without a
    value."""
    setup: tuple[ShellLine, ...] = Field((), max_length=64)
    """Shell commands that an allocation runs before anything starts, as they stand: `module load cuda/12.4`."""
    interface: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:@-]{1,15}$")] | None = None
    """The network interface through which the nodes reach each other, such as ib0; null for the one that leads to the
    other nodes as Slurm names them."""
    output: Words | None = None
    """Where Slurm writes what an allocation prints, as `sbatch --output` takes it: of use where a job never comes to
    write its own log. The folder has to be there on the node. Null: nowhere, but for the last words (`describe`)."""
    requeue: bool = True
    """Whether a job that is preempted, reaches its time limit or loses a node goes on in the next allocation."""
    restarts: int = Field(20, ge=0, le=1_000_000)
    """A job whose Ray cluster breaks down goes on in the next allocation if it was started less often than this."""

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        for name, value in self.options.items():
            if name in OURS:
                raise ValueError(f"options.{name}: this follows from other keys of the target, or has one of its own")
            if value is False:
                raise ValueError(f"options.{name}: give true for an option without a value, or leave it out")
        if self.gpu_type and not self.gpus_per_node:
            raise ValueError("gpu_type names a kind of GPU, and gpus_per_node asks for none: set it")
        return self


@dataclass(frozen=True)
class Allocation:
    """What the processes of an allocation have to know of the target. It travels in the script, as one argument."""

    cpus: int | None
    """CPUs of each node that Ray is told; None for those that Slurm gives."""
    gpus: int
    """GPUs of each node that Ray is told."""
    grace_seconds: float
    """For a polite end."""
    requeue: bool
    """Whether it goes on in the next allocation."""
    restarts: int
    """Starts after which a cluster that breaks down is not tried again."""
    interface: str | None
    """Network interface of the nodes."""
    secrets: tuple[str, ...]
    """Names of variables that the nodes need to have."""
    python: str
    """The interpreter that has foldtrain."""

    @classmethod
    def of(cls, config: SlurmConfig) -> Allocation:
        """The part of a target's config that its allocations need."""
        return cls(
            cpus=config.cpus_per_node,
            gpus=config.gpus_per_node,
            grace_seconds=config.grace_seconds,
            requeue=config.requeue,
            restarts=config.restarts,
            interface=config.interface,
            secrets=config.secrets,
            python=config.python,
        )

    def to_text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> Allocation:
        """From JSON.

        Raises:
            FoldtrainError: if another version of foldtrain wrote it.
        """
        try:
            found: dict[str, Any] = json.loads(text)
            return cls(**found | {"secrets": tuple(found["secrets"])})
        except (ValueError, TypeError, KeyError) as error:
            raise FoldtrainError(
                f"this node does not understand what the job was submitted with ({error}): the nodes and the machine "
                "that submits need the same version of foldtrain"
            ) from error
