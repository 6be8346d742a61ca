"""Commands of pages, as they are typed: read by the command line itself, and not run."""

from __future__ import annotations

import shlex
from typing import Any

import typer


def parsed(line: str) -> dict[str, Any]:
    """The values of a command's parameters.

    Raises:
        click.UsageError: if there is no such command, or it has no such option or value.
    """
    from cluster.cli import app

    command: Any = typer.main.get_command(app)
    name, *words = shlex.split(line)
    context = command.make_context(name, words)
    while hasattr(command, "commands"):
        rest = [*context._protected_args, *context.args]  # what a group leaves to its commands
        name, command, words = command.resolve_command(context, rest)
        context = command.make_context(name, list(words), parent=context)
    return dict(context.params)
