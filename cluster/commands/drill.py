"""Fault drills: real processes are killed while they work, and what they end in is compared."""

from __future__ import annotations

import functools
import json
import signal
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from cluster.drills.data import Trial

app = typer.Typer(no_args_is_help=True, help="Kill processes while they work, and see that all ends as it should.")


@app.command("data")
def drill_data(
    trials: Annotated[int, typer.Option("--trials", min=1, help="How many; about 35 seconds each.")] = 20,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Trial n, from 0, is that of seed SEED + n.")] = 0,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where to work; a temporary folder if left out.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep that folder: the server's data, and all logs.")] = False,
    output: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the trials here, too.")] = None,
) -> None:
    """Strike ingest and tokenize on S3 with kill -9, restarts and faults; exit code 1 if their bytes differ in the end.

    All of it is on this machine: it starts an S3 server (`weed`, from the extra `dev`), and a Ray cluster for each
    command. A seed decides what is struck in a trial, and when.
    """
    from cluster.drills.data import run_drill
    from cluster.terminal import console
    from data_pipeline.errors import FoldtrainError

    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))  # as Ctrl-C: all processes end first
    done: list[Trial] = []
    seeds = range(seed, seed + trials)
    try:
        with closing(run_drill(seeds, folder, keep=keep, say=functools.partial(typer.echo, err=True))) as drill:
            for trial in drill:
                done.append(trial)
                typer.echo(_line(trial, len(done), trials), err=True)
    finally:
        if output is not None:
            output.write_text(json.dumps(_record(done), indent=1) + "\n")
        console().print(_table(done))
    wrong = [trial for trial in done if trial.problems]
    for trial in wrong:
        typer.echo(f"\nseed {trial.plan.seed}, {trial.plan.stage}:\n" + "\n".join(trial.problems))
    summary = f"{trials - len(wrong)} of {trials} trials ended in byte-identical data sets"
    typer.echo(summary)
    if wrong:
        raise FoldtrainError(f"{summary}; repeat the first that did not with --trials 1 --seed {wrong[0].plan.seed}")


def _record(done: list[Trial]) -> dict[str, Any]:
    passed = sum(not trial.problems for trial in done)
    return {"passed": passed, "of": len(done), "trials": [trial.to_json() for trial in done]}


def _line(trial: Trial, number: int, trials: int) -> str:
    struck, codes = "; ".join(trial.blows), ", ".join(map(str, trial.exit_codes))
    return (
        f"{number} of {trials}: {trial.plan.stage}, {struck} → exit {codes}, {trial.seconds:.0f} s: {_verdict(trial)}"
    )


def _verdict(trial: Trial) -> str:
    return "not as it should be" if trial.problems else "identical"


def _table(done: list[Trial]) -> Table:
    from rich.table import Table

    table = Table("seed", "stage", "struck", "exit codes", "seconds", "kept", "sent twice", "verdict", box=None)
    for trial in done:
        table.add_row(
            str(trial.plan.seed),
            trial.plan.stage,
            "\n".join(trial.blows),
            ", ".join(map(str, trial.exit_codes)),
            f"{trial.seconds:.0f}",
            str(trial.kept),
            str(trial.made_twice),
            _verdict(trial),
        )
    return table


def register(parent: typer.Typer) -> None:
    """Add the commands of this file."""
    parent.add_typer(app, name="drill", rich_help_panel="Data")
