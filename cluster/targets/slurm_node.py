"""The process of one node, `python -P -m cluster.targets.slurm_node`, that srun starts: once on each.

    head ALLOCATION FOLDER -- COMMAND...   a Ray head, what the job runs beside it, and the end of both
    worker ALLOCATION                      a node of the cluster that the environment names, until it is told to end
    where JOB                              prints where the head of a job on this node is, and its token, for its user

Signals: SIGUSR1 and SIGTERM are Slurm's notices (a time limit, a preemption). The head's are for the job, which saves a
checkpoint and leaves; a node that has joined late is drained; the others wait for the job. SIGUSR2 tells a node to end.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from cluster.session.ray_folder import own_folders, ray_folder
from cluster.targets import slurm_commands as slurm
from cluster.targets.slurm_config import Allocation
from cluster.targets.slurm_ray import (
    RayNode,
    address_of_interface,
    address_towards,
    drain,
    ray_environment,
    start_head,
    start_worker,
)
from data_pipeline.errors import FoldtrainError

MODULE = "cluster.targets.slurm_node"
HEAD_VARIABLE = "FOLDTRAIN_SLURM_HEAD"
"""HOST:PORT of the head, for the processes of the other nodes; the token is beside it in RAY_AUTH_TOKEN."""
LEAVES_VARIABLE = "FOLDTRAIN_SLURM_LEAVES"
"""Set where a notice is for the node itself: it has joined late, and leaves alone."""
PID_VARIABLE = "FOLDTRAIN_SLURM_PID"
"""Names the file into which the process of a node writes its id, for the batch process beside it."""
HEAD_FILE, JOB_FILE = "head.json", "slurm-job"
NOTICED = 143
"""Exit code of a job that was told to end and can go on later: that of a process that SIGTERM has ended."""
CLUSTER_LOST = 75
"""Exit code of a node whose Ray broke down: starting again may mend it (EX_TEMPFAIL of sysexits.h)."""
_NOTICES = (signal.SIGUSR1, signal.SIGTERM)
_PAUSE_SECONDS = 0.5
_LOST_SECONDS = 120.0
"""A job whose Ray cluster breaks down notices by itself within 20 seconds, and its workers save what they have."""
_RESTARTS = 3
"""Of a node's part of Ray, in one allocation."""


class Signals:
    """What has come since it began to listen."""

    def __init__(self) -> None:
        self.noticed: int | None = None
        """The first notice."""
        self.told_to_end = False
        for number in _NOTICES:
            signal.signal(number, self._notice)
        signal.signal(signal.SIGUSR2, self._end)
        if path := os.environ.pop(PID_VARIABLE, None):
            _write_privately(Path(path), str(os.getpid()))

    def _notice(self, number: int, _frame: FrameType | None) -> None:
        if self.noticed is None:
            self.noticed = number

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        self.told_to_end = True

    def wanted(self) -> bool:
        """Whether nothing has come."""
        return self.noticed is None and not self.told_to_end


# ---------------------------------------------------------------------------------------------------------------- head


def run_head(allocation: Allocation, folder: Path, command: Sequence[str]) -> int:
    """Start a head, run the job beside it, and end the head. Returns the job's exit code.

    Raises:
        FoldtrainError: if Ray does not start.
    """
    signals = Signals()
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    host = _host(allocation, _neighbour())
    node, address = start_head(folder, host, _resources(allocation), token, signals.wanted)
    try:
        if not signals.wanted():  # before there was anything to save
            return NOTICED
        _write_privately(folder / HEAD_FILE, json.dumps({"address": address, "token": token["RAY_AUTH_TOKEN"]}))
        return run_beside(node, command, _job_environment(address, token), signals)
    finally:
        node.end()


def run_beside(node: RayNode, command: Sequence[str], environment: Mapping[str, str], signals: Signals) -> int:
    """Run the job's command until it ends, and pass a notice on to it once.

    Args:
        node: of Ray, beside it.
        command: of the job.
        environment: its variables.
        signals: what comes.

    Returns:
        The exit code of the job, or CLUSTER_LOST if Ray broke down under it.
    """
    job = subprocess.Popen(command, env=dict(environment), stdin=subprocess.DEVNULL, cwd="/")
    reaches_all, passed_on, deadline = _signals_reach_all(), False, 0.0
    while True:
        try:
            code = job.wait(_PAUSE_SECONDS)
            break
        except subprocess.TimeoutExpired:
            pass
        if signals.noticed is not None and not passed_on:
            passed_on = True
            # Slurm's own SIGTERM may have reached the job already, and a second one would end it at once.
            if signals.noticed != signal.SIGTERM or not reaches_all:
                job.terminate()
        if node.ended and not deadline:
            deadline = time.monotonic() + _LOST_SECONDS
            _say(f"Ray has ended under the job: {node.last_words()}")
        if deadline and time.monotonic() > deadline:
            job.kill()
    if code in {NOTICED, -signal.SIGTERM}:
        return NOTICED
    return CLUSTER_LOST if node.ended and code else code if code >= 0 else 128 - code


