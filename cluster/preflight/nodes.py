"""Nodes that can be asked. All that a check knows of them comes through `Nodes.each`, whose wait has a bound."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

LONGEST_REASON = 300
"""Characters of what an exception says."""


@dataclass(frozen=True)
class Failure:
    """In place of an answer."""

    reason: str
    is_silent: bool = False
    """Whether there was no answer in time."""


def silent(seconds: float) -> Failure:
    """No answer came."""
    return Failure(f"no answer within {seconds:g} s", is_silent=True)


def failed(error: BaseException) -> Failure:
    """What was asked raised something."""
    text = " ".join(str(error).split())[:LONGEST_REASON]
    return Failure(f"{type(error).__name__}: {text}" if text else type(error).__name__)


class Nodes(Protocol):
    """One or more nodes."""

    @property
    def addresses(self) -> Mapping[str, str]:
        """At which the others reach each node, by the node's name, in a fixed order: the driver's node is the first."""

    def each(
        self, function: Callable[..., Any], arguments: Mapping[str, tuple[Any, ...]], seconds: float
    ) -> dict[str, Any]:
        """Call a function on some nodes, at the same time.

        Args:
            function: of a module of ours, which every node imports.
            arguments: by the name of the node.
            seconds: for which all together are waited for.

        Returns:
            What it returned there, by the name of the node; a `Failure` where it raised something or did not return.
        """


@dataclass(frozen=True)
class Some:
    """Some of the nodes: what is left of them when others do not answer."""

    nodes: Nodes
    names: tuple[str, ...]

    @property
    def addresses(self) -> Mapping[str, str]:
        """See Nodes."""
        return {name: self.nodes.addresses[name] for name in self.names}

    def each(
        self, function: Callable[..., Any], arguments: Mapping[str, tuple[Any, ...]], seconds: float
    ) -> dict[str, Any]:
        """See Nodes."""
        return self.nodes.each(function, arguments, seconds)


def ask_all(nodes: Nodes, function: Callable[..., Any], *arguments: Any, seconds: float) -> dict[str, Any]:
    """The same question to each of them."""
    return nodes.each(function, dict.fromkeys(nodes.addresses, arguments), seconds)


class ThisMachine:
    """This machine alone, without Ray."""

    def __init__(self) -> None:
        self._name = socket.gethostname()

    @property
    def addresses(self) -> Mapping[str, str]:
        """See Nodes."""
        return {self._name: "127.0.0.1"}

    def each(
        self, function: Callable[..., Any], arguments: Mapping[str, tuple[Any, ...]], seconds: float
    ) -> dict[str, Any]:
        """See Nodes."""
        calls = {name: Call(function, given) for name, given in arguments.items()}
        until = time.monotonic() + seconds
        return {name: call.answer(until - time.monotonic(), seconds) for name, call in calls.items()}


class Call:
    """A function that is called in a thread of its own, which nobody has to wait for."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._function, self._arguments, self._answer = function, arguments, silent(0.0)
        self._thread = threading.Thread(target=self._run, name=f"preflight {function.__name__}", daemon=True)
        self._thread.start()

    def answer(self, left: float, asked: float) -> Any:
        """What it returned, or why it did not.

        Args:
            left: seconds for which it is waited for.
            asked: seconds that it was given, for the message.
        """
        self._thread.join(max(0.0, left))
        return silent(asked) if self._thread.is_alive() else self._answer

    def _run(self) -> None:
        try:
            self._answer = self._function(*self._arguments)
        except BaseException as error:  # whatever it is, it is told
            self._answer = failed(error)
