"""The process of an allocation, `python -P -m cluster.targets.slurm_batch`: srun on each node, and the end.

    run ALLOCATION -- COMMAND...   a job: the head and the command on the first node, then the other nodes
    join ALLOCATION JOB            a node more for a job that runs, in an allocation of its own

1. srun starts the head (slurm_node.py), which writes down where it is, in a folder of mode 0700 on this node's disk
2. srun starts the other nodes, which get that and the token through srun's environment
3. a notice (SIGUSR1 before the time limit, SIGTERM) is passed on to the head's step: the job saves a checkpoint, leaves
4. what is left is told to end. The job goes on in the next allocation (`scontrol requeue`) if it was told to end, or
   if its cluster broke down; a job that failed fails. Why it ended is in the comment of the job, as nothing else of
   this allocation may be left
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from cluster.session.ray_folder import ray_folder
from cluster.targets import slurm_commands as slurm
from cluster.targets import slurm_node as node
from cluster.targets.slurm_config import Allocation
from data_pipeline.errors import FoldtrainError
from data_pipeline.text.printable import printable

_PAUSE_SECONDS = 0.5
_END_SECONDS = 20.0
_REQUEUED_SECONDS = 120.0
_LONGEST_COMMENT = 480
_LOOK_AGAIN_SECONDS = 5.0
_WATCH_SECONDS = 15.0
"""Between two looks whether the job that was joined still runs."""


class Step:
    """An srun, and what its nodes print at the end.

    Args:
        arguments: of slurm_node.py.
        allocation: of the target.
        nodes: how many.
        first: the first one, by its place in the allocation.
        environment: variables beside this process's own.
        log: what its nodes print, in a folder of this process's own.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        allocation: Allocation,
        *,
        nodes: int,
        first: int,
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        command = [
            *("srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", f"--relative={first}"),
            *("--kill-on-bad-exit=0", "--export=ALL", "--mem=0", "--input=none", "--unbuffered", "--chdir=/"),
            *([f"--cpus-per-task={allocation.cpus}"] if allocation.cpus else []),  # without: all of a node's
            "--cpu-bind=none",
            *([f"--gpus-per-node={allocation.gpus}"] if allocation.gpus else []),
            *(sys.executable, "-P", "-m", node.MODULE, *arguments),
        ]
        self._log = log
        self._pid_file = log.with_suffix(".pid")
        self._is_here = first == 0 and nodes == 1
        self._unsent: int | None = None
        here = {node.PID_VARIABLE: str(self._pid_file)} if self._is_here else {}
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **here, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def code(self) -> int | None:
        """Its exit code, once it has ended. What could not be sent before is sent if it can be now."""
        if self._unsent is not None and self._pid_file.exists():
            number, self._unsent = self._unsent, None
            self._signal(number)
        return self._process.poll()

    def send(self, number: int) -> None:
        """Signal the process on this node by its id, once it listens, or have srun pass it on to all nodes.

        srun would signal all that runs on a node, where Slurm is set up so: workers that train would end for a node
        that is only to be drained. A process that does not listen yet would end without a word.
        """
        if self._is_here and not self._pid_file.exists():
            self._unsent = number
        else:
            self._signal(number)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            try:
                os.kill(int(self._pid_file.read_text()), number)
            except (OSError, ValueError):  # not there yet, or on other nodes
                self._process.send_signal(number)

    def end(self) -> None:
        """Have its nodes end, and srun with them."""
        self._signal(signal.SIGUSR2)
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()  # Slurm ends the tasks of a step without srun, and all others with the allocation
            self._process.wait()

    def last_words(self) -> str:
        """The last line that was printed."""
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        own = [line for line in lines if not line.startswith(("srun:", "slurmstepd:"))]
        return (own or lines or ["it printed nothing"])[-1]


class Batch:
    """The steps of an allocation, and the signals that they get from it."""

    def __init__(self, allocation: Allocation) -> None:
        self.allocation = allocation
        self.noticed: int | None = None
        self.told: Step | None = None
        """The step that is told of notices."""
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.noticed is None:
            self.noticed = number
            if self.told is not None:
                self.told.send(_passed_on(number))

    def tell(self, step: Step) -> None:
        """Have a step get the notices from now on, and the one that has come already."""
        self.told = step
        if self.noticed is not None:
            step.send(_passed_on(self.noticed))


