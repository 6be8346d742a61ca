"""Checkpoints of training stages: save one now, list, verify, export, remove."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from cluster.terminal.output import say

Folder = Annotated[str, typer.Argument(metavar="FOLDER", help="Folder of a run or of one of its stages, at any URI.")]
Step = Annotated[int | None, typer.Option("--step", help="Which one; the newest complete one if left out.")]

app = typer.Typer(
    help="Save one now; list, verify, export and remove checkpoints.", no_args_is_help=True, add_completion=False
)


@app.command("save")
def save_checkpoint(
    run: Annotated[str, typer.Argument(metavar="RUN|ID", help="A run at any URI, or its config; or a job's id.")],
    stage: Annotated[
        str | None, typer.Option("--stage", help="train-generator, ..., should several train at once.")
    ] = None,
) -> None:
    """Have what trains in a run save a checkpoint after the step under way, and go on.

    Its command looks for the request every few seconds; `checkpoint ls` shows what is saved.
    """
    from cluster.pool import scale
    from cluster.stages.job_nodes import job_at_work
    from trainer.registry import TRAINING

    names = [each.command for each in TRAINING]
    if stage is not None and stage not in names:
        raise typer.BadParameter(f"{stage}: choose from {', '.join(names)}", param_hint="--stage")
    job = job_at_work(run)
    place = job.run if job else run
    say(f"{place}: {scale.request_checkpoints(scale.training_at_work(place, stage))}")


@app.command("ls")
def list_checkpoints(folder: Folder) -> None:
    """List the checkpoints of a run, unfinished and damaged ones too."""
    from rich.table import Table

    from cluster.terminal.output import console
    from trainer.checkpoints import catalog

    table = Table("stage", "step", "state", "bytes", "workers", "ZeRO", "loss", "kept", box=None)
    damages: list[str] = []
    for stage, checkpoints in catalog.stages(folder).items():
        for found in catalog.list_checkpoints(checkpoints):
            loss = "" if found.loss is None else f"{found.loss:.4f}"
            state = "damaged" if found.damage else "complete" if found.complete else "unfinished"
            kept = "KEEP" if found.marked else ""
            numbers = [f"{found.bytes:,}", str(found.world_size or ""), str(found.zero_stage if found.complete else "")]
            table.add_row(stage, str(found.step), state, *numbers, loss, kept)
            damages += [f"{stage} step {found.step} is damaged: {found.damage}"] if found.damage else []
    console().print(table if table.row_count else f"{folder}: no checkpoints")
    for damage in damages:
        say(damage)


@app.command("verify")
def verify_checkpoints(folder: Folder, step: Step = None) -> None:
    """Read every byte of complete checkpoints, and compare it with what was written; exit code 1 if any is damaged."""
    from data_pipeline.errors import CorruptShardError
    from trainer.checkpoints import catalog
    from trainer.checkpoints.catalog import written_steps
    from trainer.checkpoints.reader import verify

    damaged = False
    for stage, checkpoints in catalog.stages(folder).items():
        for each in written_steps(checkpoints) if step is None else [step]:
            try:
                size = verify(checkpoints, each)
                say(f"{stage} step {each}: {size:,} bytes are those that were written")
            except CorruptShardError as error:
                damaged = True
                say(f"{stage} step {each} is damaged: {error}", err=True)
    if damaged:
        raise typer.Exit(1)


@app.command("export")
def export_checkpoint(
    folder: Folder,
    output: Annotated[str, typer.Option("--output", "-o", help="Folder to write to, at any URI.")],
    step: Step = None,
    ema: Annotated[bool, typer.Option("--ema", help="The moving average instead of the weights as trained.")] = False,
    kind: Annotated[
        str, typer.Option("--format", help="safetensors: model.safetensors. deepspeed: for DeepSpeed's own tools.")
    ] = "safetensors",
) -> None:
    """Put the network of a checkpoint together into whole tensors."""
    from data_pipeline.errors import UsageError
    from trainer.checkpoints import catalog, exporting

    exports = {"safetensors": exporting.export_safetensors, "deepspeed": exporting.export_deepspeed}
    if kind not in exports:
        raise UsageError(f"--format {kind}: choose one of {', '.join(exports)}")
    checkpoints = catalog.only_stage(folder)
    chosen = catalog.require_step(checkpoints, step)
    written = exports[kind](checkpoints, chosen, output, ema=ema)
    say(f"{written}: {'moving average' if ema else 'weights'} of step {chosen}")


@app.command("gc")
def remove_checkpoints(
    folder: Folder,
    keep: Annotated[int | None, typer.Option("--keep", min=1, help="The newest so many stay.")] = None,
    keep_every: Annotated[int | None, typer.Option(min=1, help="Multiples of so many steps stay.")] = None,
    keep_best: Annotated[str | None, typer.Option(help="The best by this number of metrics.jsonl stays.")] = None,
    mode: Annotated[Literal["min", "max"] | None, typer.Option(help="What the best has of it.")] = None,
    damaged: Annotated[bool, typer.Option("--damaged", help="Those that a start found damaged go, too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")] = False,
) -> None:
    """Remove old checkpoints, and unfinished ones older than the newest complete one; KEEP files are respected.

    In complete ones, the files of other attempts at them go. Only what foldtrain wrote in stages of its own goes, and
    nothing where a command is at work.

    What stays is what the stage's own config.yaml says (keep_checkpoints, keep_every, keep_best); options go before it.
    """
    from contextlib import nullcontext
    from dataclasses import replace

    from data_pipeline.errors import UsageError
    from data_pipeline.leases.lease import LeaseHeldError, only_driver
    from data_pipeline.leases.owned_folders import refuse_foreign_stage
    from trainer.checkpoints import catalog, retention
    from trainer.checkpoints.catalog import decisions_on_record

    given = {"last": keep, "every": keep_every, "metric": keep_best, "mode": mode}
    if keep_best is not None:
        given["mode"] = mode or "min"  # not that of the stage's own metric
    asked: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    refused = 0
    for stage, checkpoints in catalog.stages(folder).items():
        own = checkpoints.removesuffix("/checkpoints")
        try:
            refuse_foreign_stage(own, checkpoints)
            with nullcontext() if dry_run else only_driver(own, "checkpoint gc", say=say):
                rule = replace(retention.recorded_rule(own) or retention.Retention(2), **asked)
                act = retention.removable if dry_run else retention.apply
                gone = act(checkpoints, rule, decisions_on_record(own))
                if damaged:
                    gone += (retention.removable_damaged if dry_run else retention.remove_damaged)(checkpoints)
                stray = retention.all_strays(checkpoints, retention.strays if dry_run else retention.remove_strays)
        except (UsageError, LeaseHeldError) as error:
            refused += 1
            say(f"{stage}: nothing is removed: {error}", err=True)
            continue
        names = ", ".join([*map(str, gone), *stray]) or "nothing"
        say(f"{stage}: {'would remove' if dry_run else 'removed'} {names}")
    if refused:
        raise typer.Exit(1)


def register(parent: typer.Typer) -> None:
    """Add the commands of this file."""
    parent.add_typer(app, name="checkpoint", rich_help_panel="Runs")
