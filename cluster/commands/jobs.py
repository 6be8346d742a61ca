"""Jobs: submit stages to this machine or to a cluster; list, describe, follow and stop them by the run's own files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cluster.commands.stages import Config, Overrides
from cluster.terminal.output import say

if TYPE_CHECKING:
    from cluster.config.run import RunConfig
    from cluster.jobs.records import JobRecord
    from cluster.targets.config import TargetSection
    from cluster.targets.target import JobSpec, Target

Named = Annotated[
    str, typer.Argument(metavar="RUN|ID", help="Folder of a run at any URI, or a job that was submitted here.")
]
Job = Annotated[str | None, typer.Option("--job", metavar="ID", help="Which job of the run; the newest if left out.")]


def submit(
    config: Config,
    overrides: Overrides = None,
    *,
    stage: Annotated[
        list[str], typer.Option("--stage", help="What to run: stages, with commas between them, or all of them: all.")
    ],
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="NAME|FILE", help="local (default), ray, ..., or a YAML of your own."),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="URL of a Ray cluster's dashboard, http://HOST:8265, for --target ray.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show its log until it ends.")] = False,
) -> None:
    """Run stages as a job, and return at once. On a terminal it shows the plan and asks."""
    from cluster.config.loading import load_config
    from cluster.jobs import submitting
    from cluster.jobs.graph import chosen_stages
    from cluster.targets.opening import DEFAULT, load_target, open_target

    resolved = load_config(config, overrides or [])
    stages = chosen_stages(stage, resolved)
    name, section = load_target(target or ("ray" if address else DEFAULT), address=address)
    place = open_target(name, section)
    job = submitting.new_job(stages, resolved, section)
    if dry_run:
        _print_rendered(place, job)
        return
    for sentence in place.check(job):
        say(sentence, err=True)
    _ask(job, resolved, section, yes=yes)
    submitting.start(place, job, section)
    say(f"submitted {job.id}; follow it with: foldtrain logs -f {job.id}")
    if follow:
        _follow(job.run, job.id)


def _print_rendered(place: Target, job: JobSpec) -> None:
    from data_pipeline.text.printable import printable

    for each in place.render(job):
        typer.echo(f"# {printable(each.name)}\n{printable(each.text, lines=True).rstrip()}\n")


def _ask(job: JobSpec, config: RunConfig, section: TargetSection, *, yes: bool) -> None:
    """Show the plan; on a terminal ask whether it is to be. The time and price are worked out for a person alone."""
    from cluster.jobs import records
    from cluster.jobs.graph import standing
    from cluster.stages import job_plan
    from cluster.terminal.output import console

    asks = not yes and _can_ask()
    found = standing(job.config, job.stages)
    todo = [stage.command for stage in found if not stage.is_skipped]
    forecasts = {name: job_plan.forecast(job.config, name, section) for name in todo} if asks else None
    out = console(stderr=True)
    out.print(job_plan.table(found, config, section, forecasts))
    for sentence in job_plan.sentences(found, section, forecasts):
        out.print(sentence)
    for other in records.list_jobs(job.run):
        if other.status in {"pending", "running"}:
            out.print(f"{other.id} of this run is {other.status}: where both want one stage, the second is refused")
    if asks and not typer.confirm(f"submit it to {section.kind}?", default=True, err=True):
        raise typer.Exit(1)


def _can_ask() -> bool:
    """Whether there is somebody to answer."""
    import sys

    return sys.stdin is not None and sys.stdin.isatty()


def list_jobs(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="Of this run; without one, those that were submitted here.")
    ] = None,
) -> None:
    """List jobs, the newest last."""
    from cluster.jobs import job_views, records
    from cluster.jobs.places import remembered
    from cluster.terminal.output import console

    if run is not None:
        found = records.list_jobs(run)
    else:
        found = [records.read_or_problem(place, job_id) for job_id, place in remembered().items()]
        found = [record for record in found if record.job is not None]  # its run was deleted
    console().print(job_views.table(found) if found else "no jobs")


def describe(run: Named, job: Job = None) -> None:
    """Say in one screen what happened to a run's job: which step, which cause, what it did itself, what to do."""
    from cluster.jobs import places, records
    from cluster.stages import describing
    from data_pipeline import storage

    if job is None and not places.is_id(run) and not records.list_jobs(storage.absolute(run)):
        describing.show_run(storage.absolute(run))
    else:
        describing.show(_named(run, job))


def logs(
    run: Named,
    job: Job = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until it ends; exit code 1 if it fails.")] = False,
) -> None:
    """Show what a job printed."""
    from cluster.jobs import records

    record = _named(run, job)
    if follow:
        _follow(record.run, record.id)
        return
    for piece in records.logs(record.run, record.id):
        typer.echo(piece, nl=False)


def _follow(run: str, job_id: str) -> None:
    from cluster.jobs import records, watching
    from data_pipeline.errors import FoldtrainError

    watch = watching.Watching(lambda text: say(f"{job_id}: {text}", err=True))
    for piece in records.logs(run, job_id, follow=True, is_over=watch.is_over):
        typer.echo(piece, nl=False)
    record = records.read_job(run, job_id)
    if record.status != "succeeded":
        raise FoldtrainError(f"{job_id} {record.status}: {watch.reason or record.message}\nfoldtrain describe {job_id}")


def stop(
    run: Named,
    job: Job = None,
    now: Annotated[bool, typer.Option("--now", help="At once, without a checkpoint.")] = False,
) -> None:
    """Stop a job with a checkpoint; what it committed stays, and the same stages again go on from there."""
    from cluster.jobs import stopping

    record = _named(run, job)
    ended = stopping.stop(record, now=now, tell=lambda text: say(f"{record.id}: {text}", err=True))
    say(f"{record.id} {ended}")


def shutdown() -> None:
    """End the local cluster that `submit` started, with the jobs that run on it. Their records stay in their runs."""
    from cluster.session import local_head

    say("the local cluster has ended" if local_head.shutdown() else "no local cluster is running")


def _named(run: str, job: str | None) -> JobRecord:
    """The job that is meant by an id, by a run and an id, or by a run alone: its newest."""
    from cluster.jobs import records

    return records.find_job(run, job)


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    panel = "Jobs"
    app.command("submit", rich_help_panel=panel)(submit)
    app.command("jobs", rich_help_panel=panel)(list_jobs)
    app.command("describe", rich_help_panel=panel)(describe)
    app.command("logs", rich_help_panel=panel)(logs)
    app.command("stop", rich_help_panel=panel)(stop)
    app.command("shutdown", rich_help_panel=panel)(shutdown)
