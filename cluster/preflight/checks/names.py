"""Whether nodes find out names in time: torch asks for the name of every address at which it meets a worker.

It does so for its messages alone, and waits for the answer. Where no DNS server answers, one question takes glibc from
5 to 30 seconds (resolv.conf(5): `timeout`, `attempts`, servers), and torch may ask one for each connection
(pytorch#159007): workers that are well then seem not to meet. gloo asks for the address of the node's own name.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Mapping, Sequence

from cluster.preflight.checks.check import Check, listed, or_all_well
from cluster.preflight.findings import EVERY, Finding
from cluster.preflight.nodes import Call, Failure, Nodes
from cluster.preflight.wanted import Wanted

NAME = "names"
SLOW_SECONDS = 1.0
"""A question that takes longer is a finding."""
_LOOKUP_SECONDS = 3.0
"""For which an answer is waited for."""
_SECONDS = 10.0
_MOST = 8
"""Nodes whose names each node looks up."""

Lookups = Mapping[str, float | None]
"""Seconds until there was an answer, whatever it was, by what was asked for; None if there was none."""


def look_up(addresses: Sequence[str], seconds: float) -> Lookups:
    """Ask for the names of some addresses, and for this node's own address, all at the same time.

    Args:
        addresses: of nodes.
        seconds: for which they are waited for.
    """
    calls = {f"the name of {address}": Call(_name_of, (address,)) for address in addresses}
    calls[f"the address of {socket.gethostname()}"] = Call(_address_of, (socket.gethostname(),))
    until = time.monotonic() + seconds
    answers = {what: call.answer(until - time.monotonic(), seconds) for what, call in calls.items()}
    return {what: None if isinstance(answer, Failure) else answer for what, answer in answers.items()}


def _name_of(address: str) -> float:
    began = time.monotonic()
    with contextlib.suppress(OSError):  # that there is none is an answer
        socket.getnameinfo((address, 0), socket.NI_NUMERICSERV)
    return time.monotonic() - began


def _address_of(name: str) -> float:
    began = time.monotonic()
    with contextlib.suppress(OSError):
        socket.getaddrinfo(name, None)
    return time.monotonic() - began


def _measure(nodes: Nodes, _: Wanted) -> Mapping[str, Lookups | Failure]:
    addresses = list(nodes.addresses.values())
    ring, count = addresses * 2, min(_MOST, len(addresses))
    asked = {name: (ring[at : at + count], _LOOKUP_SECONDS) for at, name in enumerate(nodes.addresses)}
    return nodes.each(look_up, asked, _SECONDS)


def judge(facts: Mapping[str, Lookups], _: Wanted) -> list[Finding]:
    """Nodes on which a question takes long; one finding if it is the same on all of them."""
    slow = {node: found for node, lookups in facts.items() if (found := _slow(lookups))}
    if len(slow) == len(facts) > 1 and len({frozenset(found) for found in slow.values()}) == 1:
        slow = {EVERY: next(iter(slow.values()))}
    findings = [Finding(node, NAME, "warning", f"{_said(found)}; {_SO}", _REMEDY) for node, found in slow.items()]
    longest = max((seconds or 0.0 for lookups in facts.values() for seconds in lookups.values()), default=0.0)
    return or_all_well(findings, NAME, f"looked up within {longest:.2g} s on {len(facts)}")


def _slow(lookups: Lookups) -> dict[str, float | None]:
    return {what: seconds for what, seconds in lookups.items() if seconds is None or seconds > SLOW_SECONDS}


def _said(found: Mapping[str, float | None]) -> str:
    silent = [what for what, seconds in found.items() if seconds is None]
    if silent:
        return f"no answer within {_LOOKUP_SECONDS:g} s to the question for {listed(silent, 2)}"
    return f"{max(seconds for seconds in found.values() if seconds):.1f} s to look up {listed([*found], 2)}"


_SO = "torch asks for the name of each worker that it meets, so a training begins late; bandwidth is not measured there"
_REMEDY = (
    "put all nodes into /etc/hosts there, or mend its DNS (/etc/resolv.conf: a server that does not answer, or no "
    "reverse zone); options timeout:1 attempts:1 there make it short"
)
CHECK = Check(NAME, _measure, judge, remedy=_REMEDY, fewest=2, again=True)
"""It is no error: a training waits for its workers for half an hour."""
