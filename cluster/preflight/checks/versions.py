"""The same versions of everything on all nodes: Python, foldtrain's own code, and every package that is installed."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from cluster.preflight.checks.check import Check, listed, or_all_well, usual
from cluster.preflight.findings import Finding
from cluster.preflight.nodes import Nodes, ask_all
from cluster.preflight.wanted import Wanted

NAME = "versions"
PYTHON, CODE = "Python", "foldtrain's code"
_ABSENT = "not installed"
_SECONDS = 20.0
_PACKAGES = ("model", "data_pipeline", "trainer", "cluster", "configs")
_DECISIVE = {PYTHON, CODE, "foldtrain", "torch", "deepspeed", "ray", "numpy", "safetensors", "triton"}
"""Those whose difference changes what is computed or sent, or stops the workers from talking to each other."""
_DEVICE = ("nvidia-", "nccl", "cuda-")
"""How the names of the packages begin that hold CUDA, cuDNN and NCCL."""


def look() -> dict[str, str]:
    """The version of everything here."""
    found = {PYTHON: platform.python_version(), CODE: code_digest(Path(__file__).resolve().parents[3])}
    for package in metadata.distributions():
        found.setdefault(str(package.metadata["Name"]).lower(), package.version)  # the first one is imported
    return found


def code_digest(root: Path) -> str:
    """What foldtrain's packages are, in a few characters: the sha256 of all that they are made of."""
    whole = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((root / package).rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                whole.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return whole.hexdigest()[:12]


def _measure(nodes: Nodes, _: Wanted) -> Mapping[str, Mapping[str, str]]:
    return ask_all(nodes, look, seconds=_SECONDS)


def judge(facts: Mapping[str, Mapping[str, str]], _: Wanted) -> list[Finding]:
    """Nodes that have other versions than most of them."""
    names = sorted({name for versions in facts.values() for name in versions})
    most = {name: usual([versions.get(name, _ABSENT) for versions in facts.values()]) for name in names}
    findings = []
    for node, versions in facts.items():
        other = [name for name in names if versions.get(name, _ABSENT) != most[name]]
        decisive = [name for name in other if _is_decisive(name)]
        if decisive:
            findings.append(Finding(node, NAME, "error", _told(decisive, versions, most), _remedy(decisive, most)))
        if rest := [name for name in other if name not in decisive]:
            findings.append(Finding(node, NAME, "warning", _told(rest, versions, most), _remedy(rest, most)))
    some = next(iter(facts.values()), {})
    same = ", ".join(f"{name} {some[name]}" for name in (PYTHON, "torch", "deepspeed", "ray", CODE) if name in some)
    return or_all_well(findings, NAME, f"the same on {len(facts)}: {same}, and {len(names)} in all")


def _is_decisive(name: str) -> bool:
    return name in _DECISIVE or name.startswith(_DEVICE)


def _told(names: list[str], versions: Mapping[str, str], most: Mapping[str, str]) -> str:
    return listed([f"{name} is {versions.get(name, _ABSENT)}, elsewhere {most[name]}" for name in names])


def _remedy(names: list[str], most: Mapping[str, str]) -> str:
    if CODE in names or "foldtrain" in names:
        return "install the same foldtrain on all nodes (the same commit, or one image), and start their Ray again"
    if PYTHON in names:
        return f"make its environment anew with Python {most[PYTHON]}, or use one image for all nodes"
    wrong = [name for name in names if most[name] == _ABSENT]
    pins = " ".join(f"'{name}=={most[name]}'" for name in names[:4] if most[name] != _ABSENT)
    install = f"pip install {pins}" if pins else ""
    remove = f"pip uninstall {' '.join(wrong[:4])}" if wrong else ""
    return f"there: {' ; '.join(filter(None, (install, remove)))}; then start its Ray again. Or use one image for all"


CHECK = Check(NAME, _measure, judge, remedy="install the same foldtrain on all nodes, and start their Ray again")
