"""Runs that are under way or done: watch one, change its size, check what it wrote."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

Run = Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run, at any URI.")]


def monitor(
    run: Run,
    once: Annotated[bool, typer.Option("--once", help="Print it once and end.")] = False,
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between looks.")] = 2.0,
) -> None:
    """Show how the stages of a run stand, live, from its own files."""
    from cluster import monitor_view

    monitor_view.show(run, once=once, interval=interval)


def scale(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run at any URI, its config, or its tokens.")],
    workers: Annotated[str, typer.Option("--workers", metavar="N", help="Most workers that tokenize.")],
    tokens: Annotated[str | None, typer.Option("--tokens", help="Folder of token shards, if not in the run.")] = None,
) -> None:
    """Change the size of a running tokenize pool; it takes effect with its next shard."""
    from cluster import scale

    number = scale.parse_workers(workers)
    folder = tokens or scale.tokens_folder(run)
    scale.require_running(folder)
    scale.write_scale(folder, number)
    typer.echo(f"{folder}: {number} workers from the next shard on")


def verify(
    uri: Annotated[str, typer.Argument(metavar="FOLDER", help="Folder of image shards or token shards, at any URI.")],
) -> None:
    """Check every byte of image shards or token shards against their manifest."""
    from data_pipeline import preflight, storage
    from data_pipeline.errors import UsageError
    from data_pipeline.manifest import ImageManifest, TokenManifest

    checks: dict[str, Callable[..., ImageManifest | TokenManifest]] = {
        "images": preflight.check_images,
        "tokens": preflight.check_tokens,
    }
    try:
        kind = storage.read_json(storage.join(uri, "manifest.json")).get("kind")
    except (FileNotFoundError, AttributeError):
        kind = None
    if kind not in checks:
        raise UsageError(f"{uri} holds no complete data set: manifest.json is not there, or is not one of foldtrain's")
    manifest = checks[kind](uri, every_byte=True)
    typer.echo(f"{uri}: {manifest.samples:,} samples of {kind} in {len(manifest.shards)} shards match their manifest")


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("monitor", rich_help_panel="Runs")(monitor)
    app.command("scale", rich_help_panel="Runs")(scale)
    app.command("verify", rich_help_panel="Runs")(verify)
