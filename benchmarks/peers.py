"""The environment of the libraries that benchmarks compare foldtrain with, and calls into it."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ENVIRONMENT = HERE.parent / ".venv-peers"
_PYTHON, _STAMP = ENVIRONMENT / "bin" / "python", ENVIRONMENT / ".installed"

_PATIENCE = 600
"""Seconds that a peer may take to write its data set, or to read it in all rounds."""


class PeerError(Exception):
    """A peer could not be run here; the message says why."""


def prepare(*, install: bool) -> None:
    """Make .venv-peers, unless it is there. Where that fails, peers that are installed beside foldtrain run there."""
    if install and not _STAMP.exists() and _install():
        _STAMP.touch()


def run(script: str, name: str, *arguments: str) -> dict[str, Any]:
    """What a script of this folder prints about the peer `name`, as JSON.

    Raises:
        PeerError: if the peer is not installed, or the script fails.
    """
    python = str(_PYTHON if _STAMP.exists() else sys.executable)
    search = f"import sys, importlib.util; sys.exit(importlib.util.find_spec({name!r}) is None)"
    if subprocess.run([python, "-c", search], capture_output=True, check=False).returncode:
        raise PeerError(f"{name} is not installed")
    command = [python, str(HERE / script), name, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        raise PeerError(f"{name} took more than {_PATIENCE} s") from None
    if done.returncode:
        raise PeerError(f"{name} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _install() -> bool:
    print(f"Installing {HERE.name}/peers.txt into {ENVIRONMENT.name}: 850 MB, once.", file=sys.stderr)
    venv.create(ENVIRONMENT, with_pip=True, clear=True)
    (packages,) = ENVIRONMENT.glob("lib/python*/site-packages")
    (packages / "zz_foldtrain.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    pip = [str(_PYTHON), "-m", "pip", "install", "--quiet", "--no-input", "--retries", "1"]
    return subprocess.run([*pip, "-r", str(HERE / "peers.txt")], check=False).returncode == 0
