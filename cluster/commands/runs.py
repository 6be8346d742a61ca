"""Runs that are under way: watch one, change its size."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.terminal.output import say
from data_pipeline.errors import UsageError
from data_pipeline.text.counted import counted
from trainer.registry import stage_named


def monitor(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN|FOLDER|URI...", help="A run, at any URI; with --web several, or a folder of runs."),
    ],
    *,
    once: Annotated[bool, typer.Option("--once", help="Print it once and end.")] = False,
    interval: Annotated[float, typer.Option(min=0.2, max=86_400, help="Seconds between looks.")] = 2.0,
    web: Annotated[bool, typer.Option("--web", help="Show it as a page in a browser, and print its address.")] = False,
    host: Annotated[
        str, typer.Option(help="With --web: where to listen. Elsewhere than on this machine it needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="With --web: 0 for any that is free.")] = 8470,
    control: Annotated[
        bool, typer.Option("--control", help="With --web: the page may stop a run, or have it write a checkpoint.")
    ] = False,
    price: Annotated[
        float | None, typer.Option(min=0, max=1e6, help="With --web: of an hour of all machines of a run.")
    ] = None,
) -> None:
    """Show how the stages of a run stand, live, from its own files; in the terminal, or with --web as a page."""
    if web:
        from cluster.monitor.web.serving import serve

        serve(runs, host=host, port=port, control=control, price=price)
        return
    if len(runs) > 1:
        raise UsageError(f"{' '.join(runs)}: the terminal shows one run; give --web to compare several")
    from cluster.monitor import monitor_view

    monitor_view.show(runs[0], once=once, interval=interval)


def scale(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN|ID", help="A run at any URI, its config, its shards or samples; or a job's id."),
    ],
    workers: Annotated[
        str, typer.Option("--workers", metavar="N|MIN:MAX", help="Workers, or the fewest and the most of them.")
    ],
    stage: Annotated[
        str | None, typer.Option("--stage", help="tokenize, train-generator, ..., should several be at work at once.")
    ] = None,
    tokens: Annotated[str | None, typer.Option("--tokens", help="Folder of token shards, if not in the run.")] = None,
) -> None:
    """Change the number of workers of a running stage.

    Of ingest, tokenize and sample workers join, or leave after the shard in hand. Training goes on from a checkpoint.
    On Slurm its job is given the nodes for them; elsewhere Ray's autoscaler finds out by itself.
    """
    from cluster.pool import scale
    from cluster.stages.job_nodes import adapt_job, job_at_work

    fewest, most = scale.parse_workers(workers)
    if stage is not None and stage not in scale.STAGES:
        raise typer.BadParameter(f"{stage}: choose from {', '.join(scale.STAGES)}", param_hint="--stage")
    job = job_at_work(run)
    place = tokens or (job.run if job else run)
    name, folder = scale.running_stage(place, "tokenize" if tokens else stage)
    scale.write_scale(folder, fewest, most)
    size = counted(most, "worker is", "workers are") if fewest == most else f"{fewest} to {most} workers are"
    when = "from a checkpoint on" if stage_named(name).trains else "they join, or leave after the shard in hand"
    say(f"{folder}: {size} asked for; {when}")
    if job and (said := adapt_job(job, most)):
        say(f"{job.id}: {said}")


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("monitor", rich_help_panel="Runs")(monitor)
    app.command("scale", rich_help_panel="Runs")(scale)
