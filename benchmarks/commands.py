"""Commands of foldtrain that benchmarks run."""

from __future__ import annotations

import subprocess
import sys


def foldtrain(*arguments: str) -> None:
    """One command, to its end.

    Raises:
        subprocess.CalledProcessError: if it fails.
    """
    subprocess.run([sys.executable, "-m", "foldtrain", *arguments], check=True)
