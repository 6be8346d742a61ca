"""Slurm's own commands: run with a limit, in one language and time format, and with errors that say what to do."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence

from cluster.targets.target import TargetState, TargetStatus
from data_pipeline.errors import FoldtrainError, UsageError
from data_pipeline.text.printable import printable

_SECONDS = 90.0
"""A controller that is busy answers within its own time limits, some tens of seconds."""
_LONGEST_REASON = 500
_KEPT = {"SLURM_CONF", "SLURM_JWT"}
"""Variables of Slurm's that say where it is and who asks; all others would change what a script says."""
_HANDLE = re.compile(r"(?P<job>[1-9][0-9]{0,9}(_[0-9]{1,7})?)(;(?P<cluster>[A-Za-z0-9_.-]{1,64}))?")

JOIN, LEFT = "foldtrain-join-", "foldtrain-left-"
"""How the names of allocations begin that join a job, and of those that have been told to leave it; its number
follows. One that is told to leave while its node is lost is requeued by Slurm, and leaves then."""
_STATUS: dict[str, TargetStatus] = {
    **dict.fromkeys(("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"), "pending"),
    **dict.fromkeys(("RESV_DEL_HOLD", "SUSPENDED", "STOPPED"), "pending"),
    **dict.fromkeys(("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "RESIZING"), "running"),
    **dict.fromkeys(("FAILED", "TIMEOUT", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "LAUNCH_FAILED"), "failed"),
    **dict.fromkeys(("NODE_FAIL", "PREEMPTED", "RECONFIG_FAIL"), "failed"),
    "COMPLETED": "succeeded",
    "CANCELLED": "stopped",
    "REVOKED": "lost",
}
"""By Slurm's word. It requeues jobs of lost nodes and preempted ones itself where it may: these words are final."""
_FIELDS = ("State", "StartTime", "EndTime", "exit_code", "RestartCnt", "Reason", "Comment")


class UnknownJobError(FoldtrainError):
    """Slurm knows no such job."""


def run(
    command: Sequence[str],
    *,
    script: str | None = None,
    environment: Mapping[str, str] | None = None,
    times: str = "%s",
) -> str:
    """What a command of Slurm's prints.

    Args:
        command: its words.
        script: what it reads.
        environment: of the command; None for this process's own, without what Slurm takes for options.
        times: how it prints them, as strftime has it; the default is unix time.

    Raises:
        UsageError: if there is no such command here.
        FoldtrainError: if it fails; UnknownJobError if for want of the job.
    """
    variables = own_environment(os.environ) if environment is None else environment
    try:
        done = subprocess.run(
            command,
            input=script,
            stdin=subprocess.DEVNULL if script is None else None,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_SECONDS,
            env={**variables, "LC_ALL": "C", "SLURM_TIME_FORMAT": times},
        )
    except FileNotFoundError as error:
        raise UsageError(
            f"there is no {command[0]} here: use the target from a machine that Slurm's jobs are submitted from"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise FoldtrainError(f"{command[0]} gave no answer in {_SECONDS:.0f} seconds: ask again later") from error
    if done.returncode:
        raise _failure(command, done.stderr or done.stdout)
    return done.stdout or done.stderr  # sbatch --test-only answers there


def _failure(command: Sequence[str], printed: str) -> FoldtrainError:
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    reason = printable("; ".join(lines) or "it gives no reason")[:_LONGEST_REASON]
    if "Invalid job id" in reason:
        return UnknownJobError(reason)
    return FoldtrainError(f"{command[0]} refused: {reason}")


def own_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what sbatch would prefer to the lines of a script, and without an allocation around us."""
    slurms = ("SLURM", "SBATCH_", "SALLOC_", "SQUEUE_", "SCANCEL_", "SACCT_")
    return {name: value for name, value in environment.items() if name in _KEPT or not name.startswith(slurms)}


def left_out(environment: Mapping[str, str]) -> list[str]:
    """The names of variables that are set for sbatch and not used."""
    return sorted(name for name in environment if name.startswith("SBATCH_"))


def of_job(command: str, handle: str, *options: str) -> list[str]:
    """The words of a command about a job; its number comes last.

    Raises:
        UsageError: if the handle is none.
    """
    job, cluster = split_handle(handle)
    return [command, *([f"--clusters={cluster}"] if cluster else []), *options, job]


def split_handle(handle: str) -> tuple[str, str | None]:
    """Slurm's number of a job, and its cluster if it is one of several.

    Raises:
        UsageError: if it is none.
    """
    found = _HANDLE.fullmatch(handle)
    if not found:
        raise UsageError(f"{handle!r:.80} is no job of Slurm: it has a number there")
    return found["job"], found["cluster"]


def state_of(handle: str) -> TargetState:
    """What Slurm says of a job: of one that is there, or that its accounting remembers; `lost` of another.

    Raises:
        UsageError: if the handle is none.
        FoldtrainError: if Slurm does not answer.
    """
    listing = ",".join(f"{field}:|" for field in _FIELDS)
    command = of_job("squeue", handle, "--noheader", "--states=all", f"--Format={listing}", "--jobs")
    try:
        lines = run(command).splitlines()
    except UnknownJobError:
        lines = []
    rows = [line.removesuffix("|").split("|", len(_FIELDS) - 1) for line in lines if line.count("|") >= len(_FIELDS)]
    if not rows:
        return _remembered(handle)
    state, started, ended, code, restarts, reason, comment = (cell.strip() for cell in rows[0])
    return _state(state, started, ended, reason, code, comment if comment != "(null)" else "", int(restarts or 0))


def _remembered(handle: str) -> TargetState:
    """What the accounting says, where there is one."""
    lost = TargetState("lost", "Slurm knows no such job (any more)")
    fields = "State,Start,End,ExitCode,Reason"
    options = ("--noheader", "--parsable2", "--allocations", f"--format={fields}", "--jobs")
    try:
        lines = run(of_job("sacct", handle, *options)).splitlines()
    except FoldtrainError:  # there is none
        return lost
    if not lines or lines[0].count("|") < 4:
        return lost
    state, started, ended, code, reason = lines[0].split("|", 4)
    return _state(state, started, ended, reason, code, "", 0)


def _state(state: str, started: str, ended: str, reason: str, code: str, comment: str, restarts: int) -> TargetState:
    word = state.split(" ")[0]  # CANCELLED by 1000
    status = _STATUS.get(word, "running")
    over = status in {"succeeded", "failed", "stopped", "lost"}
    parts = [word.lower()]
    if reason not in {"", "None", "(null)"}:
        parts.append(f"({reason})")
    if over and status == "failed":
        parts.append(f"exit code {code.partition(':')[0]}")
    if restarts:
        parts.append(f"started {restarts + 1} times")
    message = " ".join(parts) + (f": {comment}" if comment else "")
    return TargetState(
        status,
        printable(message)[:_LONGEST_REASON],
        None if status == "pending" else _time(started),
        _time(ended) if over else None,
    )


def _time(text: str) -> float | None:
    return float(text) if text.isascii() and text.isdigit() and int(text) else None
