"""Look at a cluster before it is used: `doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cluster.commands.stages import Overrides

if TYPE_CHECKING:
    from cluster.config.run import RunConfig
    from cluster.preflight.examining import Examined


def doctor(
    config: Annotated[
        str | None,
        typer.Argument(metavar="[CONFIG]", help="A config: its storage and its needs are checked, too."),
    ] = None,
    overrides: Overrides = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target", metavar="NAME|FILE", help="Where: the nodes that this target gives. Default: cluster.address."
        ),
    ] = None,
    address: Annotated[str | None, typer.Option("--address", help="In place of the target's own.")] = None,
    as_json: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Also write the findings there: a path or a URI.")
    ] = None,
) -> None:
    """Check the nodes of a cluster, or this machine: versions, GPUs, clocks, disks, storage, network, speed."""
    from cluster.config.loading import load_config
    from cluster.preflight.findings import errors
    from cluster.preflight.report import summary, table
    from cluster.terminal.output import console
    from data_pipeline import storage

    resolved = load_config(config, overrides or []) if config else None
    examined = _on_target(target or "ray", address, resolved) if target or address else _here(resolved)
    out = console()
    out.print(table(examined.findings))
    out.print(f"doctor: {summary(examined.findings, len(examined.nodes), examined.seconds)}", markup=False)
    if config is None:
        out.print("doctor: storage was not checked: give a CONFIG for that", markup=False)
    if as_json:
        storage.write_json(storage.absolute(as_json), examined.to_json())
    if errors(examined.findings):
        raise typer.Exit(1)


def _here(config: RunConfig | None) -> Examined:
    from cluster.preflight.examining import examine
    from cluster.terminal.output import console

    err = console(stderr=True)
    with err.status("doctor: looks for nodes") as status:
        return examine(config, say=lambda check: status.update(f"doctor: {check}"))


def _on_target(name: str, address: str | None, config: RunConfig | None) -> Examined:
    from cluster.preflight.on_target import examine_on
    from cluster.targets.opening import load_target, open_target
    from cluster.terminal.output import say
    from data_pipeline.errors import UsageError

    if config is None:
        raise UsageError("--target needs a CONFIG: what its nodes find comes back through the folder of the run")
    label, section = load_target(name, address=address)
    return examine_on(open_target(label, section), section, config, lambda text: say(text, err=True))


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("doctor", rich_help_panel="Jobs")(doctor)
