"""The project as a whole: its names, its pinned versions, and what its README promises."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = {
    canonicalize_name(name): version
    for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
}
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("package", ["model", "data_pipeline", "trainer", "cluster"])
def test_each_package_name_resolves_to_this_project(package: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", f"import {package}; print({package}.__file__)"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert Path(printed.strip()) == ROOT / package / "__init__.py"


@pytest.mark.parametrize("requirement", PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"])
def test_every_dependency_is_pinned_to_a_version_that_it_allows(requirement: str) -> None:
    wanted = Requirement(requirement)
    assert PINS[canonicalize_name(wanted.name)] in wanted.specifier


def test_the_pins_name_versions_and_no_places() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == len(PINS)
    assert not any(mark in line for line in lines for mark in ("://", " @ ", "-i ", "--"))


def readme_commands() -> list[str]:
    """Every foldtrain command in the README's code blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    return [line.split(" #")[0] for block in blocks for line in block.splitlines() if line.startswith("foldtrain ")]


@pytest.mark.parametrize("line", readme_commands())
def test_every_command_of_the_readme_exists_with_its_options(line: str) -> None:
    from cluster.cli import app

    _, *arguments = shlex.split(line)
    command, words = typer.main.get_command(app), []
    while arguments and hasattr(command, "commands"):
        words.append(arguments.pop(0))
        assert words[-1] in command.commands, f"{line}: there is no command {' '.join(words)}"
        command = command.commands[words[-1]]
    help_text = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert help_text.exit_code == 0, help_text.output
    for option in (argument for argument in arguments if argument.startswith("-")):
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", help_text.output), (
            f"{line}: {' '.join(words)} has no {option}"
        )


@pytest.mark.parametrize("path", sorted({*re.findall(r"configs/[\w./-]+\.yaml", README)}))
def test_every_config_that_the_readme_names_is_there(path: str) -> None:
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("target", sorted({*re.findall(r"\]\((?!https?:)([^)#]+)\)", README)}))
def test_every_file_that_the_readme_links_to_is_there(target: str) -> None:
    assert (ROOT / target).exists()


@pytest.mark.parametrize("target", ["setup", "quickstart", "test", "check", "format", "clean"])
def test_make_knows_its_targets(target: str) -> None:
    subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, check=True)


def test_the_ci_script_checks_and_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert script.read_text().splitlines()[-2:] == ["make check", "make test"]
