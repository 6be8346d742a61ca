"""The project as a whole: its names, its pinned versions, and what its README promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.typed_commands import parsed

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


EXTRAS = PROJECT["optional-dependencies"]
NAMED = [one for many in (PROJECT["dependencies"], *EXTRAS.values()) for one in many]
OTHERS = [one for one in NAMED if not one.startswith("foldtrain[")]


@pytest.mark.parametrize("requirement", OTHERS)
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
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.split(" #")[0] for line in lines if line.startswith("foldtrain ")]


@pytest.mark.parametrize("line", readme_commands())
def test_every_command_of_the_readme_exists_with_its_options(line: str) -> None:
    assert parsed(line) is not None


@pytest.mark.parametrize("path", sorted({*re.findall(r"configs/[\w./-]+\.yaml", README)}))
def test_every_config_that_the_readme_names_is_there(path: str) -> None:
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("target", sorted({*re.findall(r"\]\((?!https?:)([^)#]+)\)", README)}))
def test_every_file_that_the_readme_links_to_is_there(target: str) -> None:
    assert (ROOT / target).exists()


@pytest.mark.parametrize("target", ["setup", "quickstart", "test", "test-fast", "check", "format", "clean"])
def test_make_knows_its_targets(target: str) -> None:
    subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, check=True)


def test_make_has_python_keep_what_it_compiled() -> None:
    # This test is often run by a make: one that is called by another says which folder it enters, unless told not to.
    shown = ["make", "--no-print-directory", "--eval", "shown:;@echo kept$$PYTHONDONTWRITEBYTECODE", "shown"]
    asked = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    found = subprocess.run(shown, cwd=ROOT, env=asked, capture_output=True, text=True, check=True)
    assert found.stdout == "kept\n"


def test_the_ci_script_checks_and_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert script.read_text().splitlines()[-2:] == ["make check", "make test"]


def interpreter(folder: Path, version: str, *, has_venv: bool = True) -> str:
    """A stand-in for a Python of some version: it says which, and creates a virtual environment, or cannot."""
    path = folder / f"python{version}"
    venv = 'mkdir -p "$4/bin" && touch "$4/bin/pip"' if has_venv else "exit 1"
    path.write_text(
        f'#!/bin/sh\ncase "$1" in -c) echo {version};; --version) echo Python {version};; *) {venv};; esac\n'
    )
    path.chmod(0o755)
    return str(path)


def make_venv(folder: Path, *interpreters: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "-f", str(ROOT / "Makefile"), f"PYTHON={' '.join(interpreters)}", ".venv/bin/pip"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_make_takes_a_python_of_each_supported_version(version: str, tmp_path: Path) -> None:
    too_old = interpreter(tmp_path, "3.10")
    made = make_venv(tmp_path, "no-such-python", too_old, interpreter(tmp_path, version))
    assert made.returncode == 0, made.stderr
    assert f"Python {version}" in made.stdout


def test_make_goes_on_to_the_next_python_where_one_lacks_its_venv_module(tmp_path: Path) -> None:
    made = make_venv(tmp_path, interpreter(tmp_path, "3.12", has_venv=False), interpreter(tmp_path, "3.13"))
    assert made.returncode == 0, made.stderr
    assert "python3.12-venv" in made.stderr
    assert "Python 3.13" in made.stdout


def test_make_names_what_it_needs_where_no_python_fits(tmp_path: Path) -> None:
    made = make_venv(tmp_path, interpreter(tmp_path, "3.10"), interpreter(tmp_path, "3.14"))
    assert made.returncode != 0
    assert "needs Python 3.11, 3.12 or 3.13" in made.stderr
    assert not (tmp_path / ".venv").exists()


def test_make_and_the_package_support_the_same_versions_of_python() -> None:
    versions = re.search(r"^VERSIONS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert versions
    from packaging.specifiers import SpecifierSet

    minors = [f"3.{minor}" for minor in range(9, 20)]
    assert versions[1].split() == list(SpecifierSet(PROJECT["requires-python"]).filter(minors))
