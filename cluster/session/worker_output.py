"""What the command shows of what its workers print: their own words and errors, nothing of Ray's core.

Ray forwards every line that a process of the cluster prints. Left out are the log lines of Ray's core (C++), and what
it prints when a worker without work is ended with its cluster.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_CORE = re.compile(
    r"\s*(\x1b\[[0-9;]*m)*\s*("  # indented, where a raylet that was killed is quoted
    r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ [A-Z] \d+ \d+\]"  # [2026-11-25 14:19:24,452 E 23670 23920] rpc_client.h:204:
    r"|[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ "  # E1125 14:19:24.452000 23670 chttp2_transport.cc:
    r"|WARNING: All log messages before absl::InitializeLog"
    r")"
)
_ABORTED = re.compile(
    r"\*\*\* (SIG[A-Z]+ received|StackTrace Information)"
    r"|PC: @|\s+@\s+0x"
    r"|Fatal Python error: Aborted|Extension modules: "
    r"|(Current t|T)hread 0x[0-9a-f]+ "
    r'|  File ".*", line \d+ in '  # as faulthandler writes it; a traceback has a comma
)


def shown_lines(batch: Mapping[str, Any]) -> list[str]:
    """The lines that are shown, of a batch as Ray forwards it: `lines`, `is_err`, `actor_name` and more."""
    is_idle = not batch.get("actor_name") and not batch.get("task_name")
    is_rays = batch.get("pid") == "raylet"  # of whose quotations empty lines are left
    return [
        line
        for line in batch.get("lines", ())
        if not _CORE.match(line) and not (is_idle and _ABORTED.match(line)) and (line.strip() or not is_rays)
    ]


def keep_own_warnings() -> None:
    """Warnings of ours are shown: Ray sets the root logger of each of its processes to errors, for its own warnings."""
    for package in ("model", "data_pipeline", "trainer", "cluster"):
        logging.getLogger(package).setLevel(logging.WARNING)


@contextmanager
def workers_own_words() -> Iterator[None]:
    """What Ray prints for others is filtered as long as it is entered; Ray connects and disconnects in it.

    Its prefixes have colors on a terminal alone: not in the log of a job, or of a batch system.
    """
    from ray._private import worker

    if not sys.stdout.isatty():
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    rays: Any = worker  # Ray has no setting for it
    before = rays.print_to_stdstream
    rays.print_to_stdstream = _filtered(before)
    try:
        yield
    finally:
        rays.print_to_stdstream = before


def _filtered(printing: Callable[..., None]) -> Callable[..., None]:
    def show(batch: dict[str, Any], *arguments: Any, **options: Any) -> None:
        single = [line for text in batch.get("lines", ()) for line in str(text).split("\n")]  # an error is one text
        lines = shown_lines({**batch, "lines": single})
        if lines:
            printing({**batch, "lines": lines}, *arguments, **options)

    return show
