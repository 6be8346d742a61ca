"""The stages of a run, one command each, and the quickstart that runs them all."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated

import typer

from cluster.commands.sample import sample
from trainer.registry import QUICKSTART, STAGES

Config = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML config: a path, a URI, or package:NAME.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, for instance generator.trainer.global_batch=64"),
]


def run(stage: str, config: str, overrides: list[str] | None) -> None:
    """Load a config and run one stage of it, here or on the Ray cluster that the config names.

    A termination notice during training ends it with a checkpoint, and is no failure.

    Raises:
        FoldtrainError: whatever the user can mend.
    """
    from cluster.config.loading import load_config

    resolved = load_config(config, overrides or [])
    from cluster.stages.pipeline import (  # after the config is known to be right: it may import torch
        StageStopped,
        run_stage,
    )

    try:
        run_stage(stage, resolved, seconds_since_enter())
    except StageStopped as stopped:
        from cluster.terminal.output import console

        console().print(str(stopped))


def seconds_since_enter() -> float:
    """How long this process has run: starting Python and reading the config are a part of the stage."""
    import time

    import psutil

    return max(0.0, time.time() - float(psutil.Process().create_time()))


def _command(stage: str) -> Callable[..., None]:
    def command(config: Config, overrides: Overrides = None) -> None:
        run(stage, config, overrides)

    return command


def tokenize(
    config: Config,
    overrides: Overrides = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Also with a tokenizer that is not as good as tokens.require asks.")
    ] = False,
) -> None:
    """Image shards and tokenizer → token shards, to disk or s3://."""
    run("tokenize", config, [*(overrides or []), *(["tokens.require=null"] if anyway else [])])


def quickstart(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[CONFIG] [KEY=VALUE]...", help="Default: the packaged quickstart.")
    ] = None,
) -> None:
    """Everything, small, on this machine, in minutes: from raw images to samples and a report."""
    given = list(arguments or [])
    from cluster.config.files import packaged

    with_config = bool(given) and ("=" not in given[0] or os.path.isfile(given[0]))  # noqa: PTH113 - a Path raises where a name is too long
    run(QUICKSTART, given.pop(0) if with_config else packaged("quickstart.yaml"), given)


_OWN: dict[str, Callable[..., None]] = {"tokenize": tokenize, "sample": sample}
"""Commands of stages that have options of their own."""


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command(QUICKSTART, rich_help_panel="Stages")(quickstart)
    for stage in STAGES:
        if stage.command == "evaluate":
            continue  # has commands of its own (evaluate.py)
        command = _OWN.get(stage.command) or _command(stage.command)
        text = command.__doc__ if stage.command in _OWN else stage.help
        app.command(stage.command, help=text, rich_help_panel="Stages")(command)
