"""Fault drills: real processes are killed while they work, and what they end in is compared."""

from __future__ import annotations

import functools
import json
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.terminal.output import say

if TYPE_CHECKING:
    from rich.table import Table

    from cluster.drills.trials import Drill, Trial

app = typer.Typer(no_args_is_help=True, help="Kill processes while they work, and see that all ends as it should.")

Seed = Annotated[int, typer.Option("--seed", min=0, help="Trial n, from 0, is that of seed SEED + n.")]
Folder = Annotated[Path | None, typer.Option("--folder", help="Where to work; a temporary folder if left out.")]
Keep = Annotated[bool, typer.Option("--keep", help="Keep that folder: the server's data, and all logs.")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the trials here, too.")]


@dataclass(frozen=True)
class _Report:
    """How trials of a kind are shown."""

    subject: str
    """Heading of what was struck."""
    columns: Mapping[str, Callable[[Any], str]]
    """Of the table, besides those that all have: what each shows of a trial."""
    good: str
    """What a trial ended in that has no problems."""
    verdict: str
    """The same in a word."""


@app.command("data")
def drill_data(
    trials: Annotated[int, typer.Option("--trials", min=1, help="How many; about 35 seconds each.")] = 20,
    seed: Seed = 0,
    folder: Folder = None,
    keep: Keep = False,
    output: Json = None,
) -> None:
    """Strike ingest and tokenize on S3 with kill -9, restarts and faults; exit code 1 if their bytes differ in the end.

    All of it is on this machine: it starts an S3 server (`weed`, from the extra `drills`), and a Ray cluster for each
    command. A seed decides what is struck in a trial, and when.
    """
    from cluster.drills.data import DataDrill

    columns = {"kept": lambda trial: str(trial.kept), "sent twice": lambda trial: str(trial.made_twice)}
    report = _Report("stage", columns, "in byte-identical data sets", "identical")
    _drill(DataDrill, range(seed, seed + trials), folder, keep, output, report)


@app.command("train")
def drill_train(
    trials: Annotated[int, typer.Option("--trials", min=1, help="How many; about a minute each.")] = 20,
    network: Annotated[
        str, typer.Option("--network", help="tokenizer (with its discriminator), or a kind of generator.")
    ] = "next-scale",
    seed: Seed = 0,
    folder: Folder = None,
    keep: Keep = False,
    output: Json = None,
) -> None:
    """Strike training on S3 with kill -9 in a step, a snapshot or an upload; exit code 1 if it ends in anything else.

    Losses, weights, moments, averages and exports are compared with those of an unbroken run, bit for bit, and no
    checkpoint may be loaded but the newest complete one. All of it is on this machine: it starts an S3 server (`weed`,
    from the extra `drills`), and a Ray cluster for each command. A seed decides what is struck in a trial, and when.
    """
    from cluster.drills.drilled_training import stage_of
    from cluster.drills.training import TrainingDrill

    columns: dict[str, Callable[[Any], str]] = {
        "fell in": lambda trial: "\n".join(trial.fell),
        "starts after": lambda trial: ", ".join(map(str, trial.loaded)),
        "left over": lambda trial: str(sum(trial.left_over.values())),
    }
    report = _Report("trained", columns, "equal to the unbroken run bit for bit", "equal")
    stage_of(network)
    make = functools.partial(TrainingDrill, network=network)
    _drill(make, range(seed, seed + trials), folder, keep, output, report)


@app.command("cluster")
def drill_cluster(
    trials: Annotated[int, typer.Option("--trials", min=1, help="How many; one to three minutes each.")] = 10,
    away: Annotated[float, typer.Option("--away", min=0, max=200, help="Seconds that S3 is away.")] = 30,
    seed: Seed = 0,
    folder: Folder = None,
    keep: Keep = False,
    output: Json = None,
) -> None:
    """Lose a worker, a node, its network, S3, the driver or Ray's head under a job; exit code 1 unless it ends well.

    The job has all stages from ingest to train-generator. In the end each has to be finished, and equal to that of an
    undisturbed job bit for bit, with a clean audit; `describe` and `logs` have to tell of each job, also while its head
    is gone. All of it is on this machine: it starts an S3 server (`weed`, from the extra `drills`) and a Ray cluster of
    three nodes, as root with a network of its own each. A seed decides what is lost in a trial, and when.
    """
    from cluster.drills.cluster import ClusterDrill

    columns: dict[str, Callable[[Any], str]] = {"restarts": lambda trial: str(trial.restarts)}
    report = _Report("stage", columns, "finished, equal to the undisturbed job, with a clean audit", "finished")
    make = functools.partial(ClusterDrill, away_seconds=away)
    _drill(make, range(seed, seed + trials), folder, keep, output, report)


def _drill(
    make: Callable[[Path, int], Drill[Any]],
    seeds: range,
    folder: Path | None,
    keep: bool,
    output: Path | None,
    report: _Report,
) -> None:
    """Do the trials, and say what came of them.

    Raises:
        FoldtrainError: if one has problems.
    """
    from cluster.drills.trials import run_trials
    from cluster.terminal.output import console
    from data_pipeline.errors import FoldtrainError

    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))  # as Ctrl-C: all processes end first
    done: list[Trial] = []
    try:
        with closing(run_trials(make, seeds, folder, keep=keep, say=functools.partial(say, err=True))) as drill:
            for trial in drill:
                done.append(trial)
                say(_line(trial, len(done), len(seeds), report), err=True)
    finally:
        if output is not None:
            from data_pipeline.storage.local_disk import disk_errors

            with disk_errors(output):
                output.write_text(json.dumps(_record(done), indent=1) + "\n")
        console().print(_table(done, report))
    wrong = [trial for trial in done if trial.problems]
    for trial in wrong:
        say("", f"seed {trial.seed}, {trial.subject}:", *trial.problems)
    summary = f"{len(seeds) - len(wrong)} of {len(seeds)} trials ended {report.good}"
    say(*summary.split("\n"))
    if wrong:
        raise FoldtrainError(f"{summary}; repeat the first that did not with --trials 1 --seed {wrong[0].seed}")


def _record(done: list[Trial]) -> dict[str, Any]:
    passed = sum(not trial.problems for trial in done)
    return {"passed": passed, "of": len(done), "trials": [trial.to_json() for trial in done]}


def _line(trial: Trial, number: int, trials: int, report: _Report) -> str:
    struck, codes = "; ".join(trial.blows), ", ".join(map(str, trial.exit_codes))
    outcome = f"exit {codes}, {trial.seconds:.0f} s: {_verdict(trial, report)}"
    return f"{number} of {trials}: {trial.subject}, {struck} → {outcome}"


def _verdict(trial: Trial, report: _Report) -> str:
    return "not as it should be" if trial.problems else report.verdict


def _table(done: list[Trial], report: _Report) -> Table:
    from rich.table import Table

    table = Table("seed", report.subject, "struck", "exit codes", "seconds", *report.columns, "verdict", box=None)
    for trial in done:
        table.add_row(
            str(trial.seed),
            trial.subject,
            "\n".join(trial.blows),
            ", ".join(map(str, trial.exit_codes)),
            f"{trial.seconds:.0f}",
            *(show(trial) for show in report.columns.values()),
            _verdict(trial, report),
        )
    return table


def register(parent: typer.Typer) -> None:
    """Add the commands of this file."""
    parent.add_typer(app, name="drill", rich_help_panel="Data")
