"""A job on a node, `python -P -m cluster.job_process RUN JOB_ID`: the one thing that a target starts.

    front      the process that the scheduler started, signals and kills. It passes signals on, and waits.
    runner     a session of its own: keeps the record and the log in the run (cluster/jobs/runner.py)
    stages     the stages, one after the other, on one connection to Ray: the cluster of RAY_ADDRESS, or one of its own

The config comes from the run: <run>/jobs/<id>/config.yaml. Exit codes: 0 done, or stopped by request; 143 told to end
by the scheduler, and to be started again; else as `foldtrain` has them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from types import FrameType
from typing import Any

from foldtrain import leave_out_working_directory

leave_out_working_directory()

from cluster.session import job_environment

_PASSED_ON = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
_STAGES = "--stages"


def main() -> None:
    """Be the front of a job, or with `--stages` its stages."""
    *options, run, job_id = sys.argv[1:]
    if options == [_STAGES]:
        sys.exit(do_stages(run, job_id))
    sys.exit(_front(run, job_id))


def _front(run: str, job_id: str) -> int:
    """Start the runner, and wait for it. Returns its exit code."""
    read_end, write_end = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    runner = os.fork()
    if runner == 0:
        os.close(write_end)
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        return _run(run, job_id, read_end)
    os.close(read_end)

    def pass_on(number: int, _frame: FrameType | None) -> None:
        os.kill(runner, number)

    for number in _PASSED_ON:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    _, status = os.waitpid(runner, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _run(run: str, job_id: str, front: int) -> int:
    """Be the runner."""
    from cluster.jobs.runner import Runner, python_command
    from cluster.terminal.output import print_error
    from data_pipeline.errors import FoldtrainError

    try:
        job_environment.take_over()
        return Runner(run, job_id, python_command("cluster.job_process", _STAGES, run, job_id), front).run()
    except FoldtrainError as error:
        print_error(f"{error}\nA job reads its config from the run, so this node has to reach {run}, too")
        return error.exit_code
    finally:
        job_environment.remove()


def do_stages(run: str, job_id: str) -> int:
    """Do the stages of a job in this process. Returns the exit code."""
    from cluster.jobs.runner import TOLD_EXIT
    from cluster.session.head_watch import HeadLostError

    # Where Slurm signals every process of a job, this one hears what Ray's sessions do not listen for.
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(TOLD_EXIT))
    try:
        return _do_stages(run, job_id)
    except HeadLostError as error:
        _report(error, error)
        sys.stdout.flush()
        os._exit(error.exit_code)  # without Python's own end, in which threads of Ray that wait for their head crash
    except Exception as error:
        from cluster.cli import find_cause

        known = find_cause(error)
        _report(error, known)
        if known is None:
            raise
        return known.exit_code


def _do_stages(run: str, job_id: str) -> int:
    from cluster.commands.stages import seconds_since_enter
    from cluster.config.loading import load_config
    from cluster.jobs.places import job_folder
    from cluster.jobs.records import CONFIG, read_job
    from cluster.jobs.runner import TOLD_EXIT
    from cluster.stages.job_nodes import nodes_of_stage
    from cluster.stages.pipeline import StageStopped, run_stages
    from cluster.terminal.output import console
    from data_pipeline import storage
    from data_pipeline.node.compiled_code import keep_compiled_code_private

    keep_compiled_code_private()
    config = load_config(storage.join(job_folder(run, job_id), CONFIG))
    if os.environ.get("RAY_ADDRESS"):  # the target says where it runs
        config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"address": None})})

    def say(stage: str, outcome: str | None) -> None:
        _say_stage(stage, outcome)
        if outcome is None and (said := nodes_of_stage(run, job_id, config, stage)):
            console().print(f"{stage}: {said}", markup=False)

    try:
        run_stages(read_job(run, job_id).stages, config, seconds_since_enter(), say)
    except StageStopped as stopped:
        console().print(str(stopped))
        return TOLD_EXIT
    return 0


def _say_stage(stage: str, outcome: str | None) -> None:
    _say({"stage": stage} | ({} if outcome is None else {"outcome": outcome}))


def _report(error: BaseException, known: Exception | None) -> None:
    """Tell the runner and the log what went wrong."""
    if known is not None:
        from cluster.terminal.output import print_error

        print_error(str(known))
    _say({"error": str(known) if known is not None else f"{type(error).__name__}: {error}"})


def _say(word: dict[str, Any]) -> None:
    from cluster.jobs.runner import WORDS_VARIABLE

    number = os.environ.get(WORDS_VARIABLE, "")
    if number.isdigit():
        os.write(int(number), json.dumps(word).encode() + b"\n")


if __name__ == "__main__":
    main()
