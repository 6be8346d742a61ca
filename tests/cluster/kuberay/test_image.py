"""The rules that the image keeps to; no container can be built where these run."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]
_SECRET = re.compile(r"password|secret|token|credential|api_?key", re.IGNORECASE)


def instructions() -> list[tuple[str, str]]:
    """Those of the Dockerfile, continued lines joined, comments left out."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [
        (word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)
    ]


def given(name: str) -> list[str]:
    """The arguments of all instructions of a name, in their order."""
    return [rest for word, rest in instructions() if word == name]


def test_it_is_made_of_instructions_that_docker_knows() -> None:
    assert {word for word, _ in instructions()} == {"FROM", "RUN", "ENV", "WORKDIR", "COPY", "USER"}


def test_its_base_is_one_release_of_a_python_that_foldtrain_supports() -> None:
    (base,) = given("FROM")
    name, tag = base.split(":")
    assert name == "python"
    version = re.fullmatch(r"(3\.\d+)\.\d+-slim-bookworm", tag)
    assert version
    supported = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert supported == ">=3.11,<3.14"
    assert version[1] in {"3.11", "3.12", "3.13"}


def test_it_ends_as_a_user_whom_kubernetes_can_tell_from_root() -> None:
    """`runAsNonRoot` refuses a name: the kubelet cannot see whose it is."""
    assert given("USER") == ["1000:1000"]
    assert instructions()[-1][0] == "USER"


def test_it_has_no_entry_point_since_kuberay_gives_commands() -> None:
    assert not given("ENTRYPOINT") + given("CMD")


def test_it_holds_no_secret_and_takes_none() -> None:
    assert not given("ARG") + given("ADD")
    assert not [rest for _, rest in instructions() if _SECRET.search(rest)]


def test_everything_is_installed_into_one_environment_with_the_tested_versions() -> None:
    (install,) = [run for run in given("RUN") if "pip install" in run]
    assert "--constraint constraints.txt" in install
    assert "PIP_CONSTRAINT=constraints.txt" in install  # of the environments in which packages are built
    (made,) = [run for run in given("RUN") if "-m venv" in run]
    folder = re.search(r"-m venv (\S+)", made)
    assert folder
    assert f"PATH={folder[1]}/bin:$PATH" in " ".join(given("ENV"))


def test_each_run_is_a_shell_line_that_ends_at_the_first_failure() -> None:
    for run in given("RUN"):
        assert ";" not in run
        assert "|" not in run
        subprocess.run(["sh", "-n", "-c", run], check=True)
        if "apt-get install" in run:
            assert "--no-install-recommends" in run
            assert "rm --recursive --force /var/lib/apt/lists/*" in run
            assert shlex.split(run)[:2] == ["apt-get", "update"]


def test_it_copies_every_package_that_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = [pattern.rstrip("*") for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]]
    modules = [f"{name}.py" for name in project["tool"]["setuptools"]["py-modules"]]
    copied = {source for copy in given("COPY") for source in shlex.split(copy)[:-1]}
    needed = {*packages, *modules, "pyproject.toml", "constraints.txt", project["project"]["readme"]}
    assert copied == needed | set(project["project"]["license-files"])


def test_what_is_not_copied_does_not_even_reach_the_builder() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    copied = {source for copy in given("COPY") for source in shlex.split(copy)[:-1]}
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied
    for path in (".git/config", ".venv/bin/python", ".env", "runs/a/config.yaml", "docs/security.md"):
        assert not any(fnmatch.fnmatch(path, f"{name}*") for name in copied)


def test_its_tag_in_the_docs_is_the_version_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for file in ("Dockerfile", "configs/cluster/kuberay.yaml"):
        assert f"foldtrain:{version}" in (ROOT / file).read_text(), json.dumps(file)
