"""Modules in the folder of a user are neither imported nor in the way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from foldtrain import foreign_modules, refusal

HOME = Path(__file__).resolve().parents[1]
FOLDTRAIN = [str(Path(sys.executable).parent / "foldtrain")]
MODULE = [sys.executable, "-m", "foldtrain"]
NAMES = ("cluster", "model", "trainer", "data_pipeline", "configs", "utils", "yaml", "typer", "torch", "ray")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The folder of somebody's own training code; each module leaves a trace where it is imported."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text("import pathlib; pathlib.Path(__file__).with_suffix('.imported').touch()")
    return tmp_path


def run(command: list[str], folder: Path, path: str | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONPATH": path} if path is not None else {}
    done = [*command, *(arguments or ("config", str(HOME / "configs" / "quickstart.yaml")))]
    return subprocess.run(done, cwd=folder, env=environment, capture_output=True, text=True, check=False)


PATHS = [None, "", os.pathsep]
DOTTED = [".", "relative{0}."]
"""With these `python -m` imports runpy, and what it needs, from the working directory before anything of ours."""
CASES = [(FOLDTRAIN, path) for path in PATHS + DOTTED] + [(MODULE, path) for path in PATHS]
FIRST, *OTHERS = CASES


@pytest.mark.parametrize(
    ("command", "path"),
    [FIRST, *(pytest.param(*each, marks=pytest.mark.slow) for each in OTHERS)],
    ids=lambda each: repr(each[-1] if isinstance(each, list) else each),
)
def test_what_lies_in_the_working_directory_is_not_imported(
    command: list[str], path: str | None, project: Path
) -> None:
    done = run(command, project, path and path.format(os.pathsep))
    assert (done.returncode, done.stderr) == (0, "")
    assert list(project.glob("*.imported")) == []


@pytest.mark.parametrize("kind", ["module", "package", "plain folder"])
@pytest.mark.parametrize("name", ["cluster", "model", "trainer", "configs"])
def test_a_module_of_ours_on_the_python_path_is_refused_by_name(name: str, kind: str, tmp_path: Path) -> None:
    other, here = tmp_path / "other", tmp_path / "here"
    here.mkdir()
    (other / name).mkdir(parents=True)
    lies = other / name
    if kind == "module":
        lies.rmdir()
        lies = other / f"{name}.py"
        lies.touch()
    elif kind == "package":
        lies = lies / "__init__.py"
        lies.touch()
    done = run(FOLDTRAIN, here, str(other))
    if kind == "plain folder" and done.returncode == 0:
        return  # an installed package goes before a folder without __init__.py
    assert done.returncode == 2
    assert f"{name}: {lies}" in done.stderr
    assert f"PYTHONPATH is {other}" in done.stderr
    assert "Traceback" not in done.stderr


def test_ours_are_ours() -> None:
    assert foreign_modules() == {}
    assert refusal() is None


def test_what_child_processes_import_is_not_in_the_working_directory_either(project: Path) -> None:
    code = (
        "import os; from foldtrain import leave_out_working_directory as leave; leave();print(os.environ['PYTHONPATH'])"
    )
    kept = f"{HOME}{os.pathsep}relative"
    given = f"{os.pathsep}{kept}{os.pathsep}.{os.pathsep}{project}{os.pathsep}"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=project, env={**os.environ, "PYTHONPATH": given}, capture_output=True
    )
    assert done.stdout.decode().strip() == kept


def test_a_working_directory_that_was_removed_is_no_error(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    code = "import os, sys; os.rmdir(os.getcwd()); os.execv(sys.argv[1], sys.argv[1:])"
    done = subprocess.run([sys.executable, "-P", "-c", code, *FOLDTRAIN, "--version"], cwd=folder, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
