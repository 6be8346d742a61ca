"""foldtrain: the command, and what Python code imports (docs/python-api.md).

The command finds its own packages, whatever lies in the folder of its user, and runs `cluster.cli`.

Its users stand in the folders of other training code, with a `model.py`, a `utils.py` or a `cluster/` of its own.
Python puts the working directory first on its path for `python -m`, and for empty entries of PYTHONPATH. So the command
begins in this module, whose name no other code has, and looks before it imports anything.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_pipeline.errors import FoldtrainError, UsageError
    from trainer.inference import Generator, Tokenizer, load_generator, load_tokenizer

__all__ = ["FoldtrainError", "Generator", "Tokenizer", "UsageError", "load_generator", "load_tokenizer"]

OURS = ("model", "data_pipeline", "trainer", "cluster", "configs")
_HOME = Path(__file__).resolve().parent
_ERRORS = {"FoldtrainError", "UsageError"}


def __getattr__(name: str) -> Any:
    """What code imports is found when it is asked for: importing foldtrain alone loads nothing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    reason = refusal()
    if reason is not None:
        raise ImportError(f"{reason}. A script's own folder and the working directory are on that path, too")
    return getattr(import_module("data_pipeline.errors" if name in _ERRORS else "trainer.inference"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def leave_out_working_directory() -> None:
    """Take the working directory off the module path, of child processes too, unless foldtrain itself lies there."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it was removed, so nothing lies there
        return
    if here == _HOME:
        return
    sys.path[:] = [entry for entry in sys.path if not _is(entry, here)]
    if "PYTHONPATH" in os.environ:
        entries = os.environ["PYTHONPATH"].split(os.pathsep)
        os.environ["PYTHONPATH"] = os.pathsep.join(entry for entry in entries if not _is(entry, here))


def _is(entry: str, here: Path) -> bool:
    return not entry or Path(entry).absolute() == here or Path(entry).resolve() == here


def foreign_modules() -> dict[str, str]:
    """Modules that have a name of ours and come from somewhere else, and where they lie."""
    found = {}
    for name in OURS:
        spec = find_spec(name)
        if spec is None:
            continue
        lies = Path(spec.origin) if spec.origin else Path(next(iter(spec.submodule_search_locations or [""])))
        root = lies.parent.parent if lies.name == "__init__.py" else lies.parent
        if root.resolve() != _HOME:
            found[name] = str(lies)
    return found


def refusal() -> str | None:
    """Why this process cannot work, in words; None if all of our modules are ours."""
    found = foreign_modules()
    if not found:
        return None
    named = "\n  ".join(f"{name}: {lies}" for name, lies in found.items())
    given = f" (PYTHONPATH is {os.environ['PYTHONPATH']})" if os.environ.get("PYTHONPATH") else ""
    return (
        f"modules of other code stand before those of foldtrain on Python's path{given}:\n  {named}\n"
        f"Take their folder off PYTHONPATH; foldtrain's own are in {_HOME}"
    )


def main() -> None:
    """Run the command line, unless modules of other code stand before its own."""
    leave_out_working_directory()
    reason = refusal()
    if reason is not None:
        sys.stderr.write(f"error: {reason}\n")
        sys.exit(2)
    from cluster.cli import main as run

    run()


if __name__ == "__main__":
    main()
