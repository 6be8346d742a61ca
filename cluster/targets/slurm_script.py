"""The scripts that sbatch gets: options in lines of #SBATCH, quoted for sbatch, and words quoted for the shell.

    job_script     the nodes of a job: a process that starts a Ray cluster and what the job runs (slurm_batch.py)
    nodes_script   further nodes, an allocation each, which join the cluster of a job that runs

Nothing is read from a working directory or a home that the nodes may not share: no variable of the shell that submits
is sent, a login shell of the node's own gives those that it has, and what is printed goes nowhere by default.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence

from cluster.targets.slurm_commands import split_handle
from cluster.targets.slurm_config import Allocation, SlurmConfig

BATCH = "cluster.targets.slurm_batch"
"""The module whose process an allocation runs."""
_MEBIBYTE = 2**20


def job_script(config: SlurmConfig, name: str, argv: Sequence[str]) -> str:
    """The script of a job's own nodes.

    Args:
        config: of the target.
        name: of the job.
        argv: what the first node runs once there is a Ray cluster.
    """
    directives = [("job-name", name), ("nodes", str(config.fewest_nodes)), *_directives(config)]
    return _script(config, directives, ["run", Allocation.of(config).to_text(), "--", *argv])


def nodes_script(config: SlurmConfig, name: str, handle: str, count: int) -> str:
    """The script of further nodes for a job that runs.

    Args:
        config: of the target.
        name: of the allocations, by which they are found again.
        handle: Slurm's number of the job.
        count: of nodes.
    """
    directives = [
        *(
            ("job-name", name),
            ("nodes", "1"),
            ("array", f"0-{count - 1}"),
            ("dependency", f"after:{split_handle(handle)[0]}"),
        ),
        *_directives(config),
    ]
    return _script(config, directives, ["join", Allocation.of(config).to_text(), handle])


def _directives(config: SlurmConfig) -> Iterator[tuple[str, str | None]]:
    """Options and their values, None for those without one."""
    yield "ntasks-per-node", "1"
    if config.cpus_per_node is None:
        yield "exclusive", None
    else:
        yield "cpus-per-task", str(config.cpus_per_node)
    if config.gpus_per_node:
        kind = f"{config.gpu_type}:" if config.gpu_type else ""
        yield "gpus-per-node", f"{kind}{config.gpus_per_node}"
    if config.memory_per_node:
        yield "mem", f"{math.ceil(config.memory_per_node * 1e9 / _MEBIBYTE)}M"
    for option in ("partition", "account", "qos", "time", "constraint", "reservation"):
        if value := getattr(config, option):
            yield option, value
    if config.cluster:
        yield "clusters", config.cluster
    yield ("requeue" if config.requeue else "no-requeue"), None
    yield "signal", f"B:USR1@{max(1, math.ceil(config.grace_seconds))}"
    yield "open-mode", "append"
    yield "output", config.output or "/dev/null"
    yield "chdir", "/"
    yield "export", "FOLDTRAIN"  # a list of its own: neither this shell's variables nor a login that is only guessed
    for option, given in config.options.items():
        yield option, None if given is True else str(given)


def _script(config: SlurmConfig, directives: Sequence[tuple[str, str | None]], arguments: Sequence[str]) -> str:
    lines = ["#!/bin/bash -l"]
    lines += [f"#SBATCH --{option}" + ("" if value is None else f"={_quoted(value)}") for option, value in directives]
    lines.append("trap '' USR1 USR2")  # until Python listens they would end the script
    lines.append("export SLURM_EXPORT_ENV=ALL")  # steps get what the script has
    lines += [f"export {name}={shlex.quote(value)}" for name, value in config.environment.items()]
    lines += config.setup
    lines.append("exec " + shlex.join([config.python, "-P", "-m", BATCH, *arguments]))
    return "\n".join(lines) + "\n"


def _quoted(value: str) -> str:
    """A value as sbatch reads it, which knows quotes and backslashes, and takes # for a comment."""
    if value.replace("-", "").replace(":", "").replace("/", "").isalnum():
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