def _passed_on(number: int) -> int:
    """What a step is sent for a signal to the batch process: SIGTERM comes to the steps from Slurm itself."""
    return signal.SIGUSR1 if number == signal.SIGTERM else number


# ----------------------------------------------------------------------------------------------------------------- run


def run_job(allocation: Allocation, command: Sequence[str]) -> int:
    """Run a job on the nodes of this allocation. Returns its exit code.

    Raises:
        FoldtrainError: if a secret is missing, or a folder cannot be made.
    """
    batch = Batch(allocation)
    check_secrets(allocation.secrets, os.environ)
    nodes = int(os.environ["SLURM_JOB_NUM_NODES"])
    with ray_folder() as rays:
        folder = rays.parent
        node.write_job(folder, os.environ["SLURM_JOB_ID"])
        arguments = ["head", allocation.to_text(), str(folder), "--", *command]
        head = Step(arguments, allocation, nodes=1, first=0, log=folder / "head.log")
        others: Step | None = None
        try:
            batch.tell(head)
            while head.code() is None and not (folder / node.HEAD_FILE).exists():
                time.sleep(_PAUSE_SECONDS)
            if nodes > 1 and head.code() is None:
                there = json.loads((folder / node.HEAD_FILE).read_text())
                others = Step(
                    ["worker", allocation.to_text()],
                    allocation,
                    nodes=nodes - 1,
                    first=1,
                    log=folder / "others.log",
                    environment={node.HEAD_VARIABLE: there["address"], "RAY_AUTH_TOKEN": there["token"]},
                )
            code = _wait(head, others)
            return finish(allocation, code, (others if others is not None and others.code() else head).last_words())
        finally:
            for step in (head, others):
                if step is not None and step.code() is None:
                    step.end()


def _wait(head: Step, others: Step | None) -> int:
    """The exit code of the head's step. If the other nodes are lost before it ends, it is told to save what it has."""
    lost = False
    while (code := head.code()) is None:
        if others is not None and not lost and others.code() is not None:
            lost = True
            _say(f"the other nodes have ended: {others.last_words()}")
            head.send(signal.SIGUSR1)
        time.sleep(_PAUSE_SECONDS)
    return node.CLUSTER_LOST if lost and code else code


def finish(allocation: Allocation, code: int, words: str) -> int:
    """Have the job go on in the next allocation, or say why it does not. Returns the exit code of this one.

    Args:
        allocation: of the target.
        code: exit code of the head's step.
        words: the last line that its nodes printed.
    """
    if code == 0:
        return 0
    restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    if code == node.CLUSTER_LOST and restarts < allocation.restarts:
        return _requeue(allocation, code, f"its Ray cluster broke down: {words}")
    if code == node.NOTICED:
        return _requeue(allocation, code, "told to end: it goes on in the next allocation")
    _comment(words)
    return code


def _requeue(allocation: Allocation, code: int, why: str) -> int:
    _comment(why)
    if not allocation.requeue:
        return code
    try:
        # Only a job that runs: one that is cancelled or preempted already is Slurm's affair.
        slurm.run(["scontrol", "requeue", "Incomplete", os.environ["SLURM_JOB_ID"]], environment=os.environ)
    except FoldtrainError as error:
        _say(f"it does not go on by itself: {error}")
        return code
    time.sleep(_REQUEUED_SECONDS)  # Slurm ends this process
    return code


def check_secrets(names: Sequence[str], environment: Mapping[str, str]) -> None:
    """Make sure that this node has the secrets that the job needs.

    Raises:
        FoldtrainError: if not; it names them.
    """
    missing = [name for name in names if not environment.get(name)]
    if missing:
        here = os.environ.get("SLURMD_NODENAME", "this node")
        raise FoldtrainError(
            f"{', '.join(missing)}: not set on {here}, and named in `secrets` of the target; set it in the login "
            "profile of the nodes, or in a line of `setup` that reads a file there"
        )