def _job_environment(address: str, token: Mapping[str, str]) -> dict[str, str]:
    return ray_environment(os.environ) | dict(token) | {"RAY_ADDRESS": address}


def _signals_reach_all() -> bool:
    """Whether Slurm's signals go to every process of a step, as all but its cgroup plugin send them."""
    settings = slurm.run(["scontrol", "show", "config"], environment=os.environ)
    kind = next((line for line in settings.splitlines() if line.startswith("ProctrackType")), "")
    return "cgroup" not in kind


# -------------------------------------------------------------------------------------------------------- other nodes


def run_worker(allocation: Allocation) -> int:
    """Be a node of a cluster until told to end, or until the cluster is gone.

    Raises:
        FoldtrainError: if Ray does not start, or does not stay up.
    """
    signals = Signals()
    address = os.environ[HEAD_VARIABLE]
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.environ.pop("RAY_AUTH_TOKEN")}
    leaves = LEAVES_VARIABLE in os.environ
    host = _host(allocation, address.rpartition(":")[0].strip("[]"))
    with ray_folder() as rays:
        for _ in range(_RESTARTS + 1):
            wanted = signals.wanted if leaves else lambda: not signals.told_to_end
            node = start_worker(rays.parent, host, address, _resources(allocation), token, wanted)
            try:
                while not node.ended and wanted():
                    time.sleep(_PAUSE_SECONDS)
                if not wanted():
                    if leaves:
                        _leave(node, address, token, allocation.grace_seconds)
                    return 0 if signals.told_to_end else NOTICED
                _say(f"Ray has ended on this node: {node.last_words()}")
            finally:
                node.end()
    return CLUSTER_LOST


def _leave(node: RayNode, address: str, token: Mapping[str, str], seconds: float) -> None:
    """Have the head send nothing more to this node, and wait until what runs there has left."""
    deadline = time.monotonic() + seconds
    try:
        drain(node, address, token, seconds)
    except FoldtrainError as error:
        _say(str(error))
        return
    while node.is_busy() and not node.ended and time.monotonic() < deadline:
        time.sleep(_PAUSE_SECONDS)


# --------------------------------------------------------------------------------------------------------------- where


def where(job: str) -> str:
    """What the head of a job wrote down on this node, for its own user.

    Raises:
        FoldtrainError: if it is not up, or not here.
    """
    for folder in own_folders():
        try:
            if (folder / JOB_FILE).read_text() == job:
                return (folder / HEAD_FILE).read_text()
        except OSError:
            continue
    raise FoldtrainError(f"no head of job {job} is up on this node")


def write_job(folder: Path, job: str) -> None:
    """Say whose folder it is."""
    _write_privately(folder / JOB_FILE, job)


def _write_privately(path: Path, text: str) -> None:
    temporary = path.with_suffix(".new")
    temporary.touch(mode=0o600)
    temporary.write_text(text)
    temporary.replace(path)


# ----------------------------------------------------------------------------------------------------------- this node


def _resources(allocation: Allocation) -> list[str]:
    cpus = allocation.cpus or int(os.environ.get("SLURM_CPUS_ON_NODE") or os.cpu_count() or 1)
    return [f"--num-cpus={cpus}", f"--num-gpus={allocation.gpus}"]


def _host(allocation: Allocation, towards: str) -> str:
    return address_of_interface(allocation.interface) if allocation.interface else address_towards(towards)


def _neighbour() -> str:
    """The address of another machine as Slurm names it: another node of the allocation, or else the controller."""
    nodes = os.environ.get("SLURM_JOB_NODELIST", "")
    names = slurm.run(["scontrol", "show", "hostnames", nodes], environment=os.environ).split()
    others = [name for name in names if name != os.environ.get("SLURMD_NODENAME")]
    if others:
        shown = slurm.run(["scontrol", "--oneliner", "show", "node", others[0]], environment=os.environ)
        words = dict(word.partition("=")[::2] for word in shown.split())
        return words.get("NodeAddr") or others[0]
    settings = slurm.run(["scontrol", "show", "config"], environment=os.environ)
    line = next((line for line in settings.splitlines() if line.startswith("SlurmctldHost")), "")
    named = line.partition("=")[2].strip()  # name, or name(address)
    return named.partition("(")[2].rstrip(")") or named or "127.0.0.1"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - into the output of the allocation


def main(arguments: Sequence[str]) -> int:
    """Do what the arguments say; returns the exit code."""
    what, rest = arguments[0], list(arguments[1:])
    if what == "head":
        return run_head(Allocation.from_text(rest[0]), Path(rest[1]), rest[3:])
    if what == "worker":
        return run_worker(Allocation.from_text(rest[0]))
    print(where(rest[0]))  # noqa: T201 - it is the answer
    return 0


def run_main(arguments: Sequence[str]) -> int:
    """The same, with the errors that a user can mend as one line."""
    try:
        return main(arguments)
    except FoldtrainError as error:
        _say(f"{os.environ.get('SLURMD_NODENAME', '')}: {error}")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(run_main(sys.argv[1:]))
