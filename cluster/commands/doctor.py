"""Look at a cluster before it is used: `doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cluster.commands.stages import Overrides

if TYPE_CHECKING:
    from cluster.config.run import RunConfig
    from cluster.preflight.findings import Finding


def doctor(
    config: Annotated[
        str | None,
        typer.Argument(metavar="[CONFIG]", help="A config: its storage and its needs are checked, too."),
    ] = None,
    overrides: Overrides = None,
    as_json: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Also write the findings there: a path or a URI.")
    ] = None,
) -> None:
    """Check the nodes of a cluster, or this machine: versions, GPUs, clocks, disks, storage, network, speed."""
    import time

    from cluster.config.loading import load_config
    from cluster.preflight.findings import errors
    from cluster.preflight.report import record, summary, table
    from cluster.terminal.output import console
    from data_pipeline import storage

    began = time.monotonic()
    findings, nodes = _examine(load_config(config, overrides or []) if config else None)
    seconds = time.monotonic() - began
    out = console()
    out.print(table(findings))
    out.print(f"doctor: {summary(findings, len(nodes), seconds)}", markup=False)
    if config is None:
        out.print("doctor: storage was not checked: give a CONFIG for that", markup=False)
    if as_json:
        storage.write_json(storage.absolute(as_json), record(findings, nodes, seconds))
    if errors(findings):
        raise typer.Exit(1)


def _examine(config: RunConfig | None) -> tuple[list[Finding], list[str]]:
    """What is found on the cluster that the config, or RAY_ADDRESS, names; on this machine without any."""
    from cluster.config.run import ClusterConfig
    from cluster.preflight.nodes import ThisMachine
    from cluster.preflight.ray_probes import probes
    from cluster.preflight.running import run_checks
    from cluster.preflight.wanted import Wanted, wanted_by
    from cluster.session.ray_address import asked_address
    from cluster.session.ray_session import ray_session

    wanted = wanted_by(config) if config else Wanted()
    cluster = config.cluster if config else ClusterConfig()
    if asked_address(cluster.address) is None:
        here = ThisMachine()
        return run_checks(here, wanted), list(here.addresses)
    with ray_session(cluster), probes() as found:
        return run_checks(found, wanted, unanswered=found.unanswered), list(found.ids)


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("doctor", rich_help_panel="Jobs")(doctor)
