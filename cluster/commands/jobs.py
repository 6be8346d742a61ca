"""Jobs: submit a stage to this machine or to a cluster, list, follow and stop."""

from __future__ import annotations

import functools
from typing import Annotated

import typer

from cluster.commands.stages import Config, Overrides
from cluster.terminal.output import say
from trainer.registry import QUICKSTART, STAGES

Address = Annotated[str | None, typer.Option(help="URL of a Ray cluster's dashboard, http://HOST:8265.")]
TargetName = Annotated[str | None, typer.Option("--target", help="local (default) or ray (needs --address).")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="A job, as `foldtrain jobs` lists it.")]

_STOP_SECONDS = 60


def submit(
    config: Config,
    overrides: Overrides = None,
    *,
    stage: Annotated[str, typer.Option("--stage", help="What to run: a stage, or quickstart for all of them.")],
    target: TargetName = None,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show its logs until it ends.")] = False,
) -> None:
    """Run a stage as a job, and return at once."""
    from cluster.config.loading import load_config
    from cluster.jobs import submitting as jobs
    from cluster.targets.local_old import open_target

    resolved = load_config(config, overrides or [])
    place = open_target(target, address)
    job_id = jobs.submit(place, stage, resolved, [QUICKSTART, *(each.command for each in STAGES)])
    where = f" --address {address}" if address else ""
    say(f"submitted {job_id}; follow it with: foldtrain logs -f {job_id}{where}")
    if follow:
        _show_logs(job_id, target, address, follow=True)


def list_jobs(target: TargetName = None, address: Address = None) -> None:
    """List the jobs of a target."""
    from cluster.jobs import submitting as jobs
    from cluster.targets.local_old import open_target
    from cluster.terminal.output import console

    found = open_target(target, address).jobs()
    console().print(jobs.table(found) if found else "no jobs")


def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until it ends; exit code 1 if it fails.")] = False,
    target: TargetName = None,
    address: Address = None,
) -> None:
    """Show what a job printed."""
    _show_logs(job_id, target, address, follow=follow)


def _show_logs(job_id: str, target: str | None, address: str | None, *, follow: bool) -> None:
    from cluster.jobs import submitting as jobs
    from cluster.targets.local_old import open_target
    from data_pipeline.errors import FoldtrainError

    place = open_target(target, address)
    place.logs(job_id, functools.partial(typer.echo, nl=False), follow=follow)
    if not follow:
        return
    job = jobs.wait_until_ended(place, job_id, _STOP_SECONDS)
    if job.status != "succeeded":
        raise FoldtrainError(f"{job_id} {job.status}: {job.message}")


def stop(job_id: JobId, target: TargetName = None, address: Address = None) -> None:
    """Stop a job; what it committed stays, and the same stage again goes on from there."""
    from cluster.jobs import submitting as jobs
    from cluster.targets.local_old import open_target

    place = open_target(target, address)
    place.stop(job_id)
    job = jobs.wait_until_ended(place, job_id, _STOP_SECONDS)
    say(f"{job_id} {job.status}")


def shutdown() -> None:
    """End the local cluster that `submit` started, with the jobs and logs that it holds."""
    from cluster.session import local_head

    say("the local cluster has ended" if local_head.shutdown() else "no local cluster is running")


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    panel = "Jobs"
    app.command("submit", rich_help_panel=panel)(submit)
    app.command("jobs", rich_help_panel=panel)(list_jobs)
    app.command("logs", rich_help_panel=panel)(logs)
    app.command("stop", rich_help_panel=panel)(stop)
    app.command("shutdown", rich_help_panel=panel)(shutdown)
