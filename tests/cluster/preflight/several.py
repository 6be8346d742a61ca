"""Several nodes that are all this process: what is asked of them is real, and they share its disks and its network."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from cluster.preflight.nodes import Call


class Several:
    """Nodes of some names (`cluster.preflight.nodes.Nodes`)."""

    def __init__(self, *names: str) -> None:
        self.addresses = dict.fromkeys(names, "127.0.0.1")

    def each(
        self, function: Callable[..., Any], arguments: Mapping[str, tuple[Any, ...]], seconds: float
    ) -> dict[str, Any]:
        calls = {name: Call(function, given) for name, given in arguments.items()}
        until = time.monotonic() + seconds
        return {name: call.answer(until - time.monotonic(), seconds) for name, call in calls.items()}
