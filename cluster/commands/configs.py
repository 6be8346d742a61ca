"""Look at a config before it is run: `config` and `schema`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.commands.stages import Config, Overrides


def config(config: Config, overrides: Overrides = None) -> None:
    """Print the resolved config: what `extends`, defaults and overrides come to."""
    from cluster.config.loading import load_config, resolved_yaml

    typer.echo(resolved_yaml(load_config(config, overrides or [])), nl=False)


def json_schema() -> dict[str, Any]:
    """JSON schema of a config file, for editors.

    No key is required in it, as a file may extend another; loading checks that the whole is complete.
    """
    from cluster.config.run import RunConfig

    schema = _without_required(RunConfig.model_json_schema())
    files = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    text = "Configs that this one builds on: relative to this file, or package:NAME for one that comes with foldtrain."
    extends = {**files, "description": text}
    schema["properties"] = {"extends": extends, **schema["properties"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "foldtrain config"}


def _without_required(schema: Any) -> Any:
    """The schema with no key required; a section's own `required` is left alone if it is a key of the config."""
    if isinstance(schema, list):
        return [_without_required(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    is_section = isinstance(schema.get("properties"), dict)
    return {key: _without_required(value) for key, value in schema.items() if not (is_section and key == "required")}


def schema(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it to this file.")] = None,
) -> None:
    """Print the JSON schema of configs, for completion and checks in an editor."""
    text = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    if output is None:
        typer.echo(text, nl=False)
    else:
        from data_pipeline.storage.local_disk import disk_errors

        with disk_errors(output):
            output.write_text(text, encoding="utf-8")


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("config", rich_help_panel="Config")(config)
    app.command("schema", rich_help_panel="Config")(schema)
