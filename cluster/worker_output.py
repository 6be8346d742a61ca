"""What the command shows of what its workers print: their own words and errors, nothing of Ray's core.

Ray forwards every line that a process of the cluster prints. Left out are

* the log lines of Ray's core (C++), and what it prints when a worker without work is ended with its cluster
* the errors of Ray Train's controller: they end the command, which then says them itself
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

_HANDLER = "ray_print_logs"
"""Under which Ray has its own, and removes it in the end."""
_CONTROLLER = "TrainController"
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
    actor = batch.get("actor_name")
    if actor and str(actor).startswith(_CONTROLLER) and batch.get("is_err"):
        return []
    is_idle = not actor and not batch.get("task_name")
    return [line for line in batch.get("lines", ()) if not _CORE.match(line) and not (is_idle and _ABORTED.match(line))]


def show_workers_own_words() -> None:
    """Put `shown_lines` before what prints the lines that Ray forwards. Ray is connected."""
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    printing = [handler for name, handler in dispatcher.handlers if name == _HANDLER]
    dispatcher.remove_handler(_HANDLER)
    for handler in printing:
        dispatcher.add_handler(_HANDLER, _filtered(handler))


def _filtered(printing: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    def show(batch: dict[str, Any]) -> None:
        lines = shown_lines(batch)
        if lines:
            printing({**batch, "lines": lines})

    return show