# ---------------------------------------------------------------------------------------------------------------- join


def run_join(allocation: Allocation, job: str) -> int:
    """Be a node more of a job that runs. Returns 0 when the job has ended, or does not want it any longer.

    Raises:
        FoldtrainError: if Ray does not start on it.
    """
    if os.environ.get("SLURM_JOB_NAME", "").startswith(slurm.LEFT):
        return 0
    batch = Batch(allocation)
    there, since = None, slurm.state_of(job).started
    while there is None and batch.noticed is None:
        if not _is_at_work(job, since):
            _comment(f"job {job} does not run (any more)")
            return 0
        there = _head_of(job)
        if there is None:
            time.sleep(_LOOK_AGAIN_SECONDS)
    if there is None:
        return _left(allocation, batch)
    variables = {
        node.HEAD_VARIABLE: str(there["address"]),
        "RAY_AUTH_TOKEN": str(there["token"]),
        node.LEAVES_VARIABLE: "1",
    }
    with ray_folder() as rays:
        log = rays.parent / "node.log"
        step = Step(["worker", allocation.to_text()], allocation, nodes=1, first=0, log=log, environment=variables)
        batch.tell(step)
        code = _wait_beside(step, job, since)
        if code == node.NOTICED:
            return _left(allocation, batch)
        if code and _is_at_work(job, since):
            _comment(step.last_words())
            return code
        return 0


def _left(allocation: Allocation, batch: Batch) -> int:
    """A node that has left: for good if the job does not want it, else until the next allocation."""
    if batch.noticed == signal.SIGUSR2:
        return 0
    return _requeue(allocation, node.NOTICED, "told to end: it joins again in the next allocation")


def _is_at_work(job: str, since: float | None) -> bool:
    """Whether a job runs in the start that was joined: one that was requeued has a Ray cluster of its own again."""
    state = slurm.state_of(job)
    return state.status == "running" and state.started == since


def _wait_beside(step: Step, job: str, since: float | None) -> int:
    """The exit code of a step, which is told to end when the job does: Ray would wait for its head for minutes."""
    look = time.monotonic() + _WATCH_SECONDS
    while (code := step.code()) is None:
        time.sleep(_PAUSE_SECONDS)
        if time.monotonic() > look:
            look = time.monotonic() + _WATCH_SECONDS
            with contextlib.suppress(FoldtrainError):  # a controller that is away for a while
                if not _is_at_work(job, since):
                    step.end()
    return code


def _head_of(job: str) -> dict[str, str] | None:
    """Where the head of another job of this user is, asked on its own first node; None while it is not up."""
    number, cluster = slurm.split_handle(job)
    try:
        host = slurm.run(slurm.of_job("squeue", job, "--noheader", "--format=%B", "--jobs")).strip()
        command = [
            *("srun", f"--jobid={number}", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={host}", "--mem=0"),
            *("--cpus-per-task=1", "--gres=none", "--input=none", "--chdir=/"),
            *([f"--clusters={cluster}"] if cluster else []),
            *(sys.executable, "-P", "-m", node.MODULE, "where", number),
        ]
        found = json.loads(slurm.run(command))
    except (FoldtrainError, ValueError) as error:
        _say(str(error))
        return None
    return found if isinstance(found, dict) else None


# ----------------------------------------------------------------------------------------------------------------- end


def _comment(text: str) -> None:
    """Leave a sentence with the job, where Slurm's own commands show it."""
    _say(text)
    comment = printable(text).replace('"', "'")[:_LONGEST_COMMENT]
    with contextlib.suppress(FoldtrainError):
        command = ["scontrol", "update", f"JobId={os.environ['SLURM_JOB_ID']}", f"Comment={comment}"]
        slurm.run(command, environment=os.environ)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - into the output of the allocation


def main(arguments: Sequence[str]) -> int:
    """Do what the arguments say. Returns the exit code of the allocation."""
    try:
        what, allocation = arguments[0], Allocation.from_text(arguments[1])
        if what == "run":
            return run_job(allocation, arguments[3:])
        return run_join(allocation, arguments[2])
    except FoldtrainError as error:
        _comment(str(error))
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
