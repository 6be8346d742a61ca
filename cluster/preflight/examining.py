"""The doctor: the nodes that a process can reach are checked, whatever is about to run there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.config.run import ClusterConfig, RunConfig
from cluster.preflight.findings import EVERY, LEVELS, Finding
from cluster.preflight.nodes import ThisMachine
from cluster.preflight.ray_probes import probes
from cluster.preflight.report import record
from cluster.preflight.running import NODE, run_checks
from cluster.preflight.wanted import Wanted, wanted_by
from cluster.session.ray_address import asked_address
from cluster.session.ray_session import ray_session
from data_pipeline.errors import UsageError
from data_pipeline.text.counted import counted

_LONGEST_TEXT = 2000
_MOST_FINDINGS, _MOST_NODES = 20_000, 10_000
_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Examined:
    """What came of it."""

    findings: list[Finding]
    nodes: list[str]
    """Names of all nodes, also of those that did not answer."""
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return record(self.findings, self.nodes, self.seconds)

    @classmethod
    def from_json(cls, found: Any, where: str) -> Examined:
        """What `to_json` gave, read from a file that somebody else may have written.

        Raises:
            UsageError: if it is something else.
        """
        try:
            findings = [_finding(each) for each in found["findings"][:_MOST_FINDINGS]]
            return cls(findings, [_text(name) for name in found["nodes"][:_MOST_NODES]], float(found["seconds"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{where} is no record of the doctor ({error})") from None


def _finding(found: Mapping[str, Any]) -> Finding:
    level = {level: level for level in LEVELS}[found["level"]]
    return Finding(_text(found["node"]), _text(found["check"]), level, _text(found["found"]), _text(found["remedy"]))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value[:_LONGEST_TEXT]


def examine(
    config: RunConfig | None, *, nodes: int = 1, seconds: float = 60.0, say: Callable[[str], object] = lambda _: None
) -> Examined:
    """Check the cluster that the config, or RAY_ADDRESS, names; this machine without any.

    Args:
        config: of a run, for its storage and its needs.
        nodes: that there should be.
        seconds: for which they are waited for.
        say: is told the name of each check before it runs.
    """
    began = time.monotonic()
    wanted = wanted_by(config) if config else Wanted()
    cluster = config.cluster if config else ClusterConfig()
    if asked_address(cluster.address) is None:
        here = ThisMachine()
        findings = run_checks(here, wanted, say=say)
        return Examined(findings, list(here.addresses), time.monotonic() - began)
    with ray_session(cluster):
        missing = _missing(nodes, seconds)
        with probes() as found:
            findings = missing + run_checks(found, wanted, unanswered=found.unanswered, say=say)
        return Examined(findings, list(found.ids), time.monotonic() - began)


def _missing(nodes: int, seconds: float) -> list[Finding]:
    """A finding, if fewer nodes have joined by then than there should be."""
    import ray

    until = time.monotonic() + seconds
    while (there := sum(node["Alive"] for node in ray.nodes())) < nodes and time.monotonic() < until:  # type: ignore[no-untyped-call]
        time.sleep(_LOOK_SECONDS)
    if there >= nodes:
        return []
    remedy = "look at the scheduler and at the logs of those that are missing"
    return [Finding(EVERY, NODE, "error", f"{there} of {counted(nodes, 'node')} joined within {seconds:g} s", remedy)]
