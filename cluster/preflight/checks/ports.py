"""Rendezvous: whether every node reaches every other on ports like those that a training opens.

Workers meet at a port that the first worker's node has free, and then connect pair by pair at further ones: all
from the range that the kernel gives out (net.ipv4.ip_local_port_range). So each node listens on some of these,
answering with a word that only this check knows, and all others connect to it.
"""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster.preflight.checks.check import Check, listed, or_all_well
from cluster.preflight.findings import Finding
from cluster.preflight.nodes import Failure, Nodes
from cluster.preflight.wanted import Wanted

NAME = "ports"
_PORTS = 2
"""That each node listens on."""
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_CONNECT_SECONDS = 2.0
_SECONDS = 10.0
_AT_ONCE = 64

Reached = Mapping[str, str]
"""Why each other node was not reached, by its name; empty if it was."""

_open: dict[str, list[socket.socket]] = {}
"""Listening sockets of this process, by the word of the check."""


def listen(word: str) -> list[int]:
    """Listen on some ports of all interfaces, as workers do, and answer with the word. Returns the ports."""
    sockets = [socket.create_server(("", 0)) for _ in range(_PORTS)]
    _open[word] = sockets
    for each in sockets:
        threading.Thread(target=_answer, args=(each, word.encode()), name="preflight port", daemon=True).start()
    return [each.getsockname()[1] for each in sockets]


def _answer(listening: socket.socket, word: bytes) -> None:
    while True:
        try:
            peer, _ = listening.accept()
        except OSError:  # it was closed
            return
        with peer:
            try:
                peer.settimeout(_CONNECT_SECONDS)
                peer.sendall(word)
            except OSError:
                continue


def close(word: str) -> None:
    """Listen no more."""
    for each in _open.pop(word, []):
        each.shutdown(socket.SHUT_RDWR)  # or who waits in accept() would go on to wait
        each.close()


def reach(word: str, others: Mapping[str, tuple[str, list[int]]]) -> tuple[Reached, str]:
    """Connect to each of the others, at the address and the ports of each. Returns also this node's range of ports."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = pool.map(lambda place: _connect(word.encode(), *place), others.values())
        reached = dict(zip(others, found, strict=True))
    return reached, " to ".join(_RANGE.read_text().split()) if _RANGE.exists() else "any"


def _connect(word: bytes, address: str, ports: list[int]) -> str:
    for port in ports:
        try:
            with socket.create_connection((address, port), timeout=_CONNECT_SECONDS) as opened:
                opened.settimeout(_CONNECT_SECONDS)
                said = opened.recv(len(word), socket.MSG_WAITALL)
        except OSError as error:
            return f"{address}:{port}: {error.strerror or error}"
        if said != word:
            return f"{address}:{port}: something else answers there"
    return ""


def _measure(nodes: Nodes, _: Wanted) -> Mapping[str, tuple[Reached, str] | Failure]:
    word, addresses = secrets.token_hex(16), nodes.addresses
    listening = nodes.each(listen, dict.fromkeys(addresses, (word,)), _SECONDS)
    try:
        failures = {name: found for name, found in listening.items() if isinstance(found, Failure)}
        places = {name: (addresses[name], found) for name, found in listening.items() if name not in failures}
        asked = {name: (word, {other: at for other, at in places.items() if other != name}) for name in places}
        return failures | nodes.each(reach, asked, _SECONDS)
    finally:
        nodes.each(close, dict.fromkeys(addresses, (word,)), _SECONDS)


def judge(facts: Mapping[str, tuple[Reached, str]], _: Wanted) -> list[Finding]:
    """Nodes that others do not reach, that reach no others, and pairs of which one does not reach the other."""
    deaf = {to for to in facts if len(facts) > 2 and all(found[to] for name, (found, _) in facts.items() if name != to)}
    mute = {name for name, (found, _) in facts.items() if len(facts) > 2 and found and all(found.values())} - deaf
    findings = []
    for node in facts:
        failed = {name: found[node] for name, (found, _) in facts.items() if name != node and found[node]}
        if node not in deaf:
            failed = {name: why for name, why in failed.items() if name not in mute}
        if failed:
            by, why = next(iter(failed.items()))
            who = "reached by no other node" if node in deaf else f"not reached by {listed(list(failed))}"
            findings.append(Finding(node, NAME, "error", f"is {who} ({by}: {why})", _opened(facts[node][1])))
    for node in sorted(mute):
        to, why = next((to, why) for to, why in facts[node][0].items() if why)
        remedy = f"open its way out to the other nodes' ports {facts[node][1]} (its firewall, its security group)"
        findings.append(Finding(node, NAME, "error", f"reaches no other node ({to}: {why})", remedy))
    return or_all_well(findings, NAME, f"each of {len(facts)} reaches every other")


def _opened(ports: str) -> str:
    return (
        f"open its ports {ports} to the other nodes (firewall, security group, network policy), and see that its "
        "address is one that they have a route to (ray start --node-ip-address)"
    )


CHECK = Check(NAME, _measure, judge, remedy="look at the network of the node", fewest=2)
