"""`foldtrain`: the command line. `foldtrain --help` lists the commands; `foldtrain COMMAND --help` explains one.

Exit codes: 0 done, or training that was told to end (SIGTERM, SIGUSR1, SIGHUP) and saved a checkpoint; 1 failed;
2 asked for something that cannot be (a config, a path, an option); 130 interrupted; 143 or 129 told to end where there
is nothing to save.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

from foldtrain import leave_out_working_directory, refusal

leave_out_working_directory()  # before what is imported below

import typer

from cluster.commands import (
    checkpoints,
    compare,
    configs,
    data,
    data_sets,
    doctor,
    drill,
    evaluate,
    gc,
    jobs,
    ledger,
    networks,
    plan,
    runs,
    stages,
)
from cluster.session.head_watch import HeadLostError
from data_pipeline.errors import FoldtrainError, UsageError
from data_pipeline.node.compiled_code import keep_compiled_code_private
from data_pipeline.storage.local_disk import explain_unhandled

app = typer.Typer(
    name="foldtrain",
    help="Train image generators on folded tokens, on one laptop or on a cluster, with the same config.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a bug shows Python's own traceback; main() says what a user did wrong
    context_settings={"help_option_names": ["-h", "--help"]},  # of every command
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"foldtrain {version('foldtrain')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of foldtrain itself. What the help says of it is the text that `app` has."""


stages.register(app)
configs.register(app)
jobs.register(app)
doctor.register(app)
runs.register(app)
evaluate.register(app)
compare.register(app)
checkpoints.register(app)
data.register(app)
data_sets.register(app)
networks.register(app)
gc.register(app)
ledger.register(app)
plan.register(app)
drill.register(app)


def find_cause(error: BaseException) -> FoldtrainError | None:
    """The user's mistake inside an exception, however deep Ray and DeepSpeed wrapped it; None if it is a bug.

    Ray's task errors hold the exception of the worker in `cause`, those of training one per worker in
    `worker_failures`.
    """
    waiting: list[object] = [error]
    seen: set[int] = set()
    fallback = None
    while waiting:
        current = waiting.pop(0)
        if not isinstance(current, BaseException) or id(current) in seen:
            continue
        seen.add(id(current))
        cause = getattr(current, "cause", None)
        if isinstance(current, FoldtrainError):
            if not isinstance(cause, BaseException):
                return current
            fallback = fallback or current  # Ray's class of both kinds: its text is a traceback, its cause is the error
        failures = getattr(current, "worker_failures", None)
        waiting += [cause, current.__cause__, current.__context__]
        waiting += list(failures.values()) if isinstance(failures, dict) else []
    return fallback


def main() -> None:
    """Run the command line and end the process with its exit code."""
    keep_compiled_code_private()
    try:
        if reason := refusal():
            raise UsageError(reason)  # noqa: TRY301 - printed below, as all are
        app()
    except Exception as error:
        known = find_cause(error) or (explain_unhandled(error) if isinstance(error, OSError) else None)
        if known is None:
            raise
        from cluster.terminal.output import print_error

        print_error(str(known))
        if isinstance(known, HeadLostError):
            _end_at_once(known.exit_code)
        sys.exit(known.exit_code)


def _end_at_once(code: int) -> NoReturn:
    """End without Python's own end, in which threads of Ray that wait for their head crash."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
