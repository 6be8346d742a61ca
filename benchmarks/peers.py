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


def run(script: str, *arguments: str) -> dict[str, Any]:
    """What a script of this folder prints, as JSON, when it runs beside the peers."""
    command = [str(_python()), str(HERE / script), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _python() -> Path:
    """The interpreter of .venv-peers, made at first use. It sees this environment's packages behind its own."""
    python, stamp = ENVIRONMENT / "bin" / "python", ENVIRONMENT / ".installed"
    if not stamp.exists():
        print(f"Installing {HERE.name}/peers.txt into {ENVIRONMENT.name}: 850 MB, once.", file=sys.stderr)
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
        (packages,) = ENVIRONMENT.glob("lib/python*/site-packages")
        (packages / "zz_foldtrain.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        pip = [str(python), "-m", "pip", "install", "--quiet", "--no-input", "-r", str(HERE / "peers.txt")]
        subprocess.run(pip, check=True)
        stamp.touch()
    return python
