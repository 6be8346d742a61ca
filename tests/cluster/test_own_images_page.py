"""docs/own-images.md: its commands are commands, and their configs load and say what the page says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from cluster.cli import app
from cluster.config.loading import load_config
from cluster.config.run import RunConfig

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "own-images.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.replace("\\\n", "").splitlines()
]
CONFIGURED = [line for line in COMMANDS if " package:" in line]


def config_of(line: str) -> RunConfig:
    _, _, config, *overrides = shlex.split(line)
    return load_config(config, overrides)


@pytest.mark.parametrize("line", COMMANDS)
def test_each_command_is_one(line: str) -> None:
    program, *words = shlex.split(line)
    assert program == "foldtrain"
    command = typer.main.get_command(app)
    context = command.make_context("foldtrain", list(words))
    name, found, rest = context.command.resolve_command(context, [*context._protected_args, *context.args])
    assert found is not None, name
    found.make_context(name, rest, parent=context)


@pytest.mark.parametrize("line", CONFIGURED)
def test_the_config_of_each_command_loads(line: str) -> None:
    assert config_of(line).run.startswith("runs/")


def test_the_page_has_its_ways_of_few_images() -> None:
    configs = [config_of(line) for line in CONFIGURED]
    generators = [config.generator for config in configs if config.generator]
    assert any(each.validation and each.validation.pictures for each in generators)
    assert any(each.init_from and each.init_except == ("class_embed",) for each in generators)
    assert any(each.model.num_classes == 0 for each in generators)
    assert any(len(config.tokens.views) == 10 for config in configs)


@pytest.mark.parametrize("setting", re.findall(r"`'?([a-z_.]+=[^`']+)'?`", PAGE))
def test_each_setting_of_the_text_is_one(setting: str) -> None:
    looks = "generator.validation={every: 200, samples: 50}"
    steps = "generator.trainer.checkpoint_every=200"
    assert load_config("package:photos.yaml", ["data.source.path=photos", looks, steps, setting])
